//! Memory for secrets: separate pages between two guard pages, which are wiped before they are
//! unmapped. Where the kernel has memfd_secret(2), no other process can read them.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

use libc::{c_int, c_void};

use super::machine::page_size;
use super::result::check;

/// The kind of memory that holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretMemory {
    /// memfd_secret(2): not even root can read it through `/proc/PID/mem`.
    MemfdSecret,
    /// Ordinary pages. They are locked in memory, left out of core dumps, and zeroed in a forked
    /// process.
    Locked,
}

/// Pages between two guard pages, on which every access faults. The first part of the pages can be
/// made read-only. Dropping the pages wipes them.
pub struct SecretPages {
    /// The start of the first guard page.
    start: NonNull<c_void>,
    /// The size of a page in bytes.
    page: usize,
    /// Bytes between the guard pages.
    len: usize,
    /// How many of these bytes are read-only, from the first on.
    read_only: usize,
    memory: SecretMemory,
}

impl SecretPages {
    /// Maps at least `len` zeroed bytes. Fails if the kernel provides neither secret nor locked
    /// memory.
    pub fn new(len: usize) -> io::Result<SecretPages> {
        SecretPages::of(page_size(), len)
    }

    /// As [`SecretPages::new`], with pages of `page` bytes: the kernel's page size or a multiple of
    /// it.
    pub fn of(page: usize, len: usize) -> io::Result<SecretPages> {
        let len = len.next_multiple_of(page);
        let whole = len + 2 * page;
        // SAFETY: a new anonymous mapping, at an address that the kernel chooses, changes no other
        // memory.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on, dropping `pages` unmaps the whole reservation.
        let mut pages =
            SecretPages { start, page, len, read_only: 0, memory: SecretMemory::MemfdSecret };
        if pages.map_secret().is_err() {
            pages.memory = SecretMemory::Locked;
            pages.map_locked()?;
        }
        Ok(pages)
    }

    /// The number of bytes between the guard pages, a multiple of the page size.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes between the guard pages.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of memory of these pages.
    pub fn memory(&self) -> SecretMemory {
        self.memory
    }

    /// The size of a page in bytes.
    pub fn page(&self) -> usize {
        self.page
    }

    /// The address of the first byte after the first guard page.
    fn data(&self) -> *mut u8 {
        self.start.as_ptr().cast::<u8>().wrapping_add(self.page)
    }

    /// Maps memory of memfd_secret(2) between the guard pages.
    fn map_secret(&mut self) -> io::Result<()> {
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = check(c_int::try_from(fd).unwrap_or(-1))?;
        // SAFETY: the descriptor has just been created, and no other code owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let len = libc::off_t::try_from(self.len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: this sets the size of the memory behind our own descriptor.
        check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) })?;
        self.map(libc::MAP_SHARED, fd.as_raw_fd())?;
        // A forked process must not inherit the pages.
        // SAFETY: the range has just been mapped.
        check(unsafe { libc::madvise(self.data().cast(), self.len, libc::MADV_DONTFORK) })?;
        Ok(())
    }

    /// Maps ordinary locked memory between the guard pages.
    fn map_locked(&mut self) -> io::Result<()> {
        self.map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
        // SAFETY: the range has just been mapped.
        check(unsafe { libc::mlock(self.data().cast(), self.len) })?;
        for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
            // SAFETY: as above. Neither advice changes the bytes that this process reads.
            check(unsafe { libc::madvise(self.data().cast(), self.len, advice) })?;
        }
        Ok(())
    }

    /// Replaces the pages between the guard pages.
    fn map(&mut self, flags: c_int, fd: RawFd) -> io::Result<()> {
        // SAFETY: MAP_FIXED replaces pages of our own reservation and nothing else, before any
        // reference into them exists.
        let mapped = unsafe {
            libc::mmap(
                self.data().cast(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags | libc::MAP_FIXED,
                fd,
                0,
            )
        };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The bytes between the guard pages.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the pages are mapped readable for as long as self lives, initialised by the
        // kernel, and changed only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.data(), self.len) }
    }

    /// The bytes after the read-only part, for writing.
    pub fn writable(&mut self) -> &mut [u8] {
        // SAFETY: the range is inside the mapping. It comes after the read-only part, so it is
        // writable. `&mut self` excludes every other reference.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.data().add(self.read_only),
                self.len - self.read_only,
            )
        }
    }

    /// The read-only bytes, and the bytes after them for writing.
    pub fn split_mut(&mut self) -> (&[u8], &mut [u8]) {
        // SAFETY: the two ranges are inside the mapping and do not overlap. The second is writable.
        // `&mut self` excludes every other reference.
        unsafe {
            (
                std::slice::from_raw_parts(self.data(), self.read_only),
                std::slice::from_raw_parts_mut(
                    self.data().add(self.read_only),
                    self.len - self.read_only,
                ),
            )
        }
    }

    /// Assigns the pages to this protection key. Their other permissions stay as they are.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tag(&self, key: u32) -> io::Result<()> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let ranges = [(0, self.read_only, libc::PROT_READ), (self.read_only, self.len, both)];
        for (start, end, protection) in ranges.into_iter().filter(|(start, end, _)| start < end) {
            // SAFETY: the range is inside the mapping, and its permissions stay as they were.
            let result = unsafe {
                let at = self.data().add(start);
                libc::syscall(libc::SYS_pkey_mprotect, at, end - start, protection, key)
            };
            check(c_int::try_from(result).unwrap_or(-1))?;
        }
        Ok(())
    }

    /// Makes the first `len` bytes, a whole number of pages, read-only. They count as read-only
    /// even after an error: no code writes to them until [`SecretPages::make_writable`].
    pub fn make_read_only(&mut self, len: usize) -> io::Result<()> {
        assert!(len.is_multiple_of(self.page) && len <= self.len);
        self.read_only = len;
        // SAFETY: this removes write permission from our own pages; no reference into them exists.
        check(unsafe { libc::mprotect(self.data().cast(), len, libc::PROT_READ) }).map(|_| ())
    }

    /// Makes all pages writable again.
    pub fn make_writable(&mut self) -> io::Result<()> {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: this gives write permission to our own pages; no reference into them exists.
        check(unsafe { libc::mprotect(self.data().cast(), self.len, both) })?;
        self.read_only = 0;
        Ok(())
    }
}

