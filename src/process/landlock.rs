//! The rights that Landlock takes away, by the version of its ABI (landlock(7)).

use super::sys::Rights;

/// `LANDLOCK_ACCESS_FS_READ_FILE`: read a file. The connector's lookups get this right back for the
/// files that they need.
pub const READ_FILE: u64 = 1 << 2;
/// `LANDLOCK_ACCESS_NET_BIND_TCP`: bind a TCP socket to a port.
pub const BIND_TCP: u64 = 1 << 0;
/// `LANDLOCK_ACCESS_NET_CONNECT_TCP`: connect a TCP socket to a port.
pub const CONNECT_TCP: u64 = 1 << 1;
/// Bind a UDP socket to a port.
pub const BIND_UDP: u64 = 1 << 2;
/// Connect a UDP socket to a port, or send to a port.
pub const CONNECT_SEND_UDP: u64 = 1 << 3;

/// The rights that each version adds to the version before it.
const ADDED: [Rights; 10] = [
    // 1 (Linux 5.13): execute, write, read, list, remove, and make files of each kind.
    Rights { files: (1 << 13) - 1, net: 0, scope: 0 },
    // 2 (5.19): LANDLOCK_ACCESS_FS_REFER.
    Rights { files: 1 << 13, net: 0, scope: 0 },
    // 3 (6.2): LANDLOCK_ACCESS_FS_TRUNCATE.
    Rights { files: 1 << 14, net: 0, scope: 0 },
    // 4 (6.7): TCP ports.
    Rights { files: 0, net: BIND_TCP | CONNECT_TCP, scope: 0 },
    // 5 (6.10): LANDLOCK_ACCESS_FS_IOCTL_DEV.
    Rights { files: 1 << 15, net: 0, scope: 0 },
    // 6 (6.12): abstract Unix sockets, and signals, of processes outside.
    Rights { files: 0, net: 0, scope: 1 << 0 | 1 << 1 },
    // 7 (6.15): flags for the audit log.
    Rights { files: 0, net: 0, scope: 0 },
    // 8 (7.0): a flag for all threads at once.
    Rights { files: 0, net: 0, scope: 0 },
    // 9 (7.1): LANDLOCK_ACCESS_FS_RESOLVE_UNIX.
    Rights { files: 1 << 16, net: 0, scope: 0 },
    // 10 (7.2): UDP ports.
    Rights { files: 0, net: BIND_UDP | CONNECT_SEND_UDP, scope: 0 },
];

/// The newest version whose rights this program knows.
pub const NEWEST: u32 = ADDED.len() as u32;

/// Every right that a kernel with this ABI version supports. Versions newer than [`NEWEST`] have
/// the rights of [`NEWEST`]. Version 0 has none.
pub fn rights(version: u32) -> Rights {
    let known = usize::try_from(version).unwrap_or(usize::MAX).min(ADDED.len());
    ADDED[..known].iter().fold(Rights { files: 0, net: 0, scope: 0 }, |all, added| Rights {
        files: all.files | added.files,
        net: all.net | added.net,
        scope: all.scope | added.scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `handled_access_fs`, `handled_access_net` and `scoped` are those of
    /// `<linux/landlock.h>`.
    #[test]
    fn each_version_takes_away_all_that_its_header_defines() {
        for (version, files, net, scope) in [
            (0, 0, 0, 0),
            (1, 0x1fff, 0, 0),
            (2, 0x3fff, 0, 0),
            (3, 0x7fff, 0, 0),
            (4, 0x7fff, 3, 0),
            (5, 0xffff, 3, 0),
            (6, 0xffff, 3, 3),
            (7, 0xffff, 3, 3),
            (8, 0xffff, 3, 3),
            (9, 0x1_ffff, 3, 3),
            (10, 0x1_ffff, 15, 3),
        ] {
            let rights = rights(version);
            assert_eq!((rights.files, rights.net, rights.scope), (files, net, scope), "{version}");
        }
    }

    #[test]
    fn a_version_that_is_not_known_is_used_as_the_newest_that_is() {
        let newest = rights(NEWEST);
        for version in [NEWEST + 1, u32::MAX] {
            let rights = rights(version);
            assert_eq!(
                (rights.files, rights.net, rights.scope),
                (newest.files, newest.net, newest.scope)
            );
        }
    }

    /// The kernel returns EINVAL for a right that it does not know. So this test fails if the table
    /// lists a right too early.
    #[test]
    fn this_kernel_takes_its_rights_and_none_more() {
        use super::super::sys::{Ruleset, landlock};
        let Ok(version) = landlock() else {
            eprintln!("skipped: this kernel has no Landlock");
            return;
        };
        assert!(Ruleset::new(&rights(version)).is_ok());
        if version < NEWEST && rights(version + 1).files != rights(version).files {
            assert!(Ruleset::new(&rights(version + 1)).is_err());
        }
        if version <= NEWEST {
            let mut more = rights(version);
            more.files |= more.files + 1;
            assert!(Ruleset::new(&more).is_err(), "a right on files is missing from {version}");
            let mut more = rights(version);
            more.net |= more.net + 1;
            assert!(Ruleset::new(&more).is_err(), "a right on ports is missing from {version}");
            let mut more = rights(version);
            more.scope |= more.scope + 1;
            assert!(Ruleset::new(&more).is_err(), "a scope is missing from {version}");
        }
    }
}
