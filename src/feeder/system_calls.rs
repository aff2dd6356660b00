//! The system calls of the feeder, on x86_64 and aarch64, with glibc and with musl: those of the
//! relay's loop without listening, accepting and files. Any other call kills the process.
//! `SECURITY.md` explains the list.

use libc::c_long;

use crate::process::filter::{Layer, Otherwise};
use crate::process::system_calls::{
    ABORT, Allowed, COMMON, Condition, DEBUG_CALLS, FAST_OPEN, LOOP_X86, Limited, MEMORY,
    RunTimeNumber, is, lacks, option,
};

/// The one layer of the feeder's filter.
pub(super) const LAYERS: &[Layer<'_>] = &[Layer { allowed: &FEEDER, otherwise: Otherwise::Kill }];

const FEEDER: Allowed = Allowed {
    any: &[COMMON, CALLS, LOOP_X86],
    limited: &[MEMORY, ABORT, SOCKETS, TABLES, DEBUG_CALLS],
};

const CALLS: &[c_long] = &[
    // Reads netlink responses.
    libc::SYS_read,
    // Sends on sockets. This call takes no address.
    libc::SYS_writev,
    // Receives from sockets.
    libc::SYS_recvfrom,
    // Waits for readiness and for the time of the next renewal.
    libc::SYS_epoll_pwait,
    // Closes connections that have ended.
    libc::SYS_close,
    // Finds the two addresses of a connection.
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    // TLS, and the pauses between attempts, need random numbers.
    libc::SYS_getrandom,
];

const SOCKETS: &[Limited] = &[
    // Asks a connector, and tells the relay. The address is null, so the data goes where the socket
    // already leads.
    Limited { call: libc::SYS_sendto, forms: &[&[lacks(3, FAST_OPEN), Condition::Null(4)]] },
    // Adds a socket, or stderr, to the poll, or removes it.
    Limited {
        call: libc::SYS_epoll_ctl,
        forms: &[&[is(1, libc::EPOLL_CTL_ADD)], &[is(1, libc::EPOLL_CTL_DEL)]],
    },
    // Receives the connectors' replies, and the sockets that come with them.
    Limited {
        call: libc::SYS_recvmsg,
        forms: &[&[is(2, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT)]],
    },
    // Resets a connection.
    Limited { call: libc::SYS_setsockopt, forms: &[&option(libc::SOL_SOCKET, libc::SO_LINGER)] },
    // Sets the time of the next renewal, from now.
    Limited { call: libc::SYS_timerfd_settime, forms: &[&[is(1, 0), Condition::Null(3)]] },
];

const TABLES: &[Limited] = &[
    // Finds the owner of a socket (`--upstream-uid`) where netlink cannot be used.
    Limited {
        call: libc::SYS_pread64,
        forms: &[&[Condition::AtRunTime(0, RunTimeNumber::SocketTables)]],
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::filter::{Descriptors, probe};

    #[test]
    fn a_filter_says_what_its_list_says() {
        for tables in [[None, None], [Some(7), Some(8)]] {
            let descriptors = Descriptors { server_info: None, socket_tables: [tables; 2] };
            probe::says_what_the_lists_say(LAYERS, &descriptors, 320);
        }
    }

    #[test]
    fn no_call_is_allowed_in_any_form_and_limited_too() {
        for limited in FEEDER.limited.iter().copied().flatten() {
            assert!(!FEEDER.any.iter().copied().flatten().any(|call| *call == limited.call));
            assert!(!limited.forms.is_empty());
        }
    }
}
