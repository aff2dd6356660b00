//! The measured processes: the cores on which they run, and the time and memory that they have
//! used.

use std::fs;
use std::io::{self, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A relay that runs until this is dropped.
pub struct Running {
    child: Child,
    pub port: u16,
    /// The time from just before its start until it accepted a connection.
    pub started_in: Duration,
}

impl Running {
    /// Starts a program on its own core with this input on stdin, and waits until it listens on the
    /// port.
    pub fn start(
        mut command: Command,
        stdin: &str,
        port: u16,
        cores: &Cores,
    ) -> io::Result<Running> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        cores.run_on(&cores.relay)?;
        let start = Instant::now();
        let child = command.spawn();
        cores.run_on(&cores.others)?;
        let mut running = Running { child: child?, port, started_in: Duration::ZERO };
        if let Some(mut pipe) = running.child.stdin.take() {
            // Programs that read no key may have closed stdin.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = running.child.try_wait()? {
                return Err(io::Error::other(format!("ended before it listened: {status}")));
            }
            if start.elapsed() > Duration::from_secs(20) {
                return Err(io::Error::other("does not listen"));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        running.started_in = start.elapsed();
        Ok(running)
    }

    /// Seconds of CPU time of all its threads, including those that have ended.
    pub fn cpu(&self) -> io::Result<f64> {
        let pid = self.child.id() as libc::pid_t;
        let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
        // SAFETY: the kernel writes to two variables that outlive the calls.
        unsafe {
            if libc::clock_getcpuclockid(pid, &mut clock) != 0
                || libc::clock_gettime(clock, &mut time) != 0
            {
                return Err(io::Error::other("ended before its time"));
            }
        }
        Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
    }

    /// The bytes of memory that are resident now.
    pub fn resident(&self) -> io::Result<f64> {
        self.status("VmRSS:")
    }

    /// The most bytes that were resident since [`Running::forget_peak`].
    pub fn peak(&self) -> io::Result<f64> {
        self.status("VmHWM:")
    }

    /// Resets the peak, where that is allowed: for a non-dumpable process it needs root. Otherwise
    /// the peak since the start stays.
    pub fn forget_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }

    fn status(&self, field: &str) -> io::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        number.map(|kib| kib * 1024.0).ok_or_else(|| io::Error::other("ended before its time"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of CPU time of this program, which is the client and the upstream.
pub fn own_cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a variable that outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds of CPU time, over all cores, that were used neither by this program nor by its ended
/// children: time of other programs and of the hypervisor. It shows how reliable a run is.
pub fn foreign_cpu() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut ticks: Vec<f64> = Vec::new();
    if let Some(line) = stat.lines().next() {
        ticks.extend(line.split_whitespace().skip(1).filter_map(|n| n.parse::<f64>().ok()));
    }
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user already.
    let busy: f64 = ticks.iter().take(8).sum::<f64>() - ticks.iter().skip(3).take(2).sum::<f64>();
    // SAFETY: all zero is a value of this struct; the kernel writes to it; no memory is involved in
    // the other call.
    let (ended, per_second) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        (usage, libc::sysconf(libc::_SC_CLK_TCK))
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let ours = own_cpu() + seconds(ended.ru_utime) + seconds(ended.ru_stime);
    Ok(busy / per_second as f64 - ours)
}

/// The cores of each: the relay has one core to itself; client and upstream share the others.
pub struct Cores {
    pub relay: Vec<usize>,
    pub others: Vec<usize>,
}

impl Cores {
    /// Chooses from the cores that this program may use.
    pub fn split() -> io::Result<Cores> {
        // SAFETY: all zero is an empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to a set of this size.
        if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the numbers are below the set's size.
        let has = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
        let cores: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(has).collect();
        match cores.split_first() {
            Some((first, rest)) if !rest.is_empty() => {
                Ok(Cores { relay: vec![*first], others: rest.to_vec() })
            }
            _ => Ok(Cores { relay: cores.clone(), others: cores }),
        }
    }

    /// Moves this thread, and the threads and processes that it will start.
    pub fn run_on(&self, cores: &[usize]) -> io::Result<()> {
        // SAFETY: all zero is an empty set, the numbers came from such a set, and the kernel reads
        // one of this size.
        let done = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cores.iter().for_each(|core| libc::CPU_SET(*core, &mut set));
            libc::sched_setaffinity(0, size_of_val(&set), &set)
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Raises the limit on open files as far as allowed, up to the need of the largest run. Returns the
/// limit.
pub fn raise_open_files(wanted: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads and writes a struct that outlives the calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let more = libc::rlimit { rlim_cur: wanted, rlim_max: wanted.max(limit.rlim_max) };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &more) != 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
    }
    limit.rlim_cur
}
