//! Reads the sources and keeps the rules that reviewers rely on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

mod audit {
    use super::{Source, sources};

    mod imports;
}

/// Lines of one file without its tests; more make a file hard to review in one sitting.
const LONGEST_FILE: usize = 400;
/// Files that may be longer: a table that is read row by row.
const LONGER_FILES: [&str; 1] = ["cli/flags.rs"];

/// A source file: its path below `src`, and its code without comments and without tests.
struct Source {
    name: String,
    code: String,
}

impl Source {
    fn words(&self) -> impl Iterator<Item = &str> {
        self.code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
    }

    fn has_word(&self, word: &str) -> bool {
        self.words().any(|w| w == word)
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        // An attribute that is indented belongs to one function for tests, with code behind it.
        let code = text.split("\n#[cfg(test)]").next().unwrap_or_default();
        let code = if path.ends_with("testing.rs") && is_for_tests(&path) { "" } else { code };
        let code: String =
            code.lines().map(|line| without_comment(line).to_owned() + "\n").collect();
        Source { name: path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(), code }
    };
    let sources: Vec<Source> = files.into_iter().map(read).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// The module that declares this file compiles it for unit tests alone.
fn is_for_tests(path: &Path) -> bool {
    let folder = path.parent().unwrap();
    let parents = [folder.join("mod.rs"), folder.with_extension("rs")];
    let parent = parents.iter().find_map(|parent| fs::read_to_string(parent).ok()).unwrap();
    let line = parent.split_once("#[cfg(test)]\n").map(|(_, rest)| rest.lines().next().unwrap());
    line.is_some_and(|line| line.ends_with("mod testing;"))
}

/// Up to a `//` that is not part of a URL.
fn without_comment(line: &str) -> &str {
    let start = line.match_indices("//").map(|(at, _)| at).find(|at| !line[..*at].ends_with(':'));
    &line[..start.unwrap_or(line.len())]
}

#[test]
fn unsafe_stands_in_one_room() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for source in sources().iter().filter(|source| !source.name.starts_with("process/sys/")) {
        // The unit tests too, which `code` leaves out.
        let text = fs::read_to_string(folder.join(&source.name)).unwrap();
        let has_unsafe = source.has_word("unsafe") || text.contains("unsafe {");
        assert!(!has_unsafe, "{} contains unsafe", source.name);
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/process/sys");
    let mut count = 0;
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&path).unwrap();
        let blocks = text.matches("unsafe {").count() + text.matches("unsafe impl").count();
        assert!(text.matches("SAFETY:").count() >= blocks, "{}", path.display());
        count += blocks;
    }
    assert!(count > 0);
}

#[test]
fn the_key_has_two_uses_with_one_caller_each() {
    let calls = |method: &str| {
        let mut places: Vec<String> = Vec::new();
        for source in sources() {
            places.extend(source.code.matches(method).map(|_| source.name.clone()));
        }
        places
    };
    // One in the file for each of TLS and plaintext upstreams, in one function.
    assert_eq!(calls(".splice_into("), ["net/upstream/connection.rs"; 2]);
    assert_eq!(calls(".reflected("), ["net/session/download.rs"]);
    // The ring passes a comparison on to each key that it holds, and compares a fresh key.
    assert_eq!(calls(".is_in("), ["process/key_ring.rs"; 2]);
    assert_eq!(calls("current.matches("), ["process/key_ring.rs"]);
    assert_eq!(calls(".load_with_same_prefix("), ["process/key_ring.rs"]);
}

#[test]
fn the_pure_rooms_know_no_socket_no_clock_and_no_key() {
    let is_pure =
        |source: &&Source| ["http1/", "oidc/", "x509/"].iter().any(|r| source.name.starts_with(r));
    for source in sources().iter().filter(is_pure) {
        for word in
            ["Instant", "SystemTime", "mio", "rustls", "libc", "thread", "fs", "env", "process"]
        {
            assert!(!source.has_word(word), "{} contains {word}", source.name);
        }
        // core::net::Ipv6Addr is sixteen bytes and their spelling.
        for path in ["std::net", "std::time", "std::io", "crate::net", "crate::process"] {
            assert!(!source.code.contains(path), "{} contains {path}", source.name);
        }
    }
}

