//! Tests how the relay shuts down: signals, `--grace`, and its messages.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::lifecycle::{Folder, SHUTDOWN, halfway, idle};
use super::support::port::free_port;
use super::support::relay::{Starter, emulated, end_of, ends};
use super::support::{End, Relay, Upstream, comes, needs_root, ok, pace, post, quiet, wait_for};

const SECOND: Duration = Duration::from_secs(1);

/// The line about the end, without the program's name.
fn said(relay: &Relay, start: &str) -> String {
    let line = relay.line_with(&format!("codex-responses-api-proxy {start}: "));
    line.split_once(": ").unwrap().1.to_owned()
}

#[test]
fn exchanges_under_way_are_finished_before_it_ends() {
    for how in ["SIGTERM", "SIGINT", "GET /shutdown"] {
        let (_upstream, mut relay, mut client, go) =
            halfway(|url| Relay::to(url).args(["--http-shutdown", "--grace", "60"]).start());
        let mut idle = idle(&relay);
        match how {
            "SIGTERM" => relay.signal(libc::SIGTERM),
            "SIGINT" => relay.signal(libc::SIGINT),
            _ => assert_eq!(relay.connect().send(SHUTDOWN).response().status, 200),
        }
        // Connections on which nothing happens are ended at once, new ones not accepted.
        idle.expect_end(End::Fin);
        assert!(TcpStream::connect(("127.0.0.1", relay.port)).is_err());
        assert_eq!(
            said(&relay, "ending"),
            format!("{how}, 1 exchange under way, waiting for up to 60 s")
        );
        assert!(relay.is_running());
        go.signal();
        assert_eq!(client.take(2), b"lf");
        client.expect_end(End::Fin);
        assert_eq!(said(&relay, "ended"), format!("{how}, 0 exchanges cut off"));
        assert_eq!(relay.exit_code(), 0, "{how}");
    }
}

#[test]
fn the_port_and_the_file_are_free_for_the_next_relay_while_the_last_one_waits() {
    let folder = Folder::new("handover");
    let info = folder.file("info");
    let with_info =
        |starter: Starter| starter.args(["--server-info", info.to_str().unwrap(), "--grace", "60"]);
    let port = free_port().to_string();
    let starter = |url: &str| with_info(Relay::to(url)).args(["--port", &port]);
    let (_upstream, mut old, mut client, go) = halfway(|url| starter(url).start());
    old.signal(libc::SIGTERM);
    folder.wait_for("info", str::is_empty);
    assert!(super::support::quiet(&client.stream, Duration::ZERO), "it has waited by then");
    let new = with_info(Relay::bare()).args(["--port", &port]).start();
    let want = format!("{{\"port\":{port},\"pid\":{}}}\n", new.pid());
    assert_eq!(fs::read_to_string(&info).unwrap(), want);
    assert_eq!(new.connect().send(SHUTDOWN).response().code(), "route_not_allowed");
    go.signal();
    assert_eq!(client.take(2), b"lf");
    assert_eq!(old.exit_code(), 0);
    assert_eq!(fs::read_to_string(&info).unwrap(), want, "the file of the next relay stays");
}

#[test]
fn what_takes_longer_than_the_grace_is_cut_off_visibly() {
    let (one, two) = (", waiting for up to 1 s", ", waiting for up to 2 s");
    for (grace, least, waits) in [(None, 900, one), (Some("2"), 1900, two), (Some("0"), 0, "")] {
        let flag = grace.map(|grace| ["--grace", grace]).into_iter().flatten();
        let (_upstream, mut relay, mut client, _go) =
            halfway(|url| Relay::to(url).args(flag).start());
        let start = Instant::now();
        relay.signal(libc::SIGTERM);
        client.expect_end(End::Reset);
        assert_eq!(relay.exit_code(), 0);
        // Not much longer, on a busy machine too.
        let took = start.elapsed().as_millis();
        assert!((least..least + 5_000).contains(&took), "{grace:?}: {took} ms");
        assert_eq!(said(&relay, "ending"), format!("SIGTERM, 1 exchange under way{waits}"));
        assert_eq!(said(&relay, "ended"), "--grace, 1 exchange cut off");
    }
}