/// Wipes the pages, then unmaps them.
impl Drop for SecretPages {
    fn drop(&mut self) {
        if self.make_writable().is_ok() {
            zeroize::Zeroize::zeroize(self.writable());
        }
        // SAFETY: this unmaps our own pages; no reference into them exists.
        unsafe { libc::munmap(self.start.as_ptr(), self.len + 2 * self.page) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::mem::ManuallyDrop;

    use super::*;

    /// Has the kernel read one byte at this address, as an access of the process itself would.
    fn read_at(address: *const u8) -> io::Result<()> {
        let (_reader, writer) = io::pipe()?;
        // SAFETY: the kernel checks the address itself and reports EFAULT for one that cannot be
        // read.
        check(unsafe { libc::write(writer.as_raw_fd(), address.cast(), 1) } as c_int).map(|_| ())
    }

    /// Has the kernel write one zero byte at this address.
    fn write_at(address: *mut u8) -> io::Result<()> {
        let (reader, mut writer) = io::pipe()?;
        writer.write_all(&[0])?;
        // SAFETY: the kernel checks the address itself and reports EFAULT for one that cannot be
        // written. The test hands over addresses in pages of its own to which no reference exists.
        check(unsafe { libc::read(reader.as_raw_fd(), address.cast(), 1) } as c_int).map(|_| ())
    }

    fn is_fault(result: io::Result<()>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
    }

    #[test]
    fn both_neighbours_of_the_pages_are_guard_pages() {
        for len in [1, page_size(), page_size() + 1] {
            let pages = SecretPages::new(len).unwrap();
            assert!(pages.len() >= len && pages.len().is_multiple_of(pages.page()));
            let (first, last) = (pages.data(), pages.data().wrapping_add(pages.len() - 1));
            write_at(first).unwrap();
            write_at(last).unwrap();
            let guards = [
                first.wrapping_sub(pages.page()),
                first.wrapping_sub(1),
                last.wrapping_add(1),
                last.wrapping_add(pages.page()),
            ];
            for guard in guards {
                assert!(is_fault(read_at(guard)) && is_fault(write_at(guard)), "{len} bytes");
            }
        }
    }

    #[test]
    fn read_only_pages_can_be_read_and_not_written() {
        let page = page_size();
        let mut pages = SecretPages::new(2 * page).unwrap();
        pages.writable().fill(7);
        pages.make_read_only(page).unwrap();
        let (read_only, writable) = (pages.data(), pages.data().wrapping_add(page));
        read_at(read_only).unwrap();
        assert!(is_fault(write_at(read_only)) && is_fault(write_at(writable.wrapping_sub(1))));
        write_at(writable).unwrap();
        assert_eq!(pages.writable().len(), page);
        let (read_only, writable) = pages.split_mut();
        assert_eq!((read_only, &writable[..2]), (&vec![7; page][..], &[0, 7][..]));
    }

    #[test]
    fn a_change_to_read_only_that_the_kernel_refuses_is_an_error() {
        let page = page_size();
        // The second and third page of the address space: nothing is ever mapped there, and so
        // mprotect(2) fails.
        let start = NonNull::new(ptr::without_provenance_mut(page)).unwrap();
        let memory = SecretMemory::Locked;
        let mut pages =
            ManuallyDrop::new(SecretPages { start, page, len: page, read_only: 0, memory });
        let error = pages.make_read_only(page).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn dropped_pages_have_been_wiped_read_only_or_not() {
        let page = page_size();
        for read_only in [0, page, 2 * page] {
            // SAFETY: the kernel reads a name and makes a descriptor.
            let fd = check(unsafe { libc::memfd_create(c"pages".as_ptr(), libc::MFD_CLOEXEC) });
            // SAFETY: the descriptor has just been created, and no other code owns it.
            let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd.unwrap()) });
            file.set_len(2 * page as u64).unwrap();
            let mut content = Vec::new();
            let mut read = |file: &mut File| {
                content.clear();
                file.rewind().unwrap();
                file.read_to_end(&mut content).unwrap();
                content.clone()
            };
            let mut pages = SecretPages::new(2 * page).unwrap();
            // Shared with a file, the pages can still be looked at when they are gone.
            pages.map(libc::MAP_SHARED, file.as_raw_fd()).unwrap();
            pages.writable().fill(7);
            pages.make_read_only(read_only).unwrap();
            assert!(read(&mut file) == vec![7; 2 * page]);
            drop(pages);
            assert!(read(&mut file) == vec![0; 2 * page], "{read_only} bytes were read-only");
        }
    }
}