#[test]
fn one_folder_names_the_tls_library() {
    for word in ["rustls", "webpki", "webpki_roots"] {
        let sources = sources();
        let mut naming = sources.iter().filter(|source| source.has_word(word)).peekable();
        assert!(naming.peek().is_some(), "{word} is named nowhere");
        for source in naming {
            assert!(source.name.starts_with("net/tls/"), "{} names {word}", source.name);
        }
    }
}

#[test]
fn the_version_line_names_the_tls_library_that_is_built_in() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let needs = manifest.split("\nrustls = ").nth(1).unwrap().lines().next().unwrap();
    let version = needs.split('"').nth(1).unwrap();
    assert!(needs.contains("\"ring\""));
    let tls = fs::read_to_string(root.join("src/net/tls/mod.rs")).unwrap();
    assert!(tls.contains(&format!("\"rustls {version} with ring\"")), "not {version}");
}

/// The words of lower case with an underscore between such marks.
fn codes(text: &str, mark: char) -> Vec<&str> {
    let parts = text.split(mark).skip(1).step_by(2);
    let is_code = |word: &&str| {
        word.contains('_') && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let mut codes: Vec<&str> = parts.filter(is_code).collect();
    codes.sort_unstable();
    codes
}

/// The first column of a table of `docs/errors.md`, its entries separated by commas.
fn table_of_errors(title: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once(title).unwrap();
    let rows = rest.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    let first = rows.take_while(|line| line.starts_with('|')).map(|row| {
        assert!(row.split(" | ").count() >= 3, "{row}");
        row.split(" | ").next().unwrap().trim_start_matches("| ").to_owned() + ", "
    });
    first.collect()
}

#[test]
fn the_errors_page_says_once_what_to_do_about_each_error_code_and_exit_code() {
    let sources = sources();
    let code = |file| &sources.iter().find(|source| source.name == file).unwrap().code;
    let responses = code("http1/local_response.rs");
    let table = table_of_errors("## By `error.code`");
    let (told, made) = (codes(&table, '`'), codes(responses, '"'));
    let missing: Vec<_> = made.iter().filter(|code| !told.contains(code)).collect();
    let stray: Vec<_> = told.iter().filter(|code| !made.contains(code)).collect();
    assert!(missing.is_empty() && stray.is_empty(), "without a row: {missing:?}; stray: {stray:?}");
    assert_eq!(told, made, "a code stands twice");

    let told = table_of_errors("## By exit code");
    let told: Vec<&str> = told.split(", ").collect();
    let (_, exit) = code("process/harden.rs").split_once("pub fn exit_code").unwrap();
    let exit = exit.split_once("impl ").unwrap().0;
    let numbers: Vec<&str> =
        exit.split("=> ").skip(1).map(|s| s.split(',').next().unwrap()).collect();
    assert!(numbers.len() >= 8);
    let (_, connector) = code("start/error.rs").split_once("const CONNECTOR: u8 = ").unwrap();
    let connector = connector.split(';').next().unwrap();
    for number in ["0", "1", "2", connector].iter().chain(&numbers) {
        assert_eq!(told.iter().filter(|code| *code == number).count(), 1, "exit code {number}");
    }
}

/// A test for each exit code, and how the test names the code. 134, 139 and 159 are what a shell
/// makes of a signal.
const EXIT_CODES: [(&str, &str, &str); 18] = [
    ("0", "shutdown::with_nothing_under_way_it_ends_at_once_and_says_so", "0"),
    ("1", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "1"),
    ("2", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "2"),
    ("5", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "5"),
    ("7", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "7"),
    ("8", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "8"),
    ("9", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "9"),
    ("10", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "10"),
    ("11", "detach::what_fails_after_stderr_was_left_is_told_too", "11"),
    ("12", "hardening::a_layer_that_the_kernel_has_and_does_not_put_in_force_ends_the_start", "12"),
    ("13", "memory::secret_memory_that_is_required_and_missing_ends_the_start", "13"),
    ("14", "hardening::a_missing_layer_is_named_with_its_cause", "14"),
    ("15", "hardening::a_change_of_user_under_suid_dumpable_ends_the_start", "15"),
    ("16", "connector::when_it_is_killed_who_waits_gets_502_and_the_relay_ends", "16"),
    ("17", "command_line::what_keeps_it_from_starting_is_told_with_what_to_do", "17"),
    ("134", "sandbox::a_relay_without_memory_says_so_and_ends_by_sigabrt", "SIGABRT"),
    ("139", "hardening::a_start_without_room_for_files_or_stack_says_so", "SIGSEGV"),
    (
        "159",
        "compromise::code_in_the_loop_opens_nothing_sends_nowhere_and_reaches_no_process",
        "SIGSYS",
    ),
];

#[test]
fn each_error_code_and_exit_code_is_produced_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let read = |folder: &str| {
        let files = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| fs::read_to_string(path).unwrap()).collect::<String>()
    };
    // A test compares a response with `"code"`; the outcome of a vector is `STATUS code …`.
    let tests = read("relay") + &read("vectors").replace([' ', '\n'], "\"");
    let table = table_of_errors("## By `error.code`");
    let codes = codes(&table, '`');
    assert!(codes.len() > 40, "{} codes", codes.len());
    for code in codes {
        assert!(tests.contains(&format!("\"{code}\"")), "no test produces {code}");
    }

    let table = table_of_errors("## By exit code");
    let is_used = |code: &&str| !code.is_empty() && *code != "6";
    let told: Vec<&str> = table.split(", ").filter(is_used).collect();
    assert_eq!(told.iter().collect::<BTreeSet<_>>(), EXIT_CODES.iter().map(|row| &row.0).collect());
    for (code, name, word) in EXIT_CODES {
        let (file, test) = name.split_once("::").unwrap();
        let text = fs::read_to_string(root.join(format!("relay/{file}.rs"))).unwrap();
        let (_, body) = text.split_once(&format!("\nfn {test}()")).unwrap_or_else(|| {
            panic!("exit code {code}: there is no test {name}");
        });
        let body = body.split("\n}\n").next().unwrap();
        let mut words = body.split(|c: char| !c.is_alphanumeric());
        assert!(words.any(|other| other == word), "{name} does not name exit code {code}");
    }
}

