//! The system calls of the connector and of a lookup, on x86_64 and aarch64, with glibc and with
//! musl. `SECURITY.md` says what each call is for.
//!
//! A lookup is a child of the connector and inherits its filters, so the lists of the connector
//! include the calls of a lookup. Neither process holds a secret.

use libc::c_long;

use crate::process::system_calls::Condition::{Bits, Null};
use crate::process::system_calls::{Allowed, Limited, MEMORY};

/// The calls that the connector may make: its own, and those of its lookups. Any other call that is
/// on [`CONNECTOR_LIVES`] fails with EPERM; all others kill the process.
pub(super) const CONNECTOR: Allowed = Allowed {
    any: &[BOTH, BOTH_X86, OWN],
    limited: &[MEMORY, READ_ONLY, READ_ONLY_X86, SOCKETS, OWN_SOCKETS, LIMITED, OWN_LIMITED],
};

/// The calls that do not kill the connector or a lookup, whether they are refused or not.
pub(super) const CONNECTOR_LIVES: Allowed = Allowed {
    any: &[BOTH, BOTH_X86, OWN, REFUSED, REFUSED_X86],
    limited: &[NOT_EXECUTABLE, READ_ONLY, READ_ONLY_X86, OWN_LIMITED],
};

/// The calls that a confined lookup may make: those of getaddrinfo(3). Any other call that is on
/// [`CONNECTOR_LIVES`] fails with EPERM; all others kill the process.
pub(super) const LOOKUP: Allowed = Allowed {
    any: &[BOTH, BOTH_X86],
    limited: &[MEMORY, READ_ONLY, READ_ONLY_X86, SOCKETS, LIMITED],
};

