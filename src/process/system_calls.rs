//! The system calls that each thread may make once the relay runs, on x86_64 and aarch64, with glibc
//! and with musl. Each line says why the call is there. `SECURITY.md` has the same lists in words.

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

/// The event loop: sockets that exist, new TCP sockets, memory.
pub const LOOP: Allowed = Allowed {
    any: &[COMMON, LOOP_CALLS, LOOP_X86],
    limited: &[MEMORY, ABORT, LOOP_SOCKETS, LOOP_FILES, DEBUG_CALLS],
};

/// The resolver: what getaddrinfo(3) does.
pub const RESOLVER: Allowed = Allowed {
    any: &[COMMON, RESOLVER_CALLS, RESOLVER_X86],
    limited: &[MEMORY, ABORT, RESOLVER_SOCKETS, READ_ONLY_X86],
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
    // stderr; wakes another thread through an eventfd.
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
    // abort(3) asks whom to signal.
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
const MEMORY: &[Limited] = &[
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
    // A connection to the upstream or the egress proxy; Landlock leaves one port.
    libc::SYS_connect,
    // Connections that have ended.
    libc::SYS_close,
    // Whether a connect has succeeded, and to which address.
    libc::SYS_getpeername,
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

/// The type of a socket without its flags.
const TYPE: u32 = 0xf;

const fn kind(kind: i32) -> Condition {
    Condition::Bits(1, TYPE, kind as u32)
}

const V4: Condition = is(0, libc::AF_INET);
const V6: Condition = is(0, libc::AF_INET6);
const STREAM: Condition = kind(libc::SOCK_STREAM);
const DATAGRAM: Condition = kind(libc::SOCK_DGRAM);
/// The protocol that the type implies. MPTCP, which Landlock does not restrict, is another one.
const IMPLIED: Condition = is(2, 0);
const TCP: Condition = is(2, libc::IPPROTO_TCP);
const UDP: Condition = is(2, libc::IPPROTO_UDP);

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
    // A connection to the upstream: TCP and nothing else.
    Limited {
        call: libc::SYS_socket,
        forms: &[
            &[V4, STREAM, IMPLIED],
            &[V4, STREAM, TCP],
            &[V6, STREAM, IMPLIED],
            &[V6, STREAM, TCP],
        ],
    },
    // Resets, keep-alive, urgent data in its place, no delay, a bound on sends.
    Limited {
        call: libc::SYS_setsockopt,
        forms: &[
            &option(libc::SOL_SOCKET, libc::SO_LINGER),
            &option(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            &option(libc::SOL_SOCKET, libc::SO_OOBINLINE),
            &option(libc::IPPROTO_TCP, libc::TCP_NODELAY),
            &option(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            &option(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            &option(libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            &option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        ],
    },
    // How a connect has ended.
    Limited { call: libc::SYS_getsockopt, forms: &[&option(libc::SOL_SOCKET, libc::SO_ERROR)] },
];

const LOOP_FILES: &[Limited] = &[
    // Empties the server-info file at the end, and no other file: stderr may be one.
    Limited { call: libc::SYS_ftruncate, forms: &[&[Condition::Known(0, Known::ServerInfo)]] },
    // `--allow-uid` where netlink cannot be asked.
    Limited { call: libc::SYS_pread64, forms: &[&[Condition::Known(0, Known::SocketTables)]] },
];

const RESOLVER_CALLS: &[c_long] = &[
    // The resolver's files, answers of name servers.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Questions to name servers: over UDP, and on TCP port 53.
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    // What the C library asks on the way.
    libc::SYS_uname,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getrandom,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
];

#[cfg(target_arch = "x86_64")]
const RESOLVER_X86: &[c_long] =
    &[libc::SYS_poll, libc::SYS_stat, libc::SYS_access, libc::SYS_time, libc::SYS_nanosleep];
#[cfg(not(target_arch = "x86_64"))]
const RESOLVER_X86: &[c_long] = &[libc::SYS_nanosleep];

const WRITING: u32 =
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;
const RESOLVER_SOCKETS: &[Limited] = &[
    // `/etc/hosts` and its like; Landlock leaves no other file.
    Limited { call: libc::SYS_openat, forms: &[&[lacks(2, WRITING)]] },
    // Name servers; netlink says which addresses this machine has. No Unix sockets: a socket that
    // trusts this user may be behind one.
    Limited {
        call: libc::SYS_socket,
        forms: &[
            &[V4, DATAGRAM, IMPLIED],
            &[V4, DATAGRAM, UDP],
            &[V6, DATAGRAM, IMPLIED],
            &[V6, DATAGRAM, UDP],
            &[V4, STREAM, IMPLIED],
            &[V4, STREAM, TCP],
            &[V6, STREAM, IMPLIED],
            &[V6, STREAM, TCP],
            &[is(0, libc::AF_NETLINK), kind(libc::SOCK_RAW), is(2, libc::NETLINK_ROUTE)],
        ],
    },
    Limited { call: libc::SYS_sendto, forms: &[&[lacks(3, FAST_OPEN)]] },
    Limited { call: libc::SYS_sendmsg, forms: &[&[lacks(2, FAST_OPEN)]] },
    Limited { call: libc::SYS_sendmmsg, forms: &[&[lacks(3, FAST_OPEN)]] },
    // glibc asks to be told of unreachable name servers.
    Limited {
        call: libc::SYS_setsockopt,
        forms: &[
            &option(libc::IPPROTO_IP, libc::IP_RECVERR),
            &option(libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        ],
    },
    // glibc asks how long an answer is; nothing that reaches a terminal.
    Limited { call: libc::SYS_ioctl, forms: &[&[is(1, libc::FIONREAD as i32)]] },
    // Flags, and nothing that makes signals or copies descriptors.
    Limited {
        call: libc::SYS_fcntl,
        forms: &[
            &[is(1, libc::F_GETFD)],
            &[is(1, libc::F_SETFD)],
            &[is(1, libc::F_GETFL)],
            &[is(1, libc::F_SETFL)],
        ],
    },
];

#[cfg(target_arch = "x86_64")]
const READ_ONLY_X86: &[Limited] =
    &[Limited { call: libc::SYS_open, forms: &[&[lacks(1, WRITING)]] }];
#[cfg(not(target_arch = "x86_64"))]
const READ_ONLY_X86: &[Limited] = &[];