#[test]
fn nothing_prints_where_the_key_is_or_what_a_peer_sent() {
    for source in sources() {
        for macro_name in ["println!", "eprintln!", "print!", "eprint!", "dbg!"] {
            assert!(!source.code.contains(macro_name), "{} contains {macro_name}", source.name);
        }
        assert!(!source.code.contains("{:?}"), "{} prints a Debug form", source.name);
        assert!(!source.code.contains(":?}"), "{} prints a Debug form", source.name);
    }
}

#[test]
fn what_holds_the_key_cannot_be_shown_copied_or_reached_into() {
    let sources = sources();
    for (file, name) in [
        ("process/credential.rs", "Credential"),
        ("process/credential.rs", "KeyPages"),
        ("process/key_ring.rs", "KeyRing"),
        ("process/key_ring.rs", "Rotation"),
        ("process/egress.rs", "ConnectRequest"),
        ("process/sys/secret_pages.rs", "SecretPages"),
    ] {
        let code = &sources.iter().find(|source| source.name == file).unwrap().code;
        let at = code.find(&format!("struct {name} {{")).unwrap();
        // The lines above the one with the name.
        let above = code[..at].rsplit_once('\n').map_or("", |(above, _)| above);
        let before = above.trim_end().lines().next_back().unwrap_or_default();
        assert!(!before.contains("derive"), "{name} derives something");
        for capability in ["Debug", "Display", "Clone", "Deref", "AsRef", "Borrow"] {
            for source in &sources {
                let implementation = format!("{capability} for {name}");
                assert!(!source.code.contains(&implementation), "{implementation}");
            }
        }
    }
    let credential = sources.iter().find(|s| s.name == "process/credential.rs").unwrap();
    assert!(!credential.has_word("String") && !credential.has_word("Vec"));
}