#[test]
fn with_nothing_under_way_it_ends_at_once_and_says_so() {
    let mut relay = Relay::bare().args(["--grace", "86400"]).start();
    let _idle = idle(&relay);
    let start = Instant::now();
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
    assert!(start.elapsed() < 10 * SECOND);
    assert_eq!(said(&relay, "ending"), "SIGTERM, 0 exchanges");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in [libc::SIGTERM, libc::SIGINT] {
        let (_upstream, mut relay, mut client, _go) =
            halfway(|url| Relay::to(url).args(["--grace", "60"]).start());
        let mut idle = idle(&relay);
        relay.signal(libc::SIGTERM);
        idle.expect_end(End::Fin);
        assert_eq!(said(&relay, "ending").split_once(',').unwrap().0, "SIGTERM");
        // Right behind the first it counts as the same.
        while quiet(&client.stream, Duration::from_millis(50)) {
            relay.signal(second);
        }
        client.expect_end(End::Reset);
        assert_eq!(relay.exit_code(), 0);
        let name = if second == libc::SIGTERM { "SIGTERM" } else { "SIGINT" };
        assert_eq!(said(&relay, "ended"), format!("{name}, 1 exchange cut off"));
    }
}

/// Ctrl-C reaches a launcher and the relay, and then the launcher passes it on.
#[test]
fn a_signal_that_comes_twice_within_a_moment_counts_once() {
    // On a busy machine the second one may take longer than that moment.
    let survives = (0..10).any(|_| {
        let (_upstream, mut relay, mut client, go) =
            halfway(|url| Relay::to(url).args(["--grace", "60"]).start());
        relay.signal(libc::SIGINT);
        assert!(said(&relay, "ending").starts_with("SIGINT, 1 exchange under way"));
        relay.signal(libc::SIGINT);
        let goes_on = quiet(&client.stream, SECOND / 2);
        go.signal();
        let (rest, _) = client.rest();
        assert_eq!(relay.exit_code(), 0);
        goes_on && rest == b"lf"
    });
    assert!(survives, "the exchange is always cut off");
}

#[test]
fn a_hang_up_and_a_connector_that_ends_do_not_cut_a_drain_short() {
    let (_main, name) = terminal();
    let (_upstream, mut relay, mut client, go) =
        halfway(|url| at(Relay::to(url).args(["--grace", "60"]), &name).start());
    relay.signal(libc::SIGTERM);
    said(&relay, "ending");
    // Longer than the moment in which no signal counts.
    pace(Duration::from_millis(400));
    relay.signal(libc::SIGHUP);
    if !emulated() {
        super::connector::signal(super::connector::connector(&relay), libc::SIGKILL);
    }
    assert!(quiet(&client.stream, SECOND / 4), "the exchange goes on");
    go.signal();
    assert_eq!(client.take(2), b"lf");
    relay.wait();
    assert_eq!(said(&relay, "ended"), "SIGTERM, 0 exchanges cut off");
}

#[test]
fn two_signals_in_one_batch_count_as_one() {
    let (_upstream, mut relay, mut client, go) =
        halfway(|url| Relay::to(url).args(["--grace", "60"]).start());
    relay.stop();
    relay.signal(libc::SIGTERM);
    relay.signal(libc::SIGINT);
    relay.signal(libc::SIGHUP);
    relay.signal(libc::SIGCONT);
    // The kernel hands over the lowest number first; SIGHUP is ignored without a terminal.
    let ending = said(&relay, "ending");
    assert!(ending.starts_with("SIGINT, 1 exchange under way"), "{ending}");
    go.signal();
    assert_eq!(client.take(2), b"lf");
    assert_eq!(relay.exit_code(), 0);

    // A hang-up is the least of them, whichever comes first.
    let (_main, name) = terminal();
    let mut relay = at(Relay::bare(), &name).start();
    relay.stop();
    relay.signal(libc::SIGHUP);
    relay.signal(libc::SIGTERM);
    relay.signal(libc::SIGCONT);
    assert_eq!(said(&relay, "ending"), "SIGTERM, 0 exchanges");
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_request_that_comes_together_with_the_signal_is_served() {
    let upstream = Upstream::answering(ok("fine"));
    let mut relay = Relay::to(&upstream.url()).args(["--grace", "60"]).start();
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "{}")).response().status, 200);
    relay.stop();
    relay.signal(libc::SIGTERM);
    client.send(post("", "{}"));
    relay.signal(libc::SIGCONT);
    assert_eq!(client.response().text(), "fine");
    assert_eq!(relay.exit_code(), 0);
}

