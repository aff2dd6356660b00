//! Tests `--server-info`: where the line is written, and which files are never touched.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;

use super::lifecycle::Folder;
use super::support::relay::{Starter, emulated, inherit};
use super::support::skip::is_root;
use super::support::{DEADLINE, Relay, comes, needs_root, wait_for};

const OWNER: u32 = 65_533;
const RUNNER: u32 = 65_532;

fn with_info(starter: Starter, path: &Path) -> Starter {
    starter.args(["--server-info", path.to_str().unwrap()])
}

fn line(relay: &Relay) -> String {
    format!("{{\"port\":{},\"pid\":{}}}\n", relay.port, relay.pid())
}

fn end(mut relay: Relay) {
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A folder of another user in which a file waits that everybody may write to.
fn prepared(name: &str, text: &str) -> Folder {
    let folder = Folder::new(name);
    let info = folder.file("info");
    fs::write(&info, text).unwrap();
    set_mode(&info, 0o666);
    chown(&info, Some(OWNER), None).unwrap();
    set_mode(&folder.0, 0o755);
    chown(&folder.0, Some(OWNER), None).unwrap();
    folder
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_that_may_be_written_but_not_replaced_is_written_in_place_and_emptied() {
    needs_root();
    // A file that cannot be read is written to as well. It is not known what it holds at the end.
    let folder = prepared("write-only", "");
    let info = folder.file("info");
    set_mode(&info, 0o222);
    let relay = with_info(Relay::bare(), &info).run_by(RUNNER).start();
    assert_eq!(fs::read_to_string(&info).unwrap(), line(&relay));
    end(relay);
    for user in [None, Some(RUNNER)] {
        let folder =
            prepared("in-place", "what stood there before, longer than the line will be\n");
        let info = folder.file("info");
        let before = fs::metadata(&info).unwrap();
        let starter = with_info(Relay::bare(), &info);
        let relay = match user {
            Some(user) => starter.run_by(user).start(),
            None => starter.start(),
        };
        let now = fs::metadata(&info).unwrap();
        assert_eq!((now.ino(), now.mode(), now.uid()), (before.ino(), before.mode(), OWNER));
        assert_eq!(fs::read_to_string(&info).unwrap(), line(&relay));
        end(relay);
        assert_eq!(fs::read(&info).unwrap(), b"");
        assert_eq!(fs::metadata(&info).unwrap().ino(), before.ino());
        assert_eq!(
            fs::read_dir(&folder.0).unwrap().count(),
            1,
            "another file is left in the folder"
        );
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn in_place_it_is_emptied_though_the_relay_was_killed() {
    needs_root();
    if emulated() {
        return;
    }
    for user in [None, Some(RUNNER)] {
        let folder = prepared("in-place-killed", "");
        let info = folder.file("info");
        let starter = with_info(Relay::bare(), &info);
        let mut relay = match user {
            Some(user) => starter.run_by(user).start(),
            None => starter.start(),
        };
        assert_eq!(fs::read_to_string(&info).unwrap(), line(&relay));
        relay.signal(libc::SIGKILL);
        assert_eq!(relay.exit_code(), -libc::SIGKILL);
        wait_for(|| fs::read(&info).unwrap().is_empty());
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn in_place_a_relay_that_ends_leaves_its_successors_line_alone() {
    needs_root();
    let folder = prepared("successor", "");
    let info = folder.file("info");
    let first = with_info(Relay::bare(), &info).start();
    succeeds(first, &info);
}

/// A second relay writes its line into the file of the first one, which ends before it.
fn succeeds(first: Relay, info: &Path) {
    let inode = fs::metadata(info).unwrap().ino();
    let second = with_info(Relay::bare(), info).start();
    assert_eq!(fs::metadata(info).unwrap().ino(), inode, "not in place");
    end(first);
    assert_eq!(fs::read_to_string(info).unwrap(), line(&second));
    end(second);
    assert_eq!(fs::read(info).unwrap(), b"");
}

/// A program that reads the file at any moment finds the old text or the whole line, never nothing.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn in_place_the_line_is_written_before_the_rest_is_cut_off() {
    needs_root();
    let folder = prepared("order", &"x".repeat(100));
    let info = folder.file("info");
    // Without ftruncate(2) only the first of the two steps is done.
    let starter = Relay::bare().refusing(libc::SYS_ftruncate, None, libc::EIO);
    let (code, _, err) = with_info(starter, &info).run(b"key\n");
    assert_eq!(code, 1, "{err}");
    let text = fs::read_to_string(&info).unwrap();
    assert!(text.starts_with("{\"port\":") && text.contains("}\nxxx"), "{text}");
}

/// The file belongs to the first relay's user, so the second one, of root, writes in place.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_relay_that_ends_leaves_the_line_alone_that_its_successor_wrote_into_its_file() {
    needs_root();
    let folder = Folder::new("own-file");
    chown(&folder.0, Some(OWNER), None).unwrap();
    let info = folder.file("info");
    let first = with_info(Relay::bare(), &info).run_by(OWNER).start();
    assert_eq!(fs::read_to_string(&info).unwrap(), line(&first));
    succeeds(first, &info);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_that_is_a_mount_of_its_own_is_written_in_place() {
    needs_root();
    let folder = Folder::new("mount");
    let (info, shared) = (folder.file("info"), folder.file("shared"));
    fs::write(&info, "").unwrap();
    fs::write(&shared, "").unwrap();
    let mounting = "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"";
    let tool = ["unshare", "--mount", "sh", "-ec", mounting];
    let paths = [shared.to_str().unwrap(), info.to_str().unwrap()];
    let relay = with_info(Relay::under(&[&tool[..], &paths].concat()), &info).start();
    assert_eq!(fs::read_to_string(&shared).unwrap(), line(&relay));
    assert_eq!(fs::read(&info).unwrap(), b"", "the file below the mount");
    end(relay);
    assert_eq!(fs::read(&shared).unwrap(), b"");
}

/// As in a container whose root is read-only, and whose server-info file is a mount.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_in_a_folder_that_is_read_only_is_written_in_place() {
    needs_root();
    let (folder, other) = (Folder::new("read-only"), Folder::new("writable"));
    let (info, shared) = (folder.file("info"), other.file("shared"));
    fs::write(&info, "").unwrap();
    fs::write(&shared, "").unwrap();
    let mounting = "mount --bind \"$0\" \"$0\"; mount -o remount,bind,ro \"$0\"; \
                    mount --bind \"$1\" \"$2\"; shift 2; exec \"$@\"";
    let tool = ["unshare", "--mount", "sh", "-ec", mounting];
    let paths = [&folder.0, &shared, &info].map(|path| path.to_str().unwrap());
    let relay = with_info(Relay::under(&[&tool[..], &paths].concat()), &info).start();
    assert_eq!(fs::read_to_string(&shared).unwrap(), line(&relay));
    end(relay);
    assert_eq!(fs::read(&shared).unwrap(), b"");
}

/// It becomes known only when the new file is to be renamed that this is impossible.
#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_that_is_a_mount_is_emptied_though_the_relay_was_killed() {
    needs_root();
    if emulated() {
        return;
    }
    let folder = Folder::new("mount-killed");
    let (info, shared) = (folder.file("info"), folder.file("shared"));
    fs::write(&info, "").unwrap();
    fs::write(&shared, "").unwrap();
    let mounting = "mount --bind \"$0\" \"$1\"; shift; exec \"$@\"";
    let tool = ["unshare", "--mount", "sh", "-ec", mounting];
    let paths = [shared.to_str().unwrap(), info.to_str().unwrap()];
    let mut relay = with_info(Relay::under(&[&tool[..], &paths].concat()), &info).start();
    assert_eq!(fs::read_to_string(&shared).unwrap(), line(&relay));
    relay.signal(libc::SIGKILL);
    assert_eq!(relay.exit_code(), -libc::SIGKILL);
    wait_for(|| fs::read(&shared).unwrap().is_empty());
    assert_eq!(fs::read(&info).unwrap(), b"", "the file below the mount");
}

#[test]
fn a_descriptor_that_the_caller_had_open_is_refused_and_never_another_under_its_number() {
    let folder = Folder::new("descriptor");
    let file = File::create(folder.file("info")).unwrap();
    let (number, path) = (file.as_raw_fd(), format!("/dev/fd/{}", file.as_raw_fd()));
    let few: Vec<String> = (3..12).chain([0]).map(|number| format!("/dev/fd/{number}")).collect();
    let own = format!("/proc/self/fd/{number}");
    let stdin = "/dev/stdin".to_owned();
    // Other users than root cannot damage /dev.
    let tool = if is_root() { OWN_DEVICES } else { &[] };
    for path in few.iter().chain([&path, &own, &stdin]) {
        let starter = with_info(Relay::under(tool), Path::new(path));
        let starter = starter.command(|command| inherit(command, file.as_raw_fd()));
        let (code, _, err) = starter.run(b"key\n");
        assert_eq!(code, 1, "{path}: {err}");
        assert!(err.contains("all descriptors but stdout and stderr are closed"), "{path}: {err}");
    }
    assert_eq!(file.metadata().unwrap().len(), 0);
}

/// A /dev of its own: what is wrong with the program must not break the machine.
const OWN_DEVICES: &[&str] = &[
    "unshare",
    "--mount",
    "sh",
    "-ec",
    "mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod /dev/disk b 7 99; \
     ln -s /proc/self/fd /dev/fd; ln -s /proc/self/fd/0 /dev/stdin; \
     ln -s /proc/self/fd/1 /dev/stdout; ln -s /proc/self/fd/2 /dev/stderr; exec \"$0\" \"$@\"",
];

#[test]
fn with_detach_standard_output_is_refused() {
    // Other users than root cannot damage /dev.
    let tool = if is_root() { OWN_DEVICES } else { &[] };
    for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let starter = Relay::under(tool).args(["--detach"]);
        let (code, _, err) = with_info(starter, Path::new(path)).run(b"key\n");
        assert_eq!(code, 1, "{path}: {err}");
        assert!(err.contains("stdout is closed by --detach"), "{path}: {err}");
    }
}

#[test]
fn a_fifo_gets_the_line_and_one_without_a_reader_holds_nothing_up() {
    let folder = Folder::new("fifo");
    let fifo = folder.file("fifo");
    let name = CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the name is a valid C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let (code, _, err) = with_info(Relay::bare(), &fifo).run(b"key\n");
    assert_eq!(code, 1);
    assert!(
        err.contains("cannot write --server-info") && err.contains("no process reads it"),
        "{err}"
    );
    // With both ends here, the line is there to be read once the relay listens.
    let reader = File::options().read(true).write(true).open(&fifo).unwrap();
    let relay = with_info(Relay::bare(), &fifo).start();
    assert!(comes(&reader, libc::POLLIN, DEADLINE));
    let mut text = String::new();
    BufReader::new(reader).read_line(&mut text).unwrap();
    assert_eq!(text, line(&relay));
    end(relay);
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_device_and_standard_output_are_written_to_and_never_replaced() {
    needs_root();
    for path in ["/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let mut relay = with_info(Relay::under(OWN_DEVICES), Path::new(path)).start();
        let root = format!("/proc/{}/root", relay.pid());
        let kind = |name: &str| fs::symlink_metadata(format!("{root}{name}")).unwrap().file_type();
        assert!(kind("/dev/null").is_char_device() && kind("/dev/stdout").is_symlink(), "{path}");
        let want = line(&relay);
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        assert_eq!(output.contains(&want), path != "/dev/null", "{path}: {output}");
    }
    let (code, _, err) = with_info(Relay::under(OWN_DEVICES), Path::new("/dev/disk")).run(b"key\n");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("it is a block device"), "{err}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_log_on_standard_output_or_error_gets_the_line_at_its_end_and_a_socket_gets_it_too() {
    needs_root();
    let folder = Folder::new("log");
    let log = folder.file("log");
    let before = "what the log held before, and keeps\n";
    for path in ["/dev/stdout", "/dev/fd/1", "/dev/stderr", "/proc/self/fd/2"] {
        fs::write(&log, before).unwrap();
        let stream = File::options().append(true).open(&log).unwrap();
        let starter = with_info(Relay::under(OWN_DEVICES), Path::new(path));
        let number = if path.ends_with("stderr") || path.ends_with('2') { 2 } else { 1 };
        let starter = starter.command(|command| give(command, stream.as_raw_fd(), number));
        let mut relay = starter.spawn(std::process::Stdio::piped());
        wait_for(|| fs::read_to_string(&log).unwrap().contains("\"pid\":"));
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.starts_with(&format!("{before}{{\"port\":")), "{path}: {text}");
        assert!(text.contains(&format!(",\"pid\":{}}}\n", relay.pid())), "{path}: {text}");
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    let starter = with_info(Relay::under(OWN_DEVICES), Path::new("/dev/stdout"));
    let relay = starter.command(|command| give(command, theirs.as_raw_fd(), 1)).start();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut text = String::new();
    BufReader::new(ours).read_line(&mut text).unwrap();
    assert_eq!(text, line(&relay));
    end(relay);
}

/// The relay has this descriptor of the test under another number.
fn give(command: &mut std::process::Command, fd: i32, number: i32) {
    let dup = move || {
        // SAFETY: dup2(2) is safe to call between fork and exec.
        unsafe { libc::dup2(fd, number) };
        Ok(())
    };
    // SAFETY: the closure does no more than that.
    unsafe { command.pre_exec(dup) };
}

#[test]
fn folders_that_are_missing_are_for_everyone_whatever_the_umask() {
    let folder = Folder::new("umask");
    let info = folder.file("made/on/info");
    let starter = with_info(Relay::bare(), &info).command(|command| {
        let umask = || {
            // SAFETY: sets a number.
            unsafe { libc::umask(0o077) };
            Ok(())
        };
        // SAFETY: between fork and exec it does no more than that.
        unsafe { command.pre_exec(umask) };
    });
    let relay = starter.start();
    for (name, want) in [("made", 0o755), ("made/on", 0o755), ("made/on/info", 0o644)] {
        let mode = fs::metadata(folder.file(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode, want, "{name}");
    }
    end(relay);
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn nothing_is_made_where_another_user_can_change_the_way() {
    needs_root();
    let folder = Folder::new("foreign");
    let (foreign, mine) = (folder.file("foreign"), folder.file("mine"));
    fs::create_dir(&foreign).unwrap();
    fs::create_dir(&mine).unwrap();
    chown(&foreign, Some(OWNER), None).unwrap();
    let link = folder.file("link");
    symlink(&mine, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(OWNER), None).unwrap();
    for path in ["foreign/info", "foreign/made/info", "link/info", "link/made/info"] {
        let (code, _, err) = with_info(Relay::bare(), &folder.file(path)).run(b"key\n");
        assert_eq!(code, 1, "{path}");
        assert!(err.contains("another user can change the path to it"), "{err}");
        assert!(err.contains("create the file first"), "{err}");
    }
    for place in [&foreign, &mine] {
        assert_eq!(fs::read_dir(place).unwrap().count(), 0, "something was made");
    }
    let info = foreign.join("info");
    // Nor is a file that a link there leads to.
    fs::write(mine.join("precious"), "precious").unwrap();
    symlink(mine.join("precious"), &info).unwrap();
    let (code, ..) = with_info(Relay::bare(), &info).run(b"key\n");
    assert_eq!(code, 1);
    assert_eq!(fs::read_to_string(mine.join("precious")).unwrap(), "precious");
    fs::remove_file(&info).unwrap();
    // A file with a second name is not written to.
    fs::write(folder.file("precious"), "precious").unwrap();
    fs::hard_link(folder.file("precious"), &info).unwrap();
    let (code, ..) = with_info(Relay::bare(), &info).run(b"key\n");
    assert_eq!(code, 1);
    assert_eq!(fs::read_to_string(&info).unwrap(), "precious");
    // A link of root's is followed, as /var/run is.
    let link = folder.file("trusted");
    symlink(&mine, &link).unwrap();
    end(with_info(Relay::bare(), &link.join("info")).start());
    assert!(mine.join("info").exists());
}

#[test]
fn a_folder_in_which_everyone_can_replace_the_file_is_warned_about() {
    let warning = "every local user can put another file there";
    for (mode, below, want) in
        [(0o777, false, true), (0o777, true, true), (0o1777, false, false), (0o775, false, false)]
    {
        let folder = Folder::new("everyone");
        set_mode(&folder.0, mode);
        let info = folder.file(if below { "below/info" } else { "info" });
        let mut relay = with_info(Relay::bare(), &info).start();
        assert_eq!(fs::read_to_string(&info).unwrap(), line(&relay));
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        assert_eq!(output.contains(warning), want, "{mode:o}, in a folder below: {below}");
    }
}

#[test]
fn a_start_that_fails_at_its_last_steps_never_tells_of_a_port() {
    if emulated() {
        return;
    }
    let folder = Folder::new("unconfined");
    let info = folder.file("info");
    // The resolver's thread confines itself first, and cannot.
    let starter = Relay::bare().args(["--upstream-url", "https://upstream.test/"]).refusing(
        libc::SYS_landlock_restrict_self,
        None,
        libc::EPERM,
    );
    let (code, _, err) = with_info(starter, &info).run(b"key\n");
    if code == 0 {
        super::support::skipped("this kernel has no Landlock");
        return;
    }
    assert_eq!(code, 11, "{err}");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0, "a file was left");
}