#[test]
fn numbers_from_the_wire_are_read_digit_by_digit() {
    for source in sources() {
        for call in [".parse()", ".parse::<", "from_str_radix"] {
            // An IPv6 address is no number.
            let code = source.code.replace(".parse::<core::net::Ipv6Addr>", "");
            assert!(!code.contains(call), "{} contains {call}", source.name);
        }
    }
}

#[test]
fn no_file_is_too_long_to_review() {
    for source in sources() {
        let lines = source.code.lines().count();
        let fine = lines <= LONGEST_FILE || LONGER_FILES.contains(&&*source.name);
        assert!(fine, "{} has {lines} lines", source.name);
    }
}

/// Bounds outside of the files of bounds, in rooms that have no such file.
const OTHER_BOUNDS: [(&str, &[&str]); 14] = [
    ("connector/addresses.rs", &["DNS_CACHE", "PATIENCE", "PACE", "PAUSE"]),
    ("connector/lookup.rs", &["ADDRESSES", "LOOKUP", "OVERDUE"]),
    ("connector/mod.rs", &["PROCESSES"]),
    ("connector/race.rs", &["STAGGER"]),
    ("connector/serve.rs", &["DIALS", "ATTEMPTS"]),
    ("connector/wire.rs", &["LONGEST", "SHOWN"]),
    ("process/credential/search.rs", &["SHORTEST_KEY", "LONGEST", "LONG_PART"]),
    ("process/harden.rs", &["SMALLEST_FILE_LIMIT"]),
    ("process/key_ring.rs", &["LIFETIME_DIGITS"]),
    ("process/server_info/folder.rs", &["LINKS"]),
    ("process/service_manager.rs", &["MOST"]),
    ("process/token.rs", &["LONGEST", "SHORTEST"]),
    ("start/prepare.rs", &["OTHER_DESCRIPTORS"]),
    ("x509/certificate.rs", &["NAME_SHOWN"]),
];

/// The constants of a file, each with the comment above it.
fn constants(code: &str) -> Vec<(&str, String)> {
    let mut comment = String::new();
    let mut constants = Vec::new();
    for line in code.lines() {
        match line.split_once("const ") {
            _ if line.starts_with("///") => comment += line,
            Some((visibility, rest)) if visibility.is_empty() || visibility.starts_with("pub") => {
                constants.push((rest.split(':').next().unwrap(), std::mem::take(&mut comment)));
            }
            _ => comment.clear(),
        }
    }
    constants
}

