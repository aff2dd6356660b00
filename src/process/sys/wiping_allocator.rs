//! The allocator of the program. In a process that asks for it, memory is wiped when it is freed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The system's allocator, which wipes what it frees once [`wipe_freed_memory`] has been called.
/// Libraries keep bytes that pass through them in memory of their own: rustls copies the plaintext of
/// each record that it receives.
pub struct WipingAllocator;

static IS_WIPING: AtomicBool = AtomicBool::new(false);

/// From here on this process wipes what it frees.
pub fn wipe_freed_memory() {
    IS_WIPING.store(true, Relaxed);
}

// Memory is asked for and freed in thousands of places: the functions are called, not inlined.
// SAFETY: the system's allocator does everything. Wiping writes only to memory that is about to be
// freed and that the caller has given up.
unsafe impl GlobalAlloc for WipingAllocator {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    #[inline(never)]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on as it came.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        // SAFETY: as the caller of this function says.
        unsafe { free(memory) }
    }

    #[inline(never)]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller of this function says.
        unsafe { reallocate(memory, layout, size) }
    }
}

/// Frees a block of the system's allocator. Its size is asked for here: thousands of places free
/// memory, and each would have to pass it.
///
/// # Safety
///
/// As [`GlobalAlloc::dealloc`].
#[inline(never)]
unsafe fn free(memory: *mut u8) {
    if IS_WIPING.load(Relaxed) {
        // SAFETY: the block is one of the system's allocator, and nothing refers to it any more. All
        // of its usable bytes belong to it.
        unsafe { wipe(memory, libc::malloc_usable_size(memory.cast())) };
    }
    // SAFETY: as above. [`System`] frees each block by free(3).
    unsafe { libc::free(memory.cast()) };
}

/// realloc(3), or a move to a new block, because realloc(3) would leave the old bytes behind.
///
/// # Safety
///
/// As [`GlobalAlloc::realloc`].
unsafe fn reallocate(memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    if !IS_WIPING.load(Relaxed) {
        // SAFETY: passed on as it came.
        return unsafe { System.realloc(memory, layout, size) };
    }
    // SAFETY: the size is not zero and does not overflow when it is rounded up to the alignment, as
    // the caller says.
    let new = unsafe { System.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
    if !new.is_null() {
        // SAFETY: both blocks have so many bytes, and they are different blocks.
        unsafe { ptr::copy_nonoverlapping(memory, new, layout.size().min(size)) };
        // SAFETY: the block is not used any more.
        unsafe { free(memory) };
    }
    new
}

/// Overwrites memory that its owner has given up. The compiler must not leave that out.
///
/// # Safety
///
/// The block has this size, and nothing refers to it.
unsafe fn wipe(memory: *mut u8, size: usize) {
    // SAFETY: as the caller says.
    unsafe { ptr::write_bytes(memory, 0, size) };
    black_box(memory);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In this process other tests run on other threads: what they free is wiped too.
    #[test]
    fn a_block_that_grows_or_shrinks_moves_and_keeps_its_bytes() {
        wipe_freed_memory();
        for (from, to) in [(64, 200), (200, 64), (8, 8)] {
            let layout = Layout::from_size_align(from, 8).unwrap();
            // SAFETY: a block of this layout, filled before it is read, and freed once.
            unsafe {
                let old = System.alloc(layout);
                ptr::write_bytes(old, 7, from);
                let new = reallocate(old, layout, to);
                assert!(!new.is_null() && new != old);
                let kept = std::slice::from_raw_parts(new, from.min(to));
                assert!(kept.iter().all(|byte| *byte == 7), "{from} to {to}");
                free(new);
            }
        }
    }

    #[test]
    fn memory_is_wiped_to_its_end() {
        let mut memory = [7; 100];
        // SAFETY: 98 of the bytes.
        unsafe { wipe(memory[1..].as_mut_ptr(), 98) };
        assert!(memory[0] == 7 && memory[99] == 7);
        assert!(memory[1..99].iter().all(|byte| *byte == 0));
    }
}