/// Calls of the connector and of a lookup, in any form.
const BOTH: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_munmap,
    libc::SYS_brk,
    libc::SYS_uname,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls of both that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const BOTH_X86: &[c_long] = &[libc::SYS_poll, libc::SYS_stat, libc::SYS_access, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const BOTH_X86: &[c_long] = &[];

/// Further calls of the connector, for lookups and for the end. A lookup needs a pipe, and a child
/// that confines itself. At the end the connector empties the server-info file.
#[cfg(target_arch = "x86_64")]
const OWN: &[c_long] = &[
    libc::SYS_pipe2,
    libc::SYS_dup3,
    libc::SYS_close_range,
    libc::SYS_getppid,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_ftruncate,
    libc::SYS_fork,
];
#[cfg(not(target_arch = "x86_64"))]
const OWN: &[c_long] = &[
    libc::SYS_pipe2,
    libc::SYS_dup3,
    libc::SYS_close_range,
    libc::SYS_getppid,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_ftruncate,
];

/// Calls that C libraries and NSS modules try and can do without. A refused call of this list does
/// not kill. For a limited call, this holds for every form that its list refuses.
const REFUSED: &[c_long] = &[
    // Limited, in SOCKETS, OWN_SOCKETS, LIMITED and MEMORY.
    libc::SYS_socket,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // On no list of allowed calls.
    libc::SYS_clone3,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_sysinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_clock_getres,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_socketpair,
    libc::SYS_shutdown,
    libc::SYS_recvmmsg,
    libc::SYS_accept4,
    libc::SYS_dup,
    libc::SYS_flock,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_pselect6,
    libc::SYS_tgkill,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_mlock,
    libc::SYS_msync,
    libc::SYS_mincore,
];

/// Calls of the same kind that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const REFUSED_X86: &[c_long] = &[
    libc::SYS_lstat,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_select,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_inotify_init,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_X86: &[c_long] = &[];

/// All 32 bits of an `int`.
const ALL: u32 = u32::MAX;
const EXEC: u32 = libc::PROT_EXEC as u32;

/// The forms of mmap(2) and mprotect(2) that do not kill: executable memory kills.
const NOT_EXECUTABLE: &[Limited] = &[
    Limited { call: libc::SYS_mmap, forms: &[&[Bits(2, EXEC, 0)]] },
    Limited { call: libc::SYS_mprotect, forms: &[&[Bits(2, EXEC, 0)]] },
];

/// The flags of open(2) that write to, append to, create or truncate a file.
const WRITING: u32 =
    (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;

/// Files are opened for reading only.
const READ_ONLY: &[Limited] =
    &[Limited { call: libc::SYS_openat, forms: &[&[Bits(2, WRITING, 0)]] }];
#[cfg(target_arch = "x86_64")]
const READ_ONLY_X86: &[Limited] =
    &[Limited { call: libc::SYS_open, forms: &[&[Bits(1, WRITING, 0)]] }];
#[cfg(not(target_arch = "x86_64"))]
const READ_ONLY_X86: &[Limited] = &[];

const V4: u32 = libc::AF_INET as u32;
const V6: u32 = libc::AF_INET6 as u32;
const NETLINK: u32 = libc::AF_NETLINK as u32;
const STREAM: u32 = libc::SOCK_STREAM as u32;
const DATAGRAM: u32 = libc::SOCK_DGRAM as u32;
const RAW: u32 = libc::SOCK_RAW as u32;
/// Masks the type of a socket, without SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: u32 = 0xf;
const TCP: u32 = libc::IPPROTO_TCP as u32;
const UDP: u32 = libc::IPPROTO_UDP as u32;
const ROUTE: u32 = libc::NETLINK_ROUTE as u32;
const LEVEL_SOCKET: u32 = libc::SOL_SOCKET as u32;
const LEVEL_IP: u32 = libc::IPPROTO_IP as u32;
const LEVEL_IPV6: u32 = libc::IPPROTO_IPV6 as u32;
/// This flag makes sendto(2) connect. Landlock checks connect(2), but may not check this path.
const FASTOPEN: u32 = libc::MSG_FASTOPEN as u32;

/// Sockets of TCP and UDP over IPv4 and IPv6, and the netlink socket that lists the addresses of
/// this machine (rtnetlink(7)). No Unix socket, no MPTCP, no TCP Fast Open.
const SOCKETS: &[Limited] = &[
    Limited {
        call: libc::SYS_socket,
        forms: &[
            &[Bits(0, ALL, V4), Bits(1, TYPE, STREAM), Bits(2, ALL, 0)],
            &[Bits(0, ALL, V4), Bits(1, TYPE, STREAM), Bits(2, ALL, TCP)],
            &[Bits(0, ALL, V6), Bits(1, TYPE, STREAM), Bits(2, ALL, 0)],
            &[Bits(0, ALL, V6), Bits(1, TYPE, STREAM), Bits(2, ALL, TCP)],
            &[Bits(0, ALL, V4), Bits(1, TYPE, DATAGRAM), Bits(2, ALL, 0)],
            &[Bits(0, ALL, V4), Bits(1, TYPE, DATAGRAM), Bits(2, ALL, UDP)],
            &[Bits(0, ALL, V6), Bits(1, TYPE, DATAGRAM), Bits(2, ALL, 0)],
            &[Bits(0, ALL, V6), Bits(1, TYPE, DATAGRAM), Bits(2, ALL, UDP)],
            &[Bits(0, ALL, NETLINK), Bits(1, TYPE, RAW), Bits(2, ALL, ROUTE)],
        ],
    },
    Limited { call: libc::SYS_sendto, forms: &[&[Bits(3, FASTOPEN, 0)]] },
    Limited { call: libc::SYS_sendmsg, forms: &[&[Bits(2, FASTOPEN, 0)]] },
    Limited { call: libc::SYS_sendmmsg, forms: &[&[Bits(3, FASTOPEN, 0)]] },
    Limited {
        call: libc::SYS_getsockopt,
        forms: &[&[Bits(1, ALL, LEVEL_SOCKET), Bits(2, ALL, libc::SO_ERROR as u32)]],
    },
    Limited {
        call: libc::SYS_setsockopt,
        forms: &[
            &[Bits(1, ALL, LEVEL_IP), Bits(2, ALL, libc::IP_RECVERR as u32)],
            &[Bits(1, ALL, LEVEL_IPV6), Bits(2, ALL, libc::IPV6_RECVERR as u32)],
            &[Bits(1, ALL, LEVEL_IPV6), Bits(2, ALL, libc::IPV6_V6ONLY as u32)],
        ],
    },
];

/// The options that each upstream connection gets before it is passed on. SO_LINGER also resets
/// attempts that are no longer needed.
const OWN_SOCKETS: &[Limited] = &[Limited {
    call: libc::SYS_setsockopt,
    forms: &[
        &[Bits(1, ALL, LEVEL_SOCKET), Bits(2, ALL, libc::SO_KEEPALIVE as u32)],
        &[Bits(1, ALL, LEVEL_SOCKET), Bits(2, ALL, libc::SO_LINGER as u32)],
        &[Bits(1, ALL, LEVEL_SOCKET), Bits(2, ALL, libc::SO_OOBINLINE as u32)],
        &[Bits(1, ALL, TCP), Bits(2, ALL, libc::TCP_NODELAY as u32)],
        &[Bits(1, ALL, TCP), Bits(2, ALL, libc::TCP_KEEPIDLE as u32)],
        &[Bits(1, ALL, TCP), Bits(2, ALL, libc::TCP_KEEPINTVL as u32)],
        &[Bits(1, ALL, TCP), Bits(2, ALL, libc::TCP_USER_TIMEOUT as u32)],
        &[Bits(1, ALL, TCP), Bits(2, ALL, libc::TCP_NOTSENT_LOWAT as u32)],
    ],
}];

/// Only these forms of fcntl(2) and ioctl(2). Other forms could type into a terminal (TIOCSTI) or
/// send a signal to a process (F_SETOWN).
const LIMITED: &[Limited] = &[
    Limited {
        call: libc::SYS_fcntl,
        forms: &[
            &[Bits(1, ALL, libc::F_GETFD as u32)],
            &[Bits(1, ALL, libc::F_SETFD as u32)],
            &[Bits(1, ALL, libc::F_GETFL as u32)],
            &[Bits(1, ALL, libc::F_SETFL as u32)],
        ],
    },
    Limited {
        call: libc::SYS_ioctl,
        forms: &[&[Bits(1, ALL, libc::FIONREAD as u32)], &[Bits(1, ALL, SIOCGIFINDEX)]],
    },
];
/// Gets the index of a network interface (netdevice(7)), for an address such as `fe80::1%eth0`.
const SIOCGIFINDEX: u32 = 0x8933;

/// The calls that fork a child, with the flags that C libraries set, and those with which the child
/// confines itself.
const OWN_LIMITED: &[Limited] = &[
    Limited {
        call: libc::SYS_clone,
        forms: &[&[Bits(
            0,
            !(libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u32,
            libc::SIGCHLD as u32,
        )]],
    },
    Limited { call: libc::SYS_prctl, forms: &[&[Bits(0, ALL, libc::PR_SET_PDEATHSIG as u32)]] },
    // No flags. SECCOMP_FILTER_FLAG_NEW_LISTENER would let a process decide calls in the kernel's
    // place (seccomp_unotify(2)).
    Limited {
        call: libc::SYS_seccomp,
        forms: &[&[Bits(0, ALL, libc::SECCOMP_SET_MODE_FILTER), Bits(1, ALL, 0)]],
    },
    // The process may read its own limits and change none. If it runs as the relay's user, it could
    // otherwise limit the other processes of that user.
    Limited { call: libc::SYS_prlimit64, forms: &[&[Bits(0, ALL, 0), Null(2)]] },
];
