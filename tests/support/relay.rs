//! The relay under test, as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, Once, OnceLock};

use super::skip::{is_root, remove_at_exit, skipped};
use super::watchdog::watch;
use super::{Client, DEADLINE, certs, comes, wait_for};

/// The path of the program under test: the program that was built with the tests, or
/// `RELAY_BINARY`, for example a static one.
pub fn binary() -> String {
    if let Ok(binary) = std::env::var("RELAY_BINARY") {
        return binary;
    }
    match option_env!("CARGO_BIN_EXE_codex-responses-api-proxy") {
        Some(binary) => binary.to_owned(),
        // For the benches cargo builds only the library.
        None => {
            let bench = std::env::current_exe().unwrap();
            let program = bench.parent().unwrap().with_file_name("codex-responses-api-proxy");
            assert!(program.exists(), "build the program first: cargo build --release");
            program.to_str().unwrap().to_owned()
        }
    }
}

/// The emulator that runs the program (`RELAY_RUNNER`), if its architecture is another one.
fn emulator() -> Option<String> {
    std::env::var("RELAY_RUNNER").ok()
}

/// What runs the relay: the program, behind the emulator if there is one.
fn program_words() -> Vec<String> {
    emulator().into_iter().chain([binary()]).collect()
}

/// What runs the relay, for a script of a shell.
pub fn program_in_shell() -> String {
    program_words().join(" ")
}

/// An emulator runs the relay, so /proc shows the threads, memory and environment of the emulator.
/// In that case this reports that the caller skips the checks of these.
pub fn emulated() -> bool {
    let emulated = emulator().is_some();
    if emulated {
        skipped("from outside, the emulator is seen and not the relay");
    }
    emulated
}

/// The command that starts the relay, with an empty environment.
pub fn program() -> Command {
    Relay::bare().command
}

/// A key that no test prints. Each key is random, so that a stray copy of an earlier one is not
/// taken for it.
pub fn marker_key() -> String {
    format!("sk-MARKER_{}", random_hex())
}

