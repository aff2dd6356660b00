//! The system calls that each thread may make once the relay runs, on x86_64 and aarch64, with
//! glibc and with musl. Each line says why the call is there. `SECURITY.md` has the same lists in
//! words.

use libc::c_long;

/// A condition on one argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The argument is an `int` and equals this value under this mask. The kernel ignores the upper
    /// 32 bits of an `int`, so they are not compared.
    Bits(u8, u32, u32),
    /// The argument is a null pointer: all 64 bits are compared.
    Null(u8),
    /// The argument is a number that is known only once the process runs.
    Known(u8, Known),
}

/// A number that is filled in when the filter is made. A form that asks for a number that this
/// process does not have allows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// The descriptor of the server-info file.
    ServerInfo,
    /// The descriptors of `/proc/net/tcp` and `/proc/net/tcp6`.
    SocketTables,
    /// The id of this process.
    Process,
    /// The id of the thread that confines itself.
    Thread,
}

/// A call that is allowed in some forms only. A form is a list of conditions, which must all hold.
pub struct Limited {
    /// The number of the call.
    pub call: c_long,
    /// At least one of these forms must fit.
    pub forms: &'static [&'static [Condition]],
}

/// What a thread may call.
pub struct Allowed {
    /// In any form: the kernel remembers the verdict for these and runs the filter no more.
    pub any: &'static [&'static [c_long]],
    /// In some forms.
    pub limited: &'static [&'static [Limited]],
}

/// The event loop: sockets that exist, those that the connector passes, memory.
pub const LOOP: Allowed = Allowed {
    any: &[COMMON, LOOP_CALLS, LOOP_X86],
    limited: &[MEMORY, ABORT, LOOP_SOCKETS, LOOP_FILES, DEBUG_CALLS],
};

/// The access log: writes to stderr.
pub const LOG: Allowed = Allowed { any: &[COMMON], limited: &[MEMORY, ABORT, DEBUG_CALLS] };

/// All 32 bits of an `int`.
const ALL: u32 = u32::MAX;

/// The argument equals this value.
const fn is(argument: u8, value: i32) -> Condition {
    Condition::Bits(argument, ALL, value as u32)
}

/// The argument has none of these bits.
const fn lacks(argument: u8, bits: u32) -> Condition {
    Condition::Bits(argument, bits, 0)
}

