//! Who imports whom: no file imports one above it, and no two files import each other.

use super::{Source, sources};

/// The rooms, and which other rooms each may import. A room above, such as `net` above `http1`, is
/// never imported from below.
const ROOMS: [(&str, &[&str]); 10] = [
    ("http1", &[]),
    ("x509", &[]),
    ("oidc", &["http1"]),
    ("process", &["http1"]),
    ("connector", &["http1", "process"]),
    ("net", &["http1", "oidc", "x509", "process", "connector"]),
    ("feeder", &["http1", "oidc", "process", "connector", "net"]),
    ("cli", &["http1", "oidc", "process", "net"]),
    ("users", &["http1", "process", "cli"]),
    ("start", &[]),
];

/// The paths that begin with `crate::` or `super::`, and those through a module that is declared in
/// this file, each as far as it names modules.
fn imports(source: &Source, modules: &[String]) -> Vec<String> {
    let own = module(&source.name);
    let code: Vec<&str> = tokens(&source.code);
    let mut found = Vec::new();
    for at in 0..code.len() {
        if at > 0 && code[at - 1] == "::" {
            continue;
        }
        let mut base: Vec<&str> = own.split('/').collect();
        let mut next = at;
        match code[at] {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                base.pop();
                while code.get(next + 2) == Some(&"super") {
                    base.pop();
                    next += 2;
                }
            }
            name if code.get(at + 1) == Some(&"::") => {
                let child = format!("{own}/{name}");
                if modules.contains(&child) {
                    found.push(child);
                }
                continue;
            }
            _ => continue,
        }
        if code.get(next + 1) != Some(&"::") {
            continue;
        }
        let mut paths = Vec::new();
        tree(&code[next + 1..], &base, &mut paths);
        for path in paths {
            let longest = (1..=path.len()).rev().map(|n| path[..n].join("/"));
            found.extend(longest.into_iter().find(|path| modules.contains(path)));
        }
    }
    found.retain(|other| *other != own);
    found
}

/// Words, `::`, and every other byte alone.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match first {
            _ if rest.starts_with("::") => 2,
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        tokens.push(&rest[..len]);
        rest = rest[len..].trim_start();
    }
    tokens
}

/// Adds the paths that a `::a::{b, c::d}` behind `base` means; returns the tokens it takes.
fn tree<'a>(code: &[&'a str], base: &[&'a str], paths: &mut Vec<Vec<&'a str>>) -> usize {
    let mut path = base.to_vec();
    let mut at = 0;
    while code.get(at) == Some(&"::") {
        at += 1;
        if code.get(at) != Some(&"{") {
            path.extend(code.get(at));
            at += 1;
            continue;
        }
        while code.get(at) != Some(&"}") {
            at += 1;
            let Some(name) = code.get(at).filter(|name| **name != "}") else { break };
            let inner = [&path[..], &[*name]].concat();
            at += 1 + tree(&code[at + 1..], &inner, paths);
            // Up to the next comma, behind an `as`.
            while code.get(at).is_some_and(|token| !matches!(*token, "," | "}")) {
                at += 1;
            }
        }
        return at + 1;
    }
    paths.push(path);
    at
}

/// `net/tls` for `net/tls.rs` and for `net/tls/mod.rs`.
fn module(file: &str) -> String {
    let name = file.strip_suffix(".rs").unwrap();
    name.strip_suffix("/mod").unwrap_or(name).to_owned()
}

#[test]
fn no_room_imports_one_above_it() {
    let sources = sources();
    let modules: Vec<String> = sources.iter().map(|source| module(&source.name)).collect();
    let room = |module: &str| module.split('/').next().unwrap().to_owned();
    let mut count = 0;
    for source in &sources {
        let own = room(&module(&source.name));
        if matches!(&*own, "main" | "lib") {
            continue;
        }
        let row = ROOMS.iter().find(|(name, _)| *name == own);
        let (_, allowed) = row.unwrap_or_else(|| panic!("{own} is in no row of ROOMS"));
        for other in imports(source, &modules) {
            let other = room(&other);
            let fine = other == own || allowed.contains(&&*other);
            assert!(fine, "{} imports {other}", source.name);
            count += 1;
        }
    }
    assert!(count > 200, "{count} imports");
}

#[test]
fn no_two_files_import_each_other() {
    let sources = sources();
    let modules: Vec<String> = sources.iter().map(|source| module(&source.name)).collect();
    let graph: Vec<(String, Vec<String>)> =
        sources.iter().map(|source| (module(&source.name), imports(source, &modules))).collect();
    let reaches_itself = |from: &str| {
        let mut seen = vec![from.to_owned()];
        let mut at = 0;
        while at < seen.len() {
            let (_, imports) = graph.iter().find(|(name, _)| *name == seen[at]).unwrap();
            for other in imports {
                if other == from {
                    return true;
                }
                if !seen.contains(other) {
                    seen.push(other.clone());
                }
            }
            at += 1;
        }
        false
    };
    for (name, _) in &graph {
        assert!(!reaches_itself(name), "{name} is in a cycle of imports");
    }
}