#[test]
fn every_bound_is_tested() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let mut tests = String::new();
    for folder in ["tests", "tests/relay", "tests/support"] {
        for path in fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_file() && !path.ends_with("audit.rs") {
                tests += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let own_tests = |path: &str| {
        read(path).split_once("\n#[cfg(test)]").map_or(String::new(), |(_, tests)| tests.to_owned())
    };
    for source in sources() {
        tests += &own_tests(&format!("src/{}", source.name));
    }
    // In a string, a name is no use of the constant.
    let names = |tests: &str, name: &str| {
        let is_part = |c: Option<char>| {
            c.is_some_and(|c| c.is_alphanumeric() || ['_', '"', '\'', '`'].contains(&c))
        };
        tests.match_indices(name).any(|(at, _)| {
            let (before, after) = (tests[..at].chars().next_back(), &tests[at + name.len()..]);
            !is_part(before) && !is_part(after.chars().next())
        })
    };
    let is_tested_by = |comment: &str| {
        comment.split_once("Tested by `").is_some_and(|(_, rest)| {
            let (file, test) = rest.split('`').next().unwrap().split_once("::").unwrap();
            read(&format!("tests/relay/{file}.rs")).contains(&format!("\nfn {test}()"))
        })
    };
    let mut count = 0;
    for file in ["src/http1/limits.rs", "src/net/limits.rs", "src/net/timeouts.rs"] {
        for (name, comment) in constants(&read(file)).iter().filter(|(name, _)| *name != "_") {
            assert!(names(&tests, name) || is_tested_by(comment), "no test names {name} of {file}");
            count += 1;
        }
    }
    for (file, bounds) in OTHER_BOUNDS {
        let path = format!("src/{file}");
        let (code, own) = (read(&path), own_tests(&path));
        for bound in bounds {
            let found = constants(&code).into_iter().find(|(name, _)| name == bound);
            let (name, comment) = found.unwrap_or_else(|| panic!("{file} has no {bound}"));
            assert!(names(&own, name) || is_tested_by(&comment), "no test names {name} of {file}");
            count += 1;
        }
    }
    assert!(count > 80, "{count} bounds");
}

#[test]
fn every_bound_of_net_stands_in_limits_or_timeouts() {
    // Sizes of formats, not bounds.
    let is_format = |name: &str| name == "net/tls/key_exchange.rs";
    let mut count = 0;
    for source in sources().iter().filter(|source| source.name.starts_with("net/")) {
        let is_block = matches!(&*source.name, "net/limits.rs" | "net/timeouts.rs");
        for line in source.code.lines().map(str::trim).filter(|line| line.contains("const ")) {
            let kinds = [": Duration =", ": usize =", ": u64 =", "RangeInclusive<usize> ="];
            if kinds.iter().any(|kind| line.contains(kind)) && !is_format(&source.name) {
                let is_date = source.name == "net/clock.rs" && line.starts_with("const LAST:");
                assert!(is_block || is_date, "{}: {line}", source.name);
                count += 1;
            }
        }
        // The length of a second is no bound.
        let code = source.code.replace("Duration::from_secs(1)", "");
        let calls = ["Duration::from_secs(", "Duration::from_millis(", "Duration::from_micros("];
        let found = calls.iter().find(|call| code.contains(**call));
        assert!(is_block || found.is_none(), "{} calls {found:?}", source.name);
    }
    assert!(count > 30, "{count} bounds");
}

#[test]
fn every_system_call_that_is_allowed_stands_in_security_md() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let security = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let (_, section) = security.split_once("\n## The system calls that are allowed\n").unwrap();
    // The tables of the loop's process come first.
    let (of_loop, rest) = section.split_once("\nThe feeder (").unwrap();
    let (of_feeder, of_connector) = rest.split_once("\nThe connector and its lookups").unwrap();
    let mut count = 0;
    for (list, tables) in [
        ("src/process/system_calls.rs", of_loop),
        ("src/feeder/system_calls.rs", of_feeder),
        ("src/connector/system_calls.rs", of_connector),
    ] {
        for part in fs::read_to_string(root.join(list)).unwrap().split("libc::SYS_").skip(1) {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
            let name = format!("`{}`", &part[..end]);
            assert!(tables.contains(&name), "{list}: {name} is not explained");
            count += 1;
        }
    }
    assert!(count > 60, "{count} calls");
}

#[test]
fn every_system_call_of_the_loop_has_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = fs::read_to_string(root.join("src/process/system_calls.rs")).unwrap();
    let lines: Vec<&str> = list.lines().map(str::trim).collect();
    let mut count = 0;
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("libc::SYS_")) {
        // One reason may be that of a few calls in a row.
        let is_between = |above: &&&str| {
            above.contains("libc::SYS_") || **above == "Limited {" || above.contains("match cfg!")
        };
        let reason = lines[..at].iter().rev().find(|above| !is_between(above)).unwrap();
        assert!(reason.starts_with("//"), "line {}: {line} comes without a reason", at + 1);
        count += 1;
    }
    assert!(count > 30, "{count} calls");
}

#[test]
fn every_test_that_security_md_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let security = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    for name in security.split('`').filter(|part| part.contains("::") && !part.contains(' ')) {
        let (file, test) = name.split_once("::").unwrap();
        let tests = fs::read_to_string(root.join(format!("tests/relay/{file}.rs"))).unwrap();
        assert!(tests.contains(&format!("fn {test}()")), "there is no test {name}");
    }
}

