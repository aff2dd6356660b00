//! The system calls that each thread may make once the relay runs, on x86_64 and aarch64, with
//! glibc and with musl. The comment on each call says why the call is needed. `SECURITY.md`
//! explains the same lists.

use libc::c_long;

/// A condition on one argument of a system call. The first field is the argument's index, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The argument is an `int` and equals this value under this mask. The kernel ignores the upper
    /// 32 bits of an `int`, so they are not compared.
    Bits(u8, u32, u32),
    /// The argument is a null pointer: all 64 bits are compared.
    Null(u8),
    /// The argument is a number that is known only once the process runs.
    AtRunTime(u8, RunTimeNumber),
}

/// A number that is known when the filter is made. A form with a number that this process does not
/// have allows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunTimeNumber {
    /// The descriptor of the server-info file.
    ServerInfo,
    /// The descriptors of `/proc/net/tcp` and `/proc/net/tcp6`.
    SocketTables,
    /// The id of this process.
    Process,
    /// The id of the thread that confines itself.
    Thread,
}

/// A call that is allowed in some forms only. A form is a list of conditions. All conditions of a
/// form must hold.
pub struct Limited {
    /// The number of the call.
    pub call: c_long,
    /// At least one of these forms must match.
    pub forms: &'static [&'static [Condition]],
}

/// The system calls that a thread may make.
pub struct Allowed {
    /// Calls that are allowed with any arguments. The kernel caches the verdict for these calls and
    /// does not run the filter again (Linux 5.11).
    pub any: &'static [&'static [c_long]],
    /// Calls that are allowed in some forms only.
    pub limited: &'static [&'static [Limited]],
}

/// The event loop uses open sockets, sockets that the connector passes to it, and memory.
pub const LOOP: Allowed = Allowed {
    any: &[COMMON, LOOP_CALLS, LOOP_X86],
    limited: &[MEMORY, ABORT, LOOP_SOCKETS, LOOP_FILES, DEBUG_CALLS],
};

/// The access log writes to stderr.
pub const LOG: Allowed = Allowed { any: &[COMMON], limited: &[MEMORY, ABORT, DEBUG_CALLS] };

/// All 32 bits of an `int`.
const ALL: u32 = u32::MAX;

/// The argument equals this value.
pub const fn is(argument: u8, value: i32) -> Condition {
    Condition::Bits(argument, ALL, value as u32)
}

/// The argument has none of these bits.
pub const fn lacks(argument: u8, bits: u32) -> Condition {
    Condition::Bits(argument, bits, 0)
}