/// Signals that must neither end the relay nor leave its file behind.
pub const HARMLESS: [i32; 9] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGQUIT,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGPIPE,
];

/// It still serves: it has had every occasion to end.
fn serves(relay: &mut Relay) {
    assert_eq!(relay.connect().send(SHUTDOWN).response().code(), "route_not_allowed");
    assert!(relay.is_running());
}

/// It has no controlling terminal.
fn without_terminal(command: &mut Command) {
    // SAFETY: setsid(2) is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        })
    };
}

#[test]
fn signals_that_mean_nothing_to_it_do_nothing() {
    let mut relay = Relay::bare().command(without_terminal).start();
    for signal in HARMLESS.into_iter().chain([libc::SIGHUP]) {
        relay.signal(signal);
        serves(&mut relay);
    }
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

/// It ignores these signals from the start.
fn ignoring(starter: Starter, signals: &'static [i32]) -> Starter {
    starter.command(move |command| {
        // SAFETY: signal(2) is safe to call between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for signal in signals {
                    libc::signal(*signal, libc::SIG_IGN);
                }
                Ok(())
            })
        };
    })
}

#[test]
fn signals_that_were_ignored_at_the_start_stay_ignored() {
    let mut relay = ignoring(Relay::bare(), &[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT]).start();
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        relay.signal(signal);
        serves(&mut relay);
    }
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_shell_that_puts_it_into_the_background_protects_it_from_its_own_interrupts() {
    let program = super::support::relay::program_in_shell();
    let folder = Folder::new("background");
    let (info, errors) = (folder.file("info"), folder.file("errors"));
    let script = format!(
        "printf sk-key | {program} --server-info {} 2> {} & echo $! ; wait",
        info.to_str().unwrap(),
        errors.to_str().unwrap()
    );
    let mut shell = Command::new("sh");
    super::support::relay::default_signals(&mut shell);
    let mut shell = shell
        .args(["-c", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    folder.wait_for("info", |text| text.ends_with('\n'));
    let text = fs::read_to_string(&info).unwrap();
    let number = |name: &str| -> i32 {
        let rest = text.split(name).nth(1).unwrap();
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    let (port, pid) = (number("\"port\":"), number("\"pid\":"));
    // Ctrl-C goes to the whole group; the shell is in wait(1) and ends.
    // SAFETY: no memory is involved; the group is the one made above.
    unsafe { libc::kill(-(shell.id() as i32), libc::SIGINT) };
    end_of(&mut shell);
    let mut client = super::support::Client::connect(port as u16);
    assert_eq!(client.send(SHUTDOWN).response().code(), "route_not_allowed");
    // SAFETY: as above; the relay has just responded.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    assert!(ends(pid as u32));
    let errors = fs::read_to_string(&errors).unwrap();
    assert!(errors.ends_with("ending: SIGTERM, 0 exchanges\n"), "{errors}");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn as_the_first_process_of_a_container_it_ends_by_signals() {
    if emulated() {
        return;
    }
    needs_root();
    // unshare(1) forks: its child, with --fork, is the first process.
    let mut relay = Relay::under(&["unshare", "--pid", "--fork", "--kill-child"]).start();
    let children = format!("/proc/{0}/task/{0}/children", relay.pid());
    let first: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    for signal in HARMLESS.into_iter().chain([libc::SIGTERM]) {
        // SAFETY: no memory is involved; the process is the relay.
        unsafe { libc::kill(first, signal) };
        if signal != libc::SIGTERM {
            serves(&mut relay);
        }
    }
    assert_eq!(said(&relay, "ending"), "SIGTERM, 0 exchanges");
    assert_eq!(relay.exit_code(), 0);
}

/// A terminal: the end that a terminal emulator holds, and the path of the other.
fn terminal() -> (std::fs::File, String) {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: plain system calls; the descriptor is new, and nothing else owns it.
    let main = unsafe {
        let fd = libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        assert!(fd >= 0 && libc::grantpt(fd) == 0 && libc::unlockpt(fd) == 0);
        std::fs::File::from_raw_fd(fd)
    };
    let mut name = [0; 64];
    // SAFETY: the C library writes at most so many bytes, a string among them.
    let name = unsafe {
        assert_eq!(libc::ptsname_r(main.as_raw_fd(), name.as_mut_ptr(), name.len()), 0);
        std::ffi::CStr::from_ptr(name.as_ptr()).to_str().unwrap().to_owned()
    };
    (main, name)
}

/// This terminal is its controlling terminal, and nothing else of it.
fn at(starter: Starter, terminal: &str) -> Starter {
    let path = std::ffi::CString::new(terminal).unwrap();
    starter.command(move |command| {
        // SAFETY: async-signal-safe calls on a string that outlives them.
        unsafe {
            command.pre_exec(move || {
                libc::setsid();
                let fd = libc::open(path.as_ptr(), libc::O_RDWR);
                libc::close(fd);
                if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            })
        };
    })
}

#[test]
fn a_terminal_that_hangs_up_ends_it() {
    let (main, name) = terminal();
    let mut relay = at(Relay::bare(), &name).start();
    drop(main);
    assert_eq!(said(&relay, "ending"), "SIGHUP, 0 exchanges");
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_terminal_that_hangs_up_leaves_a_relay_alone_that_ignored_hang_ups_at_its_start() {
    // As nohup(1) starts it.
    let (main, name) = terminal();
    let mut relay = ignoring(at(Relay::bare(), &name), &[libc::SIGHUP]).start();
    drop(main);
    relay.signal(libc::SIGHUP);
    serves(&mut relay);
    relay.signal(libc::SIGTERM);
    assert_eq!(said(&relay, "ending"), "SIGTERM, 0 exchanges");
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_terminal_that_hangs_up_leaves_a_detached_relay_alone() {
    let (main, name) = terminal();
    let folder = Folder::new("hangup");
    let info = folder.file("info");
    let starter = Relay::bare().args(["--detach", "--server-info", info.to_str().unwrap()]);
    let (code, _, errors) = at(starter, &name).run(b"sk-key\n");
    assert_eq!(code, 0, "{errors}");
    drop(main);
    let text = fs::read_to_string(&info).unwrap();
    let pid: i32 = text.trim_end_matches("}\n").rsplit(':').next().unwrap().parse().unwrap();
    // SAFETY: no memory is involved; the process is the relay.
    unsafe { libc::kill(pid, libc::SIGHUP) };
    let port = errors.lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let mut client = super::support::Client::connect(port);
    assert_eq!(client.send(SHUTDOWN).response().code(), "route_not_allowed");
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    assert!(ends(pid as u32));
    assert_eq!(fs::read(&info).unwrap(), b"");
}

#[test]
fn a_stderr_that_is_not_read_does_not_keep_it_from_ending() {
    use std::os::fd::AsRawFd;
    let (reader, writer) = std::io::pipe().unwrap();
    // SAFETY: no memory is involved.
    assert!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) } >= 0);
    let folder = Folder::new("full");
    let info = folder.file("info");
    let mut relay = Relay::bare()
        .args(["--server-info", info.to_str().unwrap()])
        .spawn(Stdio::from(writer.try_clone().unwrap()));
    folder.wait_for("info", |text| text.ends_with('\n'));
    wait_for(|| comes(&reader, libc::POLLIN, SECOND));
    // Another writer fills the pipe.
    // SAFETY: the kernel reads memory that outlives the calls.
    unsafe {
        libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK);
        while libc::write(writer.as_raw_fd(), [b'x'; 1].as_ptr().cast(), 1) == 1 {}
        libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, 0);
    }
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_connection_that_is_refused_at_the_end_is_refused_by_the_kernel() {
    let (_upstream, relay, client, _go) =
        halfway(|url| Relay::to(url).args(["--grace", "60"]).start());
    relay.signal(libc::SIGTERM);
    said(&relay, "ending");
    let error = TcpStream::connect(("127.0.0.1", relay.port)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(quiet(&client.stream, SECOND / 4), "the exchange goes on");
}

/// How often a process has waited for something; also for being continued.
fn switches(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).unwrap();
    line.rsplit('\t').next().unwrap().parse().unwrap()
}

/// Waits until a process is stopped by a signal.
fn wait_until_stopped(pid: u32) {
    wait_for(|| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
    });
}

/// Types this and waits until the terminal shows that.
fn shows(main: &mut std::fs::File, text: &str) {
    assert!(super::support::read_until(main, text).is_some());
}

/// The command leads a new session, whose terminal is its stdin.
fn leads_session_of_terminal(command: &mut Command) {
    // SAFETY: async-signal-safe calls; fd 0 is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
}

#[test]
fn in_the_background_of_a_terminal_it_waits_with_echo_on() {
    use super::key::has_echo;
    use std::io::Write;
    let (mut main, name) = terminal();
    let folder = Folder::new("jobs");
    let [info, pid] = ["info", "pid"].map(|name| folder.file(name));
    // A FIFO for each step: the writer of the last one may not have closed it yet.
    let steps = [1, 2, 3].map(|step| folder.file(&step.to_string()));
    for step in &steps {
        let path = std::ffi::CString::new(step.to_str().unwrap()).unwrap();
        // SAFETY: the path is a valid C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }
    let [first, second, third] = [0, 1, 2].map(|step| steps[step].display());
    let script = format!(
        "set -m; {} --server-info {} & echo $! > {}; read x < {first}; fg %1; \
         read x < {second}; bg %1; read x < {third}; fg %1",
        super::support::relay::program_in_shell(),
        info.display(),
        pid.display(),
    );
    let tty = std::fs::File::options().read(true).write(true).open(&name).unwrap();
    let mut shell = Command::new("sh");
    let [input, output, error] = [0; 3].map(|_| Stdio::from(tty.try_clone().unwrap()));
    shell.args(["-c", &script]).stdin(input).stdout(output).stderr(error);
    leads_session_of_terminal(&mut shell);
    let mut shell = shell.spawn().unwrap();
    folder.wait_for("pid", |text| text.ends_with('\n'));
    let pid: u32 = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    wait_until_stopped(pid);
    assert!(has_echo(&main), "the shell's user types blindly");
    fs::write(&steps[0], "\n").unwrap();
    shows(&mut main, "API key");
    wait_for(|| !has_echo(&main));
    // Ctrl-Z; the shell lets it go on in the background, where it stops again.
    main.write_all(&[26]).unwrap();
    wait_for(|| has_echo(&main));
    wait_until_stopped(pid);
    let before = switches(pid);
    fs::write(&steps[1], "\n").unwrap();
    wait_for(|| switches(pid) > before);
    // A shell that continues it while it is about to stop would wait for ever.
    wait_until_stopped(pid);
    fs::write(&steps[2], "\n").unwrap();
    shows(&mut main, "API key");
    wait_for(|| !has_echo(&main));
    main.write_all(b"sk-key\n").unwrap();
    folder.wait_for("info", |text| text.ends_with('\n'));
    assert!(has_echo(&main));
    // SAFETY: no memory is involved; the process is the relay, which has just started to listen.
    unsafe { libc::kill(pid as i32, libc::SIGTERM) };
    end_of(&mut shell);
}

#[test]
fn in_the_background_of_a_terminal_that_it_cannot_wait_for_it_says_so() {
    let (main, name) = terminal();
    let tty = std::fs::File::options().read(true).write(true).open(&name).unwrap();
    // The leader of the session is in the foreground; its child is not, and ignores SIGTTIN.
    let script =
        format!("trap '' TTIN; set -m; {} & wait $!", super::support::relay::program_in_shell());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stdin(tty.try_clone().unwrap()).stdout(tty.try_clone().unwrap());
    leads_session_of_terminal(&mut shell);
    let child = shell.stderr(Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("the terminal belongs to another job; start the relay in"), "{errors}");
    assert_eq!(output.status.code(), Some(1));
    assert!(super::key::has_echo(&main));
}
