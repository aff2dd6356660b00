//! The system calls that each thread may still make once the relay runs, on x86_64 and aarch64, with
//! glibc and with musl. `SECURITY.md` says of each what it is for.

use libc::c_long;

/// A call that is allowed in some forms only; a form is a list of (argument, mask, value).
pub struct Limited {
    /// Its number.
    pub call: c_long,
    /// One of these must fit.
    pub forms: &'static [&'static [(u8, u32, u32)]],
}

/// What a thread may call.
pub struct Allowed {
    /// In any form: the kernel remembers the verdict for these and asks the filter no more.
    pub any: &'static [&'static [c_long]],
    /// In some forms.
    pub limited: &'static [&'static [Limited]],
}

/// The loop: sockets that are there, new TCP sockets, memory.
pub const LOOP: Allowed =
    Allowed { any: &[COMMON, LOOP_CALLS, LOOP_X86], limited: &[MEMORY, LOOP_SOCKETS, DEBUG_CALLS] };

/// The resolver: what getaddrinfo(3) does.
pub const RESOLVER: Allowed = Allowed {
    any: &[COMMON, RESOLVER_CALLS, RESOLVER_X86],
    limited: &[MEMORY, RESOLVER_SOCKETS, READ_ONLY_X86],
};

/// The access log: writes to stderr.
pub const LOG: Allowed = Allowed { any: &[COMMON], limited: &[MEMORY, DEBUG_CALLS] };

const COMMON: &[c_long] = &[
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const EXEC: u32 = libc::PROT_EXEC as u32;

/// Memory, but none that can be executed.
const MEMORY: &[Limited] = &[
    Limited { call: libc::SYS_mmap, forms: &[&[(2, EXEC, 0)]] },
    Limited { call: libc::SYS_mprotect, forms: &[&[(2, EXEC, 0)]] },
];

/// A debug build of the standard library asks of each descriptor whether it is open, before it
/// closes it.
const DEBUG_CALLS: &[Limited] = match cfg!(debug_assertions) {
    true => &[Limited { call: libc::SYS_fcntl, forms: &[&[(1, ALL, libc::F_GETFD as u32)]] }],
    false => &[],
};

const LOOP_CALLS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_getpeername,
    libc::SYS_getrandom,
    libc::SYS_ftruncate,
    // `/proc/net/tcp`, where netlink cannot be asked for the user of a connection.
    libc::SYS_pread64,
];

#[cfg(target_arch = "x86_64")]
const LOOP_X86: &[c_long] = &[libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const LOOP_X86: &[c_long] = &[];

const ALL: u32 = u32::MAX;
const V4: u32 = libc::AF_INET as u32;
const V6: u32 = libc::AF_INET6 as u32;
const STREAM: u32 = libc::SOCK_STREAM as u32;
/// The type of a socket without its flags.
const TYPE: u32 = 0xf;
const SOCKET: u32 = libc::SOL_SOCKET as u32;
const TCP: u32 = libc::IPPROTO_TCP as u32;

const LOOP_SOCKETS: &[Limited] = &[
    Limited {
        call: libc::SYS_socket,
        forms: &[&[(0, ALL, V4), (1, TYPE, STREAM)], &[(0, ALL, V6), (1, TYPE, STREAM)]],
    },
    Limited {
        call: libc::SYS_setsockopt,
        forms: &[
            &[(1, ALL, SOCKET), (2, ALL, libc::SO_LINGER as u32)],
            &[(1, ALL, SOCKET), (2, ALL, libc::SO_KEEPALIVE as u32)],
            &[(1, ALL, SOCKET), (2, ALL, libc::SO_OOBINLINE as u32)],
            &[(1, ALL, TCP), (2, ALL, libc::TCP_NODELAY as u32)],
            &[(1, ALL, TCP), (2, ALL, libc::TCP_KEEPIDLE as u32)],
            &[(1, ALL, TCP), (2, ALL, libc::TCP_KEEPINTVL as u32)],
            &[(1, ALL, TCP), (2, ALL, libc::TCP_KEEPCNT as u32)],
            &[(1, ALL, TCP), (2, ALL, libc::TCP_USER_TIMEOUT as u32)],
        ],
    },
    Limited {
        call: libc::SYS_getsockopt,
        forms: &[&[(1, ALL, SOCKET), (2, ALL, libc::SO_ERROR as u32)]],
    },
];

const RESOLVER_CALLS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_ioctl,
    libc::SYS_uname,
    libc::SYS_getpid,
    libc::SYS_gettid,
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
    Limited { call: libc::SYS_openat, forms: &[&[(2, WRITING, 0)]] },
    Limited {
        call: libc::SYS_socket,
        forms: &[
            &[(0, ALL, V4)],
            &[(0, ALL, V6)],
            &[(0, ALL, libc::AF_NETLINK as u32)],
            &[(0, ALL, libc::AF_UNIX as u32)],
        ],
    },
];

#[cfg(target_arch = "x86_64")]
const READ_ONLY_X86: &[Limited] = &[Limited { call: libc::SYS_open, forms: &[&[(1, WRITING, 0)]] }];
#[cfg(not(target_arch = "x86_64"))]
const READ_ONLY_X86: &[Limited] = &[];
