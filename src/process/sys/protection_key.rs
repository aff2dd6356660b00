//! Protection keys (pkeys(7)): pages on which every access faults, except while they are open.
//!
//! The processor's PKRU register holds two bits for each key and belongs to the thread. New threads
//! and forked processes inherit its value. A signal handler starts with every key but key 0 closed.
//! aarch64 has a similar feature (POE), which is not used here.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::secret_pages::SecretPages;

/// Whether a protection key closes the key's pages between two uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionKey {
    /// The pages are closed between two uses.
    InForce,
    /// The pages stay open: the processor or the kernel has no protection keys, or a seccomp
    /// profile refuses them.
    Missing,
}

impl fmt::Display for ProtectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProtectionKey::InForce => "key's pages closed except in use (protection key)",
            ProtectionKey::Missing => "no protection key (this machine has none)",
        })
    }
}

/// Secret pages that can be accessed only through [`ProtectedPages::open`], where the machine has
/// protection keys.
pub struct ProtectedPages {
    pages: SecretPages,
    // Fields are dropped in order, so the pages are wiped before the key closes.
    key: Pkey,
}

impl ProtectedPages {
    /// Closes the pages. Without protection keys they stay open.
    pub fn new(pages: SecretPages) -> ProtectedPages {
        ProtectedPages { key: Pkey::of(&pages), pages }
    }

    /// Whether a protection key closes the pages.
    pub fn protection_key(&self) -> ProtectionKey {
        if self.key.is_none() { ProtectionKey::Missing } else { ProtectionKey::InForce }
    }

    /// Opens the pages to this thread until the returned guard is dropped. Start no thread and fork
    /// no process in the meantime: both would inherit access to the pages.
    #[inline]
    pub fn open(&mut self) -> OpenPages<'_> {
        OpenPages { before: self.key.open(), pages: &mut self.pages }
    }
}

impl Drop for ProtectedPages {
    /// Opens the pages, so that their own drop can wipe them. After that the key is as it was:
    /// other pages may be open.
    fn drop(&mut self) {
        self.key.open_until_drop();
    }
}

/// Open pages. Dropping this closes them.
pub struct OpenPages<'a> {
    pages: &'a mut SecretPages,
    before: SavedPkru,
}

impl Deref for OpenPages<'_> {
    type Target = SecretPages;

    #[inline]
    fn deref(&self) -> &SecretPages {
        self.pages
    }
}

impl DerefMut for OpenPages<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut SecretPages {
        self.pages
    }
}

impl Drop for OpenPages<'_> {
    #[inline]
    fn drop(&mut self) {
        self.before.restore();
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod register {
    use super::super::secret_pages::SecretPages;

    /// This architecture has no protection key.
    pub(crate) struct Pkey;
    pub(crate) struct SavedPkru;

    impl Pkey {
        pub(crate) fn of(_: &SecretPages) -> Pkey {
            Pkey
        }
        pub(crate) fn is_none(&self) -> bool {
            true
        }
        pub(crate) fn open(&self) -> SavedPkru {
            SavedPkru
        }
        pub(crate) fn open_until_drop(&mut self) {}
    }

    impl SavedPkru {
        pub(crate) fn restore(&self) {}
    }
}

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;
    use std::sync::OnceLock;

    use super::super::secret_pages::SecretPages;

    /// The process's protection key, as the two bits of PKRU that deny reads and writes. Zero if
    /// there is no key.
    pub(super) struct Pkey {
        bits: u32,
        /// The value that is restored when this is dropped.
        saved: SavedPkru,
    }

    /// The value of PKRU before a change. `None` if nothing was changed.
    pub(super) struct SavedPkru(Option<u32>);

    impl Pkey {
        const NONE: Pkey = Pkey { bits: 0, saved: SavedPkru(None) };

        /// Assigns the pages to the key, and closes them.
        pub(super) fn of(pages: &SecretPages) -> Pkey {
            static KEY: OnceLock<Option<u32>> = OnceLock::new();
            let number = *KEY.get_or_init(|| {
                const DISABLE_ACCESS: libc::c_ulong = 1;
                // SAFETY: no memory is involved. The call closes the new key to this thread. Other
                // threads have every key but key 0 closed from their start.
                let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0_u64, DISABLE_ACCESS) };
                u32::try_from(key).ok().filter(|key| (1..16).contains(key))
            });
            let Some(number) = number else {
                return Pkey::NONE;
            };
            match pages.tag(number) {
                Ok(()) => {
                    let bits = 0b11 << (2 * number);
                    write(read() | bits);
                    Pkey { bits, saved: SavedPkru(None) }
                }
                Err(_) => Pkey::NONE,
            }
        }

        pub(super) fn is_none(&self) -> bool {
            self.bits == 0
        }

        #[inline]
        pub(super) fn open(&self) -> SavedPkru {
            if self.bits == 0 {
                return SavedPkru(None);
            }
            let before = read();
            write(before & !self.bits);
            SavedPkru(Some(before))
        }

        pub(super) fn open_until_drop(&mut self) {
            self.saved = self.open();
        }
    }

    impl Drop for Pkey {
        fn drop(&mut self) {
            self.saved.restore();
        }
    }

    impl SavedPkru {
        #[inline]
        pub(super) fn restore(&self) {
            if let Some(before) = self.0 {
                write(before);
            }
        }
    }

    /// RDPKRU. Call this only after a protection key has been allocated: then the processor has
    /// this instruction.
    #[inline(always)]
    fn read() -> u32 {
        let value;
        // SAFETY: this reads a register of this thread. ECX must be zero; EDX is cleared.
        unsafe {
            asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nostack, preserves_flags));
        }
        value
    }

    /// WRPKRU. The condition of [`read`] holds here too.
    #[inline(always)]
    fn write(value: u32) {
        // SAFETY: this changes which pages this thread may access. No reference into pages that
        // become closed is used any more. ECX and EDX must be zero. The compiler assumes that the
        // instruction reads and writes memory, and moves no access across it.
        unsafe {
            asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
        }
    }
}

use register::{Pkey, SavedPkru};
