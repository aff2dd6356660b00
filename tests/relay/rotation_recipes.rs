//! Runs the recipes of `docs/operating.md` for a key that changes, as they stand there, with
//! stand-ins for the programs that print keys.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::lifecycle::Folder;
use super::support::relay::{binary, emulated, end_of, ends, marker_key};
use super::support::{Client, Upstream, certs, ok, post, skipped, wait_for};

const PAGE: &str = include_str!("../../docs/operating.md");

/// The block of the section that begins with this line, from that line on.
fn block(kind: &str, first: &str) -> &'static str {
    let (_, section) = PAGE.split_once("## A key that changes\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let begin = format!("```{kind}\n{first}");
    let at = section.find(&begin).unwrap_or_else(|| panic!("no block {first}"));
    section[at + 4 + kind.len()..].split_once("\n```").unwrap().0
}

/// A folder in place of `/run/codex-relay`, with stand-ins and the relay on the PATH.
struct Place {
    folder: Folder,
    upstream: Upstream,
}

/// A recipe that runs. With the relay it ends.
struct Recipe(Child);

impl Drop for Recipe {
    fn drop(&mut self) {
        // SAFETY: no memory is involved. The recipe is the leader of a process group of its own.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

impl Place {
    fn new(name: &str) -> Option<Place> {
        if emulated() {
            skipped("a recipe runs the relay by its name, without the emulator");
            return None;
        }
        let place = Place { folder: Folder::new(name), upstream: Upstream::answering(ok("fine")) };
        let relay = fs::canonicalize(binary()).unwrap();
        let relay = format!(
            "exec {} \"$@\" --server-info {} --ca-file {}",
            relay.display(),
            place.path("info"),
            certs().ca_file()
        );
        place.stand_in("codex-responses-api-proxy", &relay);
        // Time passes when the test says so.
        place.pipe("time");
        place.stand_in("sleep", &format!("read -r _ < {}", place.path("time")));
        Some(place)
    }

    fn path(&self, name: &str) -> String {
        self.folder.file(name).to_str().unwrap().to_owned()
    }

    fn pipe(&self, name: &str) {
        let path = std::ffi::CString::new(self.path(name)).unwrap();
        // SAFETY: the kernel reads a name.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }

    fn stand_in(&self, name: &str, text: &str) {
        // Written by another process: one that is started meanwhile would hold it open for writing.
        let write =
            format!("printf '#!/bin/sh\\n%s\\n' \"$1\" > {0} && chmod 755 {0}", self.path(name));
        assert!(Command::new("sh").args(["-c", &write, "sh", text]).status().unwrap().success());
    }

    /// What the stand-ins print from now on.
    fn set_key(&self, key: &str) {
        fs::write(self.folder.file("next"), format!("{key}\n")).unwrap();
        fs::rename(self.folder.file("next"), self.folder.file("key")).unwrap();
    }

    /// The `sleep` of a recipe ends.
    fn pass_time(&self) {
        writeln!(File::options().write(true).open(self.folder.file("time")).unwrap()).unwrap();
    }

    fn run(&self, text: &str) -> Recipe {
        let text = text.replace("/run/codex-relay/", &self.path(""));
        let path = format!("{}:{}", self.folder.0.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        command.args(["-c", &text]).env("PATH", path).env("URL", self.upstream.url());
        Recipe(command.stdin(Stdio::null()).process_group(0).spawn().unwrap())
    }

    fn port(&self) -> u16 {
        self.folder.wait_for("info", |text| text.ends_with('\n'));
        let info = fs::read_to_string(self.folder.file("info")).unwrap();
        let (_, port) = info.split_once("{\"port\":").unwrap();
        port.split(',').next().unwrap().parse().unwrap()
    }

    fn pid(&self) -> i32 {
        let info = fs::read_to_string(self.folder.file("info")).unwrap();
        let (_, pid) = info.split_once("\"pid\":").unwrap();
        pid.trim_end_matches("}\n").parse().unwrap()
    }

    /// Asks until the upstream has seen this key.
    fn expect(&self, key: &str) {
        let port = self.port();
        wait_for(|| {
            let response = Client::connect(port).send(post("", "{}")).response();
            assert_eq!(response.status, 200);
            let request = self.upstream.requests().pop().unwrap();
            request.fields("authorization") == [format!("Bearer {key}")]
        });
    }

    /// Runs a recipe in which time passes, and ends its relay: the recipe ends with it.
    fn renews(&self, recipe: &str) {
        let keys = [marker_key(), marker_key(), marker_key()];
        self.set_key(&keys[0]);
        let mut running = self.run(recipe);
        self.expect(&keys[0]);
        for key in &keys[1..] {
            self.set_key(key);
            self.pass_time();
            self.expect(key);
        }
        let relay = self.pid();
        // SAFETY: no memory is involved.
        unsafe { libc::kill(relay, libc::SIGTERM) };
        // Only then does nobody hold the other end of the pipe.
        assert!(ends(relay as u32));
        self.pass_time();
        assert!(end_of(&mut running.0).success());
    }
}

#[test]
fn a_token_of_entra_id_is_renewed_by_az() {
    let Some(place) = Place::new("recipe-azure") else { return };
    let says = "[ \"$1 $2 $4 $5 $6 $7 $8\" = 'account get-access-token \
                https://cognitiveservices.azure.com --query accessToken --output tsv' ] && cat ";
    place.stand_in("az", &(says.to_owned() + &place.path("key")));
    place.renews(block("sh", "# Azure:"));
}

#[test]
fn a_file_that_is_replaced_is_read_again() {
    let Some(place) = Place::new("recipe-file") else { return };
    place.renews(block("sh", "# A file that"));
}

#[test]
fn vault_agent_writes_each_key_into_a_pipe_with_a_name() {
    let Some(place) = Place::new("recipe-vault") else { return };
    let template = block("hcl", "template {");
    let (_, command) = template.split_once("exec { command = [").unwrap();
    let command = command.split_once("] }").unwrap().0.replace("\\\"", "\u{1}");
    let words: Vec<String> =
        command.split('"').skip(1).step_by(2).map(|word| word.replace('\u{1}', "\"")).collect();
    assert_eq!((words.len(), words[0].as_str(), words[1].as_str()), (3, "sh", "-c"));
    let _relay = place.run(block("sh", "# The relay waits"));
    place.folder_has("keys");
    for key in [marker_key(), marker_key(), marker_key()] {
        // As the template renders it, without a newline.
        fs::write(place.folder.file("key"), &key).unwrap();
        assert!(end_of(&mut place.run(&words[2]).0).success());
        place.expect(&key);
    }
}

impl Place {
    fn folder_has(&self, name: &str) {
        wait_for(|| self.folder.file(name).exists());
    }
}

#[test]
fn systemd_keeps_the_pipe_and_a_timer_writes_into_it() {
    let Some(place) = Place::new("recipe-systemd") else { return };
    let value = |unit: &'static str, name: &str| {
        let begin = format!("{name}=");
        unit.lines().find_map(|line| line.strip_prefix(&begin)).unwrap()
    };
    let pipe = block("text", "# /etc/tmpfiles.d/").lines().nth(1).unwrap();
    let [kind, path, mode, ..] = pipe.split(' ').collect::<Vec<_>>()[..] else { panic!("{pipe}") };
    assert_eq!((kind, mode), ("p", "0600"));
    let relay = block("ini", "# /etc/systemd/system/codex-responses-api-proxy.service");
    let writer = block("ini", "# /etc/systemd/system/codex-relay-key.service");
    assert_eq!(value(relay, "StandardInput"), format!("file:{path}"));
    assert_eq!(value(writer, "StandardOutput"), format!("append:{path}"));
    let start =
        value(relay, "ExecStart").replace("/usr/local/bin/", "").replace(" --port 8080", "");
    place.pipe("keys");
    let _relay =
        place.run(&format!("exec {start} --upstream-url \"$URL\" < {}", place.path("keys")));
    place.stand_in(
        "vault",
        &format!(
            "[ \"$*\" = 'kv get -field=key secret/openai' ] && printf %s \"$(cat {})\"",
            place.path("key")
        ),
    );
    // systemd writes `$` as `$$`.
    let write = value(writer, "ExecStart").replace("$$", "$");
    for key in [marker_key(), marker_key(), marker_key()] {
        place.set_key(&key);
        let mut writer = place.run(&format!("{write} >> {}", place.path("keys")));
        assert!(end_of(&mut writer.0).success());
        place.expect(&key);
    }
    let mode = fs::metadata(place.folder.file("keys")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
