//! Reads the kernel's tables `/proc/net/tcp` and `tcp6` (proc_pid_net(5)) row by row.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt;

use super::socket::{Families, KernelSocket, LISTEN, Owner, canonical};
use crate::http1::digits;

/// The rows of both tables with one remote address, from one read.
pub struct Snapshot {
    rows: Vec<KernelSocket>,
}

impl Snapshot {
    /// Reads the tables.
    pub fn read(tables: &[File], other: SocketAddr) -> io::Result<Snapshot> {
        let mut rows = Vec::new();
        each_row(tables, Column::Other, other.port(), |socket| {
            if socket.other == other && socket.state != LISTEN {
                rows.push(socket);
            }
        })?;
        Ok(Snapshot { rows })
    }

    /// The owner of the socket when the tables were read.
    pub fn owner(&self, end: SocketAddr, other: SocketAddr) -> Owner {
        let (end, other) = (canonical(end), canonical(other));
        let mut rows = self.rows.iter();
        rows.find(|row| row.end == end && row.other == other)
            .map_or(Owner::Missing, KernelSocket::owner)
    }
}

/// A column of the tables. The number counts the colons before the port in a row.
#[derive(Clone, Copy)]
pub(super) enum Column {
    /// `local_address`
    End = 1,
    /// `rem_address`
    Other = 2,
}

/// Reads the tables from beginning to end, and calls `note` with each row that has this port in
/// this column. There may be tens of thousands of other rows. These are skipped unparsed.
pub(super) fn each_row(
    tables: &[File],
    column: Column,
    port: u16,
    mut note: impl FnMut(KernelSocket),
) -> io::Result<()> {
    let port = format!("{port:04X}");
    let is_meant = |line: &&[u8]| {
        let mut colons = line.iter().enumerate().filter(|(_, byte)| **byte == b':');
        let colon = colons.nth(column as usize);
        colon.is_some_and(|(at, _)| line[at + 1..].starts_with(port.as_bytes()))
    };
    for table in tables {
        let mut at = 0;
        let mut rest = Vec::new();
        let mut part = [0; 16 * 1024];
        loop {
            let len = table.read_at(&mut part, at)?;
            if len == 0 {
                break;
            }
            at += len as u64;
            rest.extend_from_slice(&part[..len]);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let lines = rest[..whole].split(|byte| *byte == b'\n');
            lines.filter(is_meant).filter_map(row).for_each(&mut note);
            rest.drain(..whole);
        }
    }
    Ok(())
}

/// Parses a line of `/proc/net/tcp` or `tcp6`. Returns `None` for any other line.
fn row(line: &[u8]) -> Option<KernelSocket> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next()?;
    let (end, other) = (address(words.next()?)?, address(words.next()?)?);
    let state = hex(words.next()?)?.try_into().ok()?;
    let user = digits::decimal(words.nth(3)?, 19)?.try_into().ok()?;
    let inode = digits::decimal(words.nth(1)?, 19)?;
    Some(KernelSocket { state, end, other, user, inode, takes: Families::Both })
}

/// Parses an address and a port, such as `0100007F:1F90`. The address is a sequence of 32-bit words
/// in the machine's byte order. The port is a plain hexadecimal number.
fn address(word: &[u8]) -> Option<SocketAddr> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    let word_at = |at: usize| hex(word[..colon].get(at..at + 8)?);
    let ip = match colon {
        8 => IpAddr::from(word_at(0)?.to_ne_bytes()),
        32 => {
            let mut octets = [0; 16];
            for (index, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&word_at(index * 8)?.to_ne_bytes());
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    let port = hex(&word[colon + 1..])?.try_into().ok()?;
    Some(canonical(SocketAddr::new(ip, port)))
}

/// Parses 1 to 8 hexadecimal digits.
fn hex(word: &[u8]) -> Option<u32> {
    if !(1..=8).contains(&word.len()) {
        return None;
    }
    word.iter().try_fold(0, |n, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(n << 4 | digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_line_is_read_as_the_kernel_writes_it() {
        let rest = |state: &str, inode: &str| {
            format!(
                "{state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 \
                 0000000000000000 20 4 0 10 -1"
            )
        };
        for (addresses, end, other) in [
            ("0100007F:9C40 0100007F:1F90", "127.0.0.1:40000", "127.0.0.1:8080"),
            (
                "0000000000000000FFFF00000100007F:9C40 0000000000000000FFFF00000100007F:1F90",
                "127.0.0.1:40000",
                "127.0.0.1:8080",
            ),
            (
                "00000000000000000000000001000000:9C40 00000000000000000000000001000000:1F90",
                "[::1]:40000",
                "[::1]:8080",
            ),
        ] {
            let (end, other) = (end.parse().unwrap(), other.parse().unwrap());
            let read = |state: &str, inode: &str| {
                let line = format!("   4: {addresses} {}", rest(state, inode));
                let row = row(line.as_bytes()).unwrap();
                assert_eq!((row.end, row.other), (end, other));
                row.owner()
            };
            assert_eq!(read("01", "77"), Owner::User(1000));
            assert_eq!(read("01", "0"), Owner::Unaccepted);
            assert_eq!(read("03", "0"), Owner::Unaccepted);
            assert_eq!(read("03", "77"), Owner::User(1000));
            assert_eq!(read("05", "77"), Owner::Closing);
            assert_eq!(read("02", "77"), Owner::Missing);
            assert_eq!(read("0A", "77"), Owner::Missing);
        }
        for line in ["  sl  local_address rem_address   st", "", " 1: 0:0 0:0 01"] {
            assert_eq!(row(line.as_bytes()), None);
        }
    }
}