const COMMON: &[c_long] = &[
    // stderr: the start line, the log, the message of a fault.
    libc::SYS_write,
    // The allocator gives memory back.
    libc::SYS_munmap,
    // The allocator grows and shrinks the heap.
    libc::SYS_brk,
    // Where the vDSO does not know the time.
    libc::SYS_clock_gettime,
    // The C library blocks signals around the end of a thread and in abort(3).
    libc::SYS_rt_sigprocmask,
    // Returns from a signal handler, the standard library's for stack overflows.
    libc::SYS_rt_sigreturn,
    // The kernel resumes a wait that SIGSTOP interrupted.
    libc::SYS_restart_syscall,
    // The standard library removes a thread's signal stack at its end.
    libc::SYS_sigaltstack,
    // Locks of the C library and of the standard library's channels.
    libc::SYS_sched_yield,
    // abort(3) asks whom to signal; the start line names the process.
    libc::SYS_getpid,
    libc::SYS_gettid,
    // The end of a thread, and of the process.
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Whatever is neither PROT_READ nor PROT_WRITE.
const NEITHER_READ_NOR_WRITE: u32 = !(libc::PROT_READ | libc::PROT_WRITE) as u32;
/// What says where a mapping lies and what it shows.
const MAP_KIND: u32 = (0xf | libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN) as u32;
const MAP_OWN: u32 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
/// The operation of futex(2), without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
const FUTEX_OPERATION: u32 = 0x7f;

const fn futex(operation: i32) -> Condition {
    Condition::Bits(1, FUTEX_OPERATION, operation as u32)
}

/// The allocator's memory, which is never executable, and waiting for other threads.
pub const MEMORY: &[Limited] = &[
    // Fresh private memory at an address of the kernel's choice.
    Limited {
        call: libc::SYS_mmap,
        forms: &[&[lacks(2, NEITHER_READ_NOR_WRITE), Condition::Bits(3, MAP_KIND, MAP_OWN)]],
    },
    // glibc's arenas grow by it; the pages of the key become writable to be wiped.
    Limited { call: libc::SYS_mprotect, forms: &[&[lacks(2, NEITHER_READ_NOR_WRITE)]] },
    // realloc(3) of a large block, to an address of the kernel's choice.
    Limited { call: libc::SYS_mremap, forms: &[&[is(3, libc::MREMAP_MAYMOVE)]] },
    // free(3): glibc and musl drop pages; glibc asks for huge pages if it was told so at the start.
    Limited {
        call: libc::SYS_madvise,
        forms: &[
            &[is(2, libc::MADV_DONTNEED)],
            &[is(2, libc::MADV_FREE)],
            &[is(2, libc::MADV_HUGEPAGE)],
        ],
    },
    // Locks, channels and the end of a thread: waiting and waking, and no requeueing.
    Limited {
        call: libc::SYS_futex,
        forms: &[
            &[futex(libc::FUTEX_WAIT)],
            &[futex(libc::FUTEX_WAKE)],
            &[futex(libc::FUTEX_WAIT_BITSET)],
        ],
    },
];

/// abort(3), so that a fault in the program ends it by SIGABRT and its message is read.
const ABORT: &[Limited] = &[
    // glibc.
    Limited {
        call: libc::SYS_tgkill,
        forms: &[&[
            Condition::Known(0, Known::Process),
            Condition::Known(1, Known::Thread),
            is(2, libc::SIGABRT),
        ]],
    },
    // musl.
    Limited {
        call: libc::SYS_tkill,
        forms: &[&[Condition::Known(0, Known::Thread), is(1, libc::SIGABRT)]],
    },
    // Both, when SIGABRT has not ended the process.
    Limited { call: libc::SYS_rt_sigaction, forms: &[&[is(0, libc::SIGABRT)]] },
];

/// A debug build of the standard library asks of each descriptor whether it is open, before it
/// closes it.
const DEBUG_CALLS: &[Limited] = match cfg!(debug_assertions) {
    true => &[Limited { call: libc::SYS_fcntl, forms: &[&[is(1, libc::F_GETFD)]] }],
    false => &[],
};

const LOOP_CALLS: &[c_long] = &[
    // Signals, wake-ups, answers of netlink: descriptors that exist.
    libc::SYS_read,
    // What is sent on sockets: it takes no address.
    libc::SYS_writev,
    // What comes in on sockets.
    libc::SYS_recvfrom,
    // Waiting.
    libc::SYS_epoll_pwait,
    // Connections that have ended.
    libc::SYS_close,
    // Where a connection leads.
    libc::SYS_getpeername,
    // The address of a connection of its own.
    libc::SYS_getsockname,
    // TLS.
    libc::SYS_getrandom,
];

#[cfg(target_arch = "x86_64")]
const LOOP_X86: &[c_long] = &[
    // Waiting.
    libc::SYS_epoll_wait,
];
#[cfg(not(target_arch = "x86_64"))]
const LOOP_X86: &[c_long] = &[];

const fn option(level: i32, name: i32) -> [Condition; 2] {
    [is(1, level), is(2, name)]
}

/// Opens a connection without connect(2), and so without Landlock.
const FAST_OPEN: u32 = libc::MSG_FASTOPEN as u32;

const LOOP_SOCKETS: &[Limited] = &[
    // Questions over netlink, and responses that nobody waits to send: to the other end that the
    // socket has, and to no address.
    Limited { call: libc::SYS_sendto, forms: &[&[lacks(3, FAST_OPEN), Condition::Null(4)]] },
    // One socket more or less to wait for.
    Limited {
        call: libc::SYS_epoll_ctl,
        forms: &[&[is(1, libc::EPOLL_CTL_ADD)], &[is(1, libc::EPOLL_CTL_DEL)]],
    },
    // The next client.
    Limited {
        call: libc::SYS_accept4,
        forms: &[&[is(3, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)]],
    },
    // The end of what is sent.
    Limited { call: libc::SYS_shutdown, forms: &[&[is(1, libc::SHUT_WR)]] },
    // The connector's replies.
    Limited {
        call: libc::SYS_recvmsg,
        forms: &[&[is(2, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)]],
    },
    // Resets.
    Limited { call: libc::SYS_setsockopt, forms: &[&option(libc::SOL_SOCKET, libc::SO_LINGER)] },
];

const LOOP_FILES: &[Limited] = &[
    // Empties the server-info file at the end, and no other file: stderr may be one.
    Limited { call: libc::SYS_ftruncate, forms: &[&[Condition::Known(0, Known::ServerInfo)]] },
    // `--allow-uid` where netlink cannot be asked.
    Limited { call: libc::SYS_pread64, forms: &[&[Condition::Known(0, Known::SocketTables)]] },
];