/// Calls of every thread, and of the feeder.
pub const COMMON: &[c_long] = &[
    // Writes the start line, the log and fault messages to stderr.
    libc::SYS_write,
    // The allocator returns memory to the kernel.
    libc::SYS_munmap,
    // The allocator grows and shrinks the heap.
    libc::SYS_brk,
    // The vDSO makes this call where it cannot read the clock itself.
    libc::SYS_clock_gettime,
    // The C library blocks signals around the end of a thread and in abort(3).
    libc::SYS_rt_sigprocmask,
    // Returns from a signal handler. The standard library has one for stack overflows.
    libc::SYS_rt_sigreturn,
    // The kernel resumes a wait that SIGSTOP interrupted.
    libc::SYS_restart_syscall,
    // The standard library removes a thread's signal stack at its end.
    libc::SYS_sigaltstack,
    // Locks of the C library and of the standard library's channels.
    libc::SYS_sched_yield,
    // abort(3) needs these ids to signal its own thread. The start line names the process id.
    libc::SYS_getpid,
    libc::SYS_gettid,
    // Ends a thread, or the process.
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// All bits other than PROT_READ and PROT_WRITE.
const NEITHER_READ_NOR_WRITE: u32 = !(libc::PROT_READ | libc::PROT_WRITE) as u32;
/// The flags that select where a mapping lies and which memory it shows.
const MAP_KIND: u32 = (0xf | libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN) as u32;
const MAP_OWN: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
/// The mask of the operation of futex(2), without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
const FUTEX_OPERATION: u32 = 0x7f;

const fn futex(operation: i32) -> Condition {
    Condition::Bits(1, FUTEX_OPERATION, operation as u32)
}

/// Calls of the allocator, whose memory is never executable, and calls that wait for other threads.
pub const MEMORY: &[Limited] = &[
    // The allocator maps new private memory at an address that the kernel chooses.
    Limited {
        call: libc::SYS_mmap,
        forms: &[&[lacks(2, NEITHER_READ_NOR_WRITE), Condition::Bits(3, MAP_KIND, MAP_OWN)]],
    },
    // glibc's arenas grow by this call. The pages of a key become writable so that they can be
    // wiped, and read-only when a fresh key lies in them.
    Limited { call: libc::SYS_mprotect, forms: &[&[lacks(2, NEITHER_READ_NOR_WRITE)]] },
    // realloc(3) moves a large block to an address that the kernel chooses.
    Limited { call: libc::SYS_mremap, forms: &[&[is(3, libc::MREMAP_MAYMOVE)]] },
    // free(3) drops pages, with glibc and with musl. glibc requests huge pages if it was configured
    // to do so at the start.
    Limited {
        call: libc::SYS_madvise,
        forms: &[
            &[is(2, libc::MADV_DONTNEED)],
            &[is(2, libc::MADV_FREE)],
            &[is(2, libc::MADV_HUGEPAGE)],
        ],
    },
    // Locks, channels and the end of a thread wait and wake. No operation requeues.
    Limited {
        call: libc::SYS_futex,
        forms: &[
            &[futex(libc::FUTEX_WAIT)],
            &[futex(libc::FUTEX_WAKE)],
            &[futex(libc::FUTEX_WAIT_BITSET)],
        ],
    },
];

/// abort(3): a fault in the program ends the process by SIGABRT, so that its message is seen.
pub const ABORT: &[Limited] = &[
    // glibc.
    Limited {
        call: libc::SYS_tgkill,
        forms: &[&[
            Condition::AtRunTime(0, RunTimeNumber::Process),
            Condition::AtRunTime(1, RunTimeNumber::Thread),
            is(2, libc::SIGABRT),
        ]],
    },
    // musl.
    Limited {
        call: libc::SYS_tkill,
        forms: &[&[Condition::AtRunTime(0, RunTimeNumber::Thread), is(1, libc::SIGABRT)]],
    },
    // glibc and musl make this call when SIGABRT has not ended the process.
    Limited { call: libc::SYS_rt_sigaction, forms: &[&[is(0, libc::SIGABRT)]] },
];

/// A debug build of the standard library checks that a descriptor is open before it closes the
/// descriptor.
pub const DEBUG_CALLS: &[Limited] = match cfg!(debug_assertions) {
    true => &[Limited { call: libc::SYS_fcntl, forms: &[&[is(1, libc::F_GETFD)]] }],
    false => &[],
};

const LOOP_CALLS: &[c_long] = &[
    // Reads signals, wake-ups and netlink responses from descriptors that are already open, and
    // further keys from stdin.
    libc::SYS_read,
    // Sends on sockets. This call takes no address.
    libc::SYS_writev,
    // Receives from sockets.
    libc::SYS_recvfrom,
    // Waits for readiness.
    libc::SYS_epoll_pwait,
    // Closes connections that have ended.
    libc::SYS_close,
    // Finds the remote address of a connection.
    libc::SYS_getpeername,
    // Finds the local address of a connection.
    libc::SYS_getsockname,
    // TLS needs random numbers.
    libc::SYS_getrandom,
];

/// Further calls of the loop, which x86_64 alone has.
#[cfg(target_arch = "x86_64")]
pub const LOOP_X86: &[c_long] = &[
    // Waits for readiness.
    libc::SYS_epoll_wait,
];
/// Further calls of the loop, which x86_64 alone has.
#[cfg(not(target_arch = "x86_64"))]
pub const LOOP_X86: &[c_long] = &[];

/// The option of a socket: its level and its name, in getsockopt(2) and setsockopt(2).
pub const fn option(level: i32, name: i32) -> [Condition; 2] {
    [is(1, level), is(2, name)]
}

/// MSG_FASTOPEN opens a connection without connect(2), and so without Landlock.
pub const FAST_OPEN: u32 = libc::MSG_FASTOPEN as u32;

const LOOP_SOCKETS: &[Limited] = &[
    // Sends netlink requests, and responses that must not block. The address is null, so the data
    // goes where the socket already leads.
    Limited { call: libc::SYS_sendto, forms: &[&[lacks(3, FAST_OPEN), Condition::Null(4)]] },
    // Adds a socket, or stdin, to the event loop, or removes it.
    Limited {
        call: libc::SYS_epoll_ctl,
        forms: &[&[is(1, libc::EPOLL_CTL_ADD)], &[is(1, libc::EPOLL_CTL_DEL)]],
    },
    // Accepts the next client.
    Limited {
        call: libc::SYS_accept4,
        forms: &[&[is(3, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)]],
    },
    // Ends the sending direction of a connection.
    Limited { call: libc::SYS_shutdown, forms: &[&[is(1, libc::SHUT_WR)]] },
    // Receives the connector's replies, and the sockets that come with them.
    Limited {
        call: libc::SYS_recvmsg,
        forms: &[&[is(2, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)]],
    },
    // Resets a connection.
    Limited { call: libc::SYS_setsockopt, forms: &[&option(libc::SOL_SOCKET, libc::SO_LINGER)] },
];

const LOOP_FILES: &[Limited] = &[
    // Empties the server-info file when the relay ends. Other files are out of reach: stderr may be
    // a file.
    Limited {
        call: libc::SYS_ftruncate,
        forms: &[&[Condition::AtRunTime(0, RunTimeNumber::ServerInfo)]],
    },
    // Finds the owner of a socket (`--allow-uid`, `--upstream-uid`) where netlink cannot be used.
    Limited {
        call: libc::SYS_pread64,
        forms: &[&[Condition::AtRunTime(0, RunTimeNumber::SocketTables)]],
    },
];