#[test]
fn what_needs_root_is_ignored_for_others_and_no_skip_is_swallowed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/relay");
    let mut count = 0;
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.display();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        assert!(
            !text.contains("eprintln!(\"skipped"),
            "{name}: libtest swallows it; call skipped()"
        );
        assert!(!text.contains("geteuid() } != 0"), "{name}: call needs_root()");
        assert!(!text.contains("geteuid() } == 0"), "{name}: call is_root()");
        assert!(!text.contains("if !is_root()"), "{name}: call needs_root()");
        for test in text.split("#[test]\n").skip(1) {
            let body = test.split("\n}\n").next().unwrap();
            if body.contains("needs_root()") || body.contains("may_read(") {
                let attribute = "#[cfg_attr(not(root), ignore = \"needs root\")]";
                assert!(test.starts_with(attribute), "{name}: {attribute} is missing: {body}");
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count}");
}

/// A document: its path below the root, and its text.
struct Document {
    name: String,
    text: String,
}

impl Document {
    /// Each line, and whether it is outside of code blocks.
    fn lines(&self) -> impl Iterator<Item = (&str, bool)> {
        self.text.lines().scan(false, |is_code, line| {
            let is_fence = line.trim_start().starts_with("```");
            *is_code ^= is_fence;
            Some((line, !*is_code && !is_fence))
        })
    }

    /// The anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> Vec<String> {
        let headings = self.lines().filter(|(line, is_prose)| *is_prose && line.starts_with('#'));
        let anchor = |(line, _): (&str, bool)| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let keeps = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
            title.chars().filter(keeps).collect::<String>().replace(' ', "-")
        };
        headings.map(anchor).collect()
    }
}

/// All Markdown files of the repository.
fn documents() -> Vec<Document> {
    fn walk(root: &Path, folder: &Path, documents: &mut Vec<Document>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let file_name = path.file_name().unwrap().to_str().unwrap();
            // What is built, fetched or found is not the repository's.
            let is_foreign = ["target", "node_modules", "corpus", "artifacts"].contains(&file_name);
            let is_hidden = file_name.starts_with('.') && file_name != ".github";
            if path.is_symlink() || is_foreign || is_hidden {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, documents);
            } else if file_name.ends_with(".md") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                documents.push(Document { name, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents = Vec::new();
    walk(root, root, &mut documents);
    assert!(documents.len() > 8, "the documents were not found");
    documents
}

#[test]
fn every_link_in_a_document_leads_to_a_file_and_a_heading() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = documents();
    let mut count = 0;
    for document in &documents {
        let folder = Path::new(&document.name).parent().unwrap();
        // A link's text may end on the next line.
        let prose: String = document
            .lines()
            .filter(|(_, is_prose)| *is_prose)
            .map(|(line, _)| line.to_owned() + "\n")
            .collect();
        let links = prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        let sources = ["src=\"", "srcset=\""].into_iter();
        let pictures = sources
            .flat_map(|mark| prose.split(mark).skip(1).map(|rest| rest.split('"').next().unwrap()));
        for link in links.chain(pictures).filter(|link| !link.starts_with("https://")) {
            let at = format!("{}: {link}", document.name);
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let mut target = PathBuf::new();
            for part in
                if file.is_empty() { Path::new(&document.name).into() } else { folder.join(file) }
                    .iter()
            {
                if part == ".." { assert!(target.pop(), "{at}") } else { target.push(part) }
            }
            assert!(root.join(&target).exists(), "{at}: there is no such file");
            if !anchor.is_empty() {
                let page = documents.iter().find(|page| Path::new(&page.name) == target);
                let anchors = page.unwrap_or_else(|| panic!("{at}: no document")).anchors();
                assert!(anchors.iter().any(|a| a == anchor), "{at} is none of {anchors:?}");
            }
            count += 1;
        }
    }
    assert!(count > 40, "{count} links");
}

#[test]
fn documents_are_100_columns_wide_and_the_readme_is_short() {
    for document in documents() {
        for (line, is_prose) in document.lines() {
            // A row of a table, and a picture, cannot be broken.
            let one_word = !line.trim().contains(' ');
            let may_be_long = !is_prose || one_word || line.starts_with(['|', '<']);
            assert!(may_be_long || line.chars().count() <= 100, "{}: {line}", document.name);
        }
        if document.name == "README.md" {
            assert!(document.text.lines().count() <= 150, "README.md is too long");
        }
    }
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_whole_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = |name: &str| {
        let text = fs::read_to_string(root.join(name)).unwrap();
        let (_, rest) = text.split_once("<!-- made by benches/peers -->\n").unwrap();
        rest.split_once("<!-- end -->").unwrap().0.to_owned()
    };
    let table = fs::read_to_string(root.join("benches/peers/results/table.md")).unwrap();
    assert_eq!(made("docs/measured.md"), table);
    let excerpt = made("README.md");
    assert_eq!(excerpt.lines().count(), 2 + 5);
    for row in excerpt.lines() {
        assert!(table.lines().any(|line| line == row), "{row}");
    }
}

#[test]
fn every_path_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for document in documents() {
        let prose = document.lines().filter(|(_, is_prose)| *is_prose).map(|(line, _)| line);
        for name in prose.flat_map(|line| line.split('`').skip(1).step_by(2)) {
            let (folder, _) = name.split_once('/').unwrap_or_default();
            let is_ours = [".ci", ".github", "benches", "docs", "examples", "fuzz", "src", "tests"]
                .contains(&folder);
            if is_ours && !name.contains([' ', '*']) {
                assert!(root.join(name).exists(), "{} names {name}", document.name);
                count += 1;
            }
        }
    }
    assert!(count > 40, "{count} paths");
}

