//! Protection keys (pkeys(7)): pages on which every access faults, except while they are opened.
//!
//! The processor's PKRU register holds two bits for each key and belongs to the thread. New threads
//! and forked processes inherit its value; a signal handler starts with every key closed. aarch64
//! has a similar feature (POE), which is not used here.

use std::fmt;
use std::ops::{Deref, DerefMut};

use super::secret_pages::SecretPages;

/// What closes the key's pages between two uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageLock {
    /// A protection key.
    ProtectionKey,
    /// Nothing: the processor or the kernel has no protection keys, or a profile refuses them.
    Nothing,
}

impl fmt::Display for PageLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageLock::ProtectionKey => "key's pages closed but in use (protection key)",
            PageLock::Nothing => "no protection key (this machine has none)",
        })
    }
}

/// Secret pages that can be accessed through [`LockedPages::open`] alone, where the machine has
/// protection keys.
pub struct LockedPages {
    pages: SecretPages,
    // Fields are dropped in order: the key after the pages.
    key: Key,
}

impl LockedPages {
    /// Closes the pages. Without protection keys they stay open.
    pub fn new(pages: SecretPages) -> LockedPages {
        LockedPages { key: Key::of(&pages), pages }
    }

    /// What closes them.
    pub fn lock(&self) -> PageLock {
        if self.key.is_none() { PageLock::Nothing } else { PageLock::ProtectionKey }
    }

    /// Opens the pages to this thread until the returned guard is dropped. Start no thread and fork
    /// no process meanwhile: both would inherit the open pages.
    #[inline]
    pub fn open(&mut self) -> OpenPages<'_> {
        OpenPages { before: self.key.open(), pages: &mut self.pages }
    }
}

impl Drop for LockedPages {
    /// The pages wipe themselves next, and the key closes after that.
    fn drop(&mut self) {
        self.key.open();
    }
}

/// Pages that are open. Closes them when it goes.
pub struct OpenPages<'a> {
    pages: &'a mut SecretPages,
    before: Before,
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

    /// There is none.
    pub struct Key;
    pub struct Before;

    impl Key {
        pub fn of(_: &SecretPages) -> Key {
            Key
        }
        pub fn is_none(&self) -> bool {
            true
        }
        pub fn open(&self) -> Before {
            Before
        }
    }

    impl Before {
        pub fn restore(&self) {}
    }
}

#[cfg(target_arch = "x86_64")]
mod register {
    use std::arch::asm;
    use std::sync::OnceLock;

    use super::super::secret_pages::SecretPages;

    /// The process's one protection key, by the two bits of PKRU that deny reads and writes; zero
    /// where there is none.
    pub struct Key(u32);

    /// PKRU as it was before; `None` where nothing was changed.
    pub struct Before(Option<u32>);

    impl Key {
        /// Puts the pages under the key, closed.
        pub fn of(pages: &SecretPages) -> Key {
            static KEY: OnceLock<Option<u32>> = OnceLock::new();
            let number = *KEY.get_or_init(|| {
                const DISABLE_ACCESS: libc::c_ulong = 1;
                // SAFETY: no memory is involved. The call closes the new key to this thread; others
                // have every key closed from their beginning.
                let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0_u64, DISABLE_ACCESS) };
                u32::try_from(key).ok().filter(|key| (1..16).contains(key))
            });
            let Some(number) = number else {
                return Key(0);
            };
            match pages.tag(number) {
                Ok(()) => {
                    let key = Key(0b11 << (2 * number));
                    write(read() | key.0);
                    key
                }
                Err(_) => Key(0),
            }
        }

        pub fn is_none(&self) -> bool {
            self.0 == 0
        }

        #[inline]
        pub fn open(&self) -> Before {
            if self.0 == 0 {
                return Before(None);
            }
            let before = read();
            write(before & !self.0);
            Before(Some(before))
        }
    }

    impl Drop for Key {
        fn drop(&mut self) {
            if self.0 != 0 {
                write(read() | self.0);
            }
        }
    }

    impl Before {
        #[inline]
        pub fn restore(&self) {
            if let Some(before) = self.0 {
                write(before);
            }
        }
    }

    /// RDPKRU. Only where a protection key has been allocated: the instruction is known there.
    #[inline(always)]
    fn read() -> u32 {
        let value;
        // SAFETY: reads a register of this thread. ECX must be zero; EDX is cleared.
        unsafe {
            asm!("rdpkru", in("ecx") 0, out("eax") value, out("edx") _, options(nostack, preserves_flags));
        }
        value
    }

    /// WRPKRU. Only as [`read`].
    #[inline(always)]
    fn write(value: u32) {
        // SAFETY: changes which pages this thread may access, and those that become closed have no
        // reference into them that is still used. ECX and EDX must be zero. The compiler takes it
        // that the instruction reads and writes memory, and moves no access across it.
        unsafe {
            asm!("wrpkru", in("eax") value, in("ecx") 0, in("edx") 0, options(nostack, preserves_flags));
        }
    }
}

use register::{Before, Key};
