//! Who can read the file of `--key-file`: from its mode, its owner and its access control list.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::sys::{self, paths};

/// The users who can read the file, apart from root, the relay's user, and the user who starts it.
/// The last variant that applies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyReaders {
    /// No other user, or the file is a pipe.
    Nobody,
    /// A group.
    Group,
    /// This user, who owns the file or is in its access control list.
    User(u32),
    /// Every local user.
    Everyone,
}

impl KeyReaders {
    /// Finds out who can read the file. `user` is the uid of `--user`.
    pub fn of(file: &File, metadata: &Metadata, user: Option<u32>) -> KeyReaders {
        if !metadata.is_file() {
            return KeyReaders::Nobody;
        }
        let trusted = [0, sys::user_id(), user.unwrap_or(0)];
        let list = paths::access_list(file.as_fd());
        let access = Access { owner: metadata.uid(), mode: metadata.mode(), list: list.as_deref() };
        access.readers(&trusted)
    }

    /// A warning, if other users can read the file.
    pub fn warning(self, path: &Path) -> Option<String> {
        let path = path.display();
        Some(match self {
            KeyReaders::Nobody => return None,
            KeyReaders::Group => {
                format!("--key-file {path} can be read by its group; chmod g-r it")
            }
            KeyReaders::User(uid) => format!(
                "--key-file {path} can be read by user {uid}; make it a file of root's, or of the \
                 user's who starts the relay (chown, setfacl)"
            ),
            KeyReaders::Everyone => {
                format!("--key-file {path} can be read by every local user; chmod go-r it")
            }
        })
    }
}

/// The permission to read.
const READ: u32 = 4;

/// The facts by which the kernel decides.
struct Access<'a> {
    owner: u32,
    mode: u32,
    /// `system.posix_acl_access`. With it, the group's bits of the mode are the list's mask.
    list: Option<&'a [u8]>,
}

/// An entry of an access control list, in the form of `struct posix_acl_xattr_entry`.
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

impl Access<'_> {
    fn readers(&self, trusted: &[u32]) -> KeyReaders {
        let mut found = vec![KeyReaders::Nobody];
        if self.mode & READ != 0 {
            found.push(KeyReaders::Everyone);
        }
        // An owner can give every user the permission to read.
        if !trusted.contains(&self.owner) {
            found.push(KeyReaders::User(self.owner));
        }
        match self.list.and_then(entries) {
            None if self.mode & (READ << 3) != 0 => found.push(KeyReaders::Group),
            None => {}
            Some(entries) => {
                // Without a mask all permissions of the list apply.
                let mask = entries.iter().find(|entry| entry.tag == MASK);
                let mask = mask.map_or(u16::MAX, |mask| mask.permissions);
                let can_read = |entry: &&Entry| entry.permissions & mask & READ as u16 != 0;
                found.extend(entries.iter().filter(can_read).filter_map(|entry| match entry.tag {
                    USER if !trusted.contains(&entry.id) => Some(KeyReaders::User(entry.id)),
                    OWNING_GROUP | GROUP => Some(KeyReaders::Group),
                    _ => None,
                }));
            }
        }
        found.into_iter().max().unwrap_or(KeyReaders::Everyone)
    }
}

// Tags of entries (acl(5); `ACL_USER` and so on in linux/posix_acl.h).
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;

/// The entries of an access control list of version 2; `None` if it is another version's.
fn entries(list: &[u8]) -> Option<Vec<Entry>> {
    let (version, rest) = list.split_first_chunk()?;
    let entries = rest.as_chunks::<8>();
    if u32::from_le_bytes(*version) != 2 || !entries.1.is_empty() {
        return None;
    }
    let entry = |[a, b, c, d, id @ ..]: &[u8; 8]| Entry {
        tag: u16::from_le_bytes([*a, *b]),
        permissions: u16::from_le_bytes([*c, *d]),
        id: u32::from_le_bytes(*id),
    };
    Some(entries.0.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: u32 = 1_000;

    fn readers(owner: u32, mode: u32, list: Option<&[(u16, u16, u32)]>) -> KeyReaders {
        let list = list.map(|list| {
            let entry = |(tag, permissions, id): &(u16, u16, u32)| {
                [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            [2u32.to_le_bytes().to_vec(), list.iter().flat_map(entry).collect()].concat()
        });
        Access { owner, mode, list: list.as_deref() }.readers(&[0, OWNER])
    }

    #[test]
    fn the_mode_and_the_owner_say_who_can_read_it() {
        for owner in [0, OWNER] {
            assert_eq!(readers(owner, 0o600, None), KeyReaders::Nobody);
            assert_eq!(readers(owner, 0o633, None), KeyReaders::Nobody);
            assert_eq!(readers(owner, 0o640, None), KeyReaders::Group);
            assert_eq!(readers(owner, 0o604, None), KeyReaders::Everyone);
        }
        assert_eq!(readers(7, 0o640, None), KeyReaders::User(7));
        assert_eq!(readers(7, 0o000, None), KeyReaders::User(7));
        assert_eq!(readers(7, 0o644, None), KeyReaders::Everyone);
    }

    #[test]
    fn a_list_says_who_can_read_it() {
        let none = u32::MAX;
        let (own, group, mask) = ((0x01, 4, none), (0x04, 0, none), (0x10, 4, none));
        // As systemd makes a credential for its service: the mask looks like the group's right.
        let credential = [own, (0x02, 4, OWNER), group, mask, (0x20, 0, none)];
        assert_eq!(readers(0, 0o440, Some(&credential)), KeyReaders::Nobody);
        let other = [own, (0x02, 4, OWNER), (0x02, 4, 7), group, mask, (0x20, 0, none)];
        assert_eq!(readers(0, 0o440, Some(&other)), KeyReaders::User(7));
        let masked = [own, (0x02, 4, 7), group, (0x10, 3, none), (0x20, 0, none)];
        assert_eq!(readers(0, 0o430, Some(&masked)), KeyReaders::Nobody);
        for group in [(0x04, 4, none), (0x08, 4, 7)] {
            let list = [own, group, mask, (0x20, 0, none)];
            assert_eq!(readers(0, 0o440, Some(&list)), KeyReaders::Group);
        }
        let minimal = [own, (0x04, 4, none), (0x20, 4, none)];
        assert_eq!(readers(0, 0o444, Some(&minimal)), KeyReaders::Everyone);
        // What is not understood counts as no list.
        let access = Access { owner: 0, mode: 0o440, list: Some(&[3, 0, 0, 0]) };
        assert_eq!(access.readers(&[0]), KeyReaders::Group);
    }
}