#[test]
fn every_rule_stands_in_contributing_md() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = ["tests/audit.rs", "tests/audit/imports.rs"];
    let rules = rules.map(|path| fs::read_to_string(root.join(path)).unwrap()).concat();
    let page = fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let tests = rules.split("\n#[test]\nfn ").skip(1);
    let names: Vec<&str> = tests.map(|rest| rest.split('(').next().unwrap()).collect();
    assert!(names.len() > 15);
    for name in &names {
        assert!(page.contains(&format!("| `{name}` |")), "CONTRIBUTING.md has no row for {name}");
    }
    let rows = page.lines().filter(|line| line.starts_with("| `") && line.contains('_'));
    for row in rows {
        let name = row.split('`').nth(1).unwrap();
        assert!(names.contains(&name), "CONTRIBUTING.md has a row for {name}, which is no rule");
    }
}

#[test]
fn the_map_names_every_module_of_a_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let map = fs::read_to_string(root.join("lib.rs")).unwrap();
    let (_, table) = map.split_once("# Where to look").unwrap();
    for room in ["http1", "net", "process", "x509"] {
        let text = fs::read_to_string(root.join(room).join("mod.rs")).unwrap();
        for line in text.lines().filter_map(|line| line.split_once("mod ")?.1.strip_suffix(';')) {
            assert!(
                table.contains(&format!("`{room}::{line}`")),
                "{room}::{line} is not in the map"
            );
        }
    }
}

#[test]
fn the_paths_of_the_map_lead_to_code_that_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let blocks = map.split("//! ```text\n").skip(1).map(|rest| rest.split("//! ```").next());
    let words = blocks.flatten().flat_map(str::split_whitespace);
    let sources = sources();
    let mut count = 0;
    for word in words.map(|word| word.trim_end_matches([':', ','])) {
        let Some((path, name)) = word.rsplit_once("::") else { continue };
        // A module, or a type.
        let owner = path.rsplit("::").next().unwrap();
        let is_there = sources.iter().any(|source| {
            let file = source.name.trim_end_matches(".rs").trim_end_matches("/mod");
            let is_owner = file.split('/').any(|part| part == owner)
                || source.code.contains(&format!("impl {owner} {{"));
            let items = ["fn", "struct", "enum"].map(|item| format!("{item} {name}"));
            let is_module = file == word.replace("::", "/");
            is_module || is_owner && items.iter().any(|item| source.code.contains(item))
        });
        assert!(is_there, "src/lib.rs names {word}, which is not there");
        count += 1;
    }
    assert!(count > 12, "{count} paths");
}