/// 48 random hexadecimal digits.
pub fn random_hex() -> String {
    let mut random = [0; 24];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A relay that has been started. Drop kills a relay that has not been waited for, and fails the
/// test if the output contains the key.
pub struct Relay {
    child: Child,
    pub port: u16,
    pub key: String,
    lines: Receiver<String>,
    output: Arc<Mutex<Vec<u8>>>,
    /// Disconnects when all output of the relay has been read.
    printing: Receiver<()>,
    status: Option<ExitStatus>,
}

/// The command line and the key of a relay that has not been started.
pub struct Starter {
    command: Command,
    key: String,
}

/// Resets SIGHUP, SIGINT and SIGQUIT to their defaults. Tests in the background of a shell, or
/// under nohup, inherit them as ignored. Elsewhere nothing is done between fork and exec: without
/// such a closure no copy of this large process is made for each child.
pub fn default_signals(command: &mut Command) {
    let is_ignored = |signal: &i32| {
        // SAFETY: plain memory, which the kernel fills.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(*signal, std::ptr::null(), &mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    };
    if ![libc::SIGHUP, libc::SIGINT, libc::SIGQUIT].iter().any(is_ignored) {
        return;
    }
    // SAFETY: between fork and exec the closure calls only async-signal-safe functions.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

impl Relay {
    /// A relay with the upstream at this URL. The relay trusts the CA of the tests.
    pub fn to(url: &str) -> Starter {
        Relay::bare().upstream(url)
    }

    /// A relay without arguments, in an empty environment and with a random key.
    pub fn bare() -> Starter {
        Relay::under(&[])
    }

    /// A relay that this tool runs, for example a tracer.
    pub fn under(tool: &[&str]) -> Starter {
        watch();
        raise_open_files();
        let program = program_words();
        let words: Vec<&str> =
            tool.iter().copied().chain(program.iter().map(String::as_str)).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_clear();
        default_signals(&mut command);
        Starter { command, key: marker_key() }
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.port)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Stops the relay and waits until it has stopped. SIGCONT continues it.
    pub fn stop(&self) {
        self.signal(libc::SIGSTOP);
        wait_for(|| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
            stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
        });
    }

    /// The next line on stderr.
    pub fn line(&self) -> String {
        self.lines.recv_timeout(DEADLINE).expect("a line on stderr")
    }

    /// The next line on stderr that contains this text. Lines before that are dropped.
    pub fn line_with(&self, text: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The first line with this beginning in the output so far. The lines of the `message` of a
    /// JSON event count as well.
    pub fn output_line(&self, start: &str) -> String {
        let output = String::from_utf8(self.output()).unwrap();
        let output = output.replace("\"message\":\"", "\n").replace("\\n", "\n");
        output.lines().find(|line| line.starts_with(start)).unwrap().to_owned()
    }

    /// The output so far, of stdout and stderr.
    pub fn output(&self) -> Vec<u8> {
        self.output.lock().unwrap().clone()
    }

    /// Waits until the relay has ended and all its output has been read.
    pub fn wait(&mut self) -> ExitStatus {
        let status = end_of(&mut self.child);
        let _ = self.printing.recv_timeout(DEADLINE);
        self.status = Some(status);
        status
    }

    /// Waits for the end. Returns the exit code, or the negated signal that ended the relay.
    pub fn exit_code(&mut self) -> i32 {
        let status = self.wait();
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Waits until it listens.
    pub fn listening(self) -> Relay {
        let mut relay = self;
        let line = relay.line();
        if line.starts_with('{') {
            // With --access-log the event `start` is one line of JSON.
            relay.port = port_of_start(&line);
            return relay;
        }
        let port = line.strip_prefix("codex-responses-api-proxy listening on 127.0.0.1:");
        relay.port = port.unwrap_or_else(|| panic!("not listening: {line}")).parse().unwrap();
        for start in ["relay: ", "clients: ", "protections: "] {
            let line = relay.line();
            assert!(line.starts_with(start), "{line}");
        }
        relay
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A number in /proc/PID/status; sizes are in KiB.
    pub fn memory(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.status.is_none() {
            // When a tracer is killed, the processes that it traces continue.
            let others = descendants(self.child.id());
            let _ = self.child.kill();
            for pid in others {
                // SAFETY: no memory is involved.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            }
            let _ = self.child.wait();
            let _ = self.printing.recv_timeout(DEADLINE);
        }
        let output = self.output.lock().unwrap();
        let leaked = output.windows(self.key.len()).any(|window| window == self.key.as_bytes());
        if !std::thread::panicking() {
            assert!(!leaked, "the relay's output contains the key");
        }
    }
}

impl Starter {
    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Starter {
        self.command.args(args);
        self
    }

    /// Sets the upstream to this URL. The relay trusts the CA of the tests.
    pub fn upstream(self, url: &str) -> Starter {
        self.args(["--upstream-url", url, "--ca-file", &certs().ca_file()])
    }

    pub fn env(mut self, name: &str, value: &str) -> Starter {
        self.command.env(name, value);
        self
    }

    /// Changes the command by a function of the caller.
    pub fn command(mut self, prepare: impl FnOnce(&mut Command)) -> Starter {
        prepare(&mut self.command);
        self
    }

    /// Makes the kernel refuse this system call with this error, as old kernels and some containers
    /// do. If `first` is set, only calls with this first argument are refused.
    pub fn refusing(self, call: i64, first: Option<i32>, error: i32) -> Starter {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let filter = move || {
            let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
            // `struct seccomp_data` has the number of the call at 0 and the first argument at 16.
            let (at, value) = first.map_or((0, call as u32), |first| (16, first as u32));
            let mut steps = [
                step(LOAD, 0, 0),
                step(IS, 3, call as u32),
                step(LOAD, 0, at),
                step(IS, 1, value),
                step(RETURN, 0, libc::SECCOMP_RET_ERRNO | error as u32),
                step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
            ];
            let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
            // SAFETY: plain system calls on memory that outlives them.
            let done = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) == 0
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        self.command(|command| {
            // SAFETY: between fork and exec the filter makes only the system calls above.
            unsafe { command.pre_exec(filter) };
        })
    }

    /// Sets the limits on open files. The relay runs without root's privileges, so that it cannot
    /// raise them.
    pub fn open_files(mut self, limit: u64) -> Starter {
        self = self.reachable();
        let lower = move || {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            // SAFETY: async-signal-safe calls on memory that outlives them.
            let done = unsafe {
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
                    && (libc::geteuid() != 0 || libc::setuid(65_534) == 0)
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec the closure makes only the system calls above.
        unsafe { self.command.pre_exec(lower) };
        self
    }

    /// Sets the limit on locked memory. The relay runs without root's privileges, so that the limit
    /// counts.
    pub fn locked_memory(mut self, kib: u64) -> Starter {
        self = self.reachable();
        let lower = move || {
            let limit = libc::rlimit { rlim_cur: kib * 1024, rlim_max: kib * 1024 };
            // SAFETY: async-signal-safe calls on memory that outlives them.
            let done = unsafe {
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) == 0
                    && (libc::geteuid() != 0 || libc::setuid(65_534) == 0)
            };
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: between fork and exec the closure makes only the system calls above.
        unsafe { self.command.pre_exec(lower) };
        self
    }

    /// Runs the relay as another user. Requires root.
    pub fn run_by(self, uid: u32) -> Starter {
        self.reachable().command(|command| {
            command.uid(uid).gid(uid);
        })
    }

    /// If root runs the tests without an emulator, replaces the program by [`reachable_binary`].
    fn reachable(mut self) -> Starter {
        if emulator().is_none() && is_root() {
            let mut command = Command::new(reachable_binary());
            default_signals(&mut command);
            let old = std::mem::replace(&mut self.command, command);
            self.command.args(old.get_args()).env_clear();
            self.command.envs(old.get_envs().filter_map(|(name, value)| Some((name, value?))));
        }
        self
    }

    /// Replaces the random key.
    pub fn key(mut self, key: &str) -> Starter {
        self.key = key.to_owned();
        self
    }

    /// Starts the relay and waits until it listens.
    pub fn start(self) -> Relay {
        self.spawn(Stdio::piped()).listening()
    }

    /// Starts the relay, writes the key and a newline to its stdin, which stays open, and waits
    /// until it listens.
    pub fn start_with_stdin(mut self) -> (Relay, ChildStdin) {
        let (relay, mut stdin) = self.spawn_without_key(Stdio::piped());
        writeln!(stdin, "{}", relay.key).unwrap();
        (relay.listening(), stdin)
    }

    /// Starts the relay with this as stdin, and waits until it listens.
    pub fn start_on(mut self, stdin: impl Into<Stdio>) -> Relay {
        self.spawn_on(stdin.into(), Stdio::piped()).0.listening()
    }

    /// Starts the relay without waiting. The key is written to its stdin.
    pub fn spawn(mut self, stderr: Stdio) -> Relay {
        let key = self.key.clone();
        let (mut relay, mut stdin) = self.spawn_without_key(stderr);
        // The relay may end before it reads.
        let _ = writeln!(stdin, "{key}");
        relay.key = key;
        relay
    }

    /// Starts the relay with an open stdin to which nothing has been written.
    pub fn spawn_without_key(&mut self, stderr: Stdio) -> (Relay, ChildStdin) {
        let (relay, stdin) = self.spawn_on(Stdio::piped(), stderr);
        (relay, stdin.unwrap())
    }

    /// Starts the relay with this as stdin.
    pub fn spawn_on(&mut self, stdin: Stdio, stderr: Stdio) -> (Relay, Option<ChildStdin>) {
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(stderr);
        let mut child = self.command.spawn().unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let (tell, lines) = channel();
        let (prints, printing) = channel();
        let mut stdout = child.stdout.take().unwrap();
        let (shared, until) = (output.clone(), prints.clone());
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.read_to_end(&mut bytes);
            shared.lock().unwrap().extend(bytes);
            drop(until);
        });
        if let Some(stderr) = child.stderr.take() {
            let shared = output.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let mut output = shared.lock().unwrap();
                    output.extend(&line);
                    output.push(b'\n');
                    drop(output);
                    let _ = tell.send(String::from_utf8_lossy(&line).into_owned());
                }
                drop(prints);
            });
        }
        let stdin = child.stdin.take();
        let key = self.key.clone();
        (Relay { child, port: 0, key, lines, output, printing, status: None }, stdin)
    }

    /// Runs the relay to its end with these bytes on stdin. Returns its exit code, stdout and
    /// stderr. The exit code is the negated signal if a signal ended it.
    pub fn run(mut self, stdin: &[u8]) -> (i32, String, String) {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let mut relay = Relay {
            child,
            port: 0,
            key: "no key at all".into(),
            lines: channel().1,
            output: Arc::default(),
            printing: channel().1,
            status: None,
        };
        let mut out = String::new();
        let mut err = String::new();
        let (mut o, mut e) =
            (relay.child.stdout.take().unwrap(), relay.child.stderr.take().unwrap());
        let code = relay.exit_code();
        o.read_to_string(&mut out).unwrap();
        e.read_to_string(&mut err).unwrap();
        (code, out, err)
    }
}

/// The port in the event `start`, which is the first line of JSON.
pub fn port_of_start(line: &str) -> u16 {
    assert!(line.contains(",\"event\":\"start\","), "not listening: {line}");
    let (_, port) = line.split_once(",\"port\":").unwrap();
    port.split([',', '}']).next().unwrap().parse().unwrap()
}

/// A path of the program that every user can reach. The program is copied if its own folder is
/// private.
fn reachable_binary() -> PathBuf {
    static REACHABLE: OnceLock<PathBuf> = OnceLock::new();
    let is_reachable = |path: &Path| {
        let open = |path: &Path| path.metadata().is_ok_and(|data| data.mode() & 0o001 != 0);
        path.ancestors().all(open)
    };
    let reachable = REACHABLE.get_or_init(|| {
        let program = std::fs::canonicalize(binary()).unwrap();
        if is_reachable(&program) {
            return program;
        }
        let places = [std::env::temp_dir(), "/tmp".into(), "/var/tmp".into(), "/dev/shm".into()];
        let place =
            places.iter().find(|place| is_reachable(place)).expect("a folder for everybody");
        let copy = place.join(format!("relay-for-others-{}", random_hex()));
        copy_program(program, &copy);
        std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
        remove_at_exit(copy.clone());
        copy
    });
    reachable.clone()
}

/// Raises the soft limit on open files to the hard limit, because the tests hold more connections
/// than the usual soft limit allows.
fn raise_open_files() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel fills and reads one struct that outlives the calls.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    });
}

