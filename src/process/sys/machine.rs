//! Facts about the machine, the kernel and the calling thread, and random bytes.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use super::result::check;

/// The size of the kernel's pages in bytes.
pub fn page_size() -> usize {
    // SAFETY: no memory is involved.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// The first two numbers of the kernel's version.
pub fn kernel_version() -> Option<(u32, u32)> {
    let mut name = MaybeUninit::<libc::utsname>::uninit();
    // SAFETY: the kernel fills one struct that outlives the call.
    check(unsafe { libc::uname(name.as_mut_ptr()) }).ok()?;
    // SAFETY: the kernel has filled it.
    let name = unsafe { name.assume_init() };
    let mut numbers = name.release.split(|c| !(*c as u8).is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u32, |n, c| n.wrapping_mul(10).wrapping_add(u32::from(*c as u8 - b'0')))
    });
    Some((numbers.next()?, numbers.next()?))
}

/// The id of the calling thread.
pub fn thread_id() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::gettid() as u32 }
}

/// The time since the machine started, including the time it was suspended. Linux provides this
/// without a system call.
pub fn time_since_boot() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills one struct that no other code refers to.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Fills `bytes` with random bytes. getrandom(2) waits until the kernel's generator is seeded.
pub fn random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most `len` bytes into memory that no other code refers to.
        let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => bytes = &mut bytes[n..],
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Runs `work`, compiled for 32-byte vectors (AVX2) if the processor has them. Only code that is
/// inlined into `work` gains from this.
#[inline]
pub fn with_wide_vectors<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { wide(work) };
        }
    }
    work()
}