/// Waits for the end of a child.
pub fn end_of(child: &mut Child) -> ExitStatus {
    ends(child.id());
    child.try_wait().unwrap().expect("it ends")
}

/// Waits for the end of any process, a child or not. Returns whether it has ended within
/// [`DEADLINE`].
pub fn ends(pid: u32) -> bool {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let Ok(fd @ 0..) = i32::try_from(fd) else {
        return std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    };
    // SAFETY: the descriptor is new, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    comes(&fd, libc::POLLIN, DEADLINE)
}

/// The command inherits this descriptor under the same number.
pub fn inherit(command: &mut Command, fd: RawFd) {
    // SAFETY: fcntl(2) is safe to call between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(fd, libc::F_SETFD, 0);
            Ok(())
        })
    };
}

/// Copies a program in another process. If this process held a descriptor for writing, a child that
/// another test starts at the same time might inherit it. Running the copy would then fail
/// (ETXTBSY).
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let done = Command::new("cp")
        .arg("-f")
        .arg("--remove-destination")
        .arg(from.as_ref())
        .arg(to.as_ref())
        .status()
        .unwrap();
    assert!(done.success());
}

/// The descriptors of a process and the targets of their links. Descriptors that are closed during
/// the call are left out.
pub fn descriptors(pid: u32) -> Vec<(i64, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((number, std::fs::read_link(path).ok()?))
    });
    links.collect()
}

/// The children of a process, whichever of its threads started them, their children, and so on.
pub fn descendants(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let lists = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<_>>())
        .collect();
    children.into_iter().flat_map(|pid| [vec![pid], descendants(pid)].concat()).collect()
}
