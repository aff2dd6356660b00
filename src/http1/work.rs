//! Counts steps of work in debug builds, so that tests and fuzz targets can bound the cost of a
//! head by its length. A step is about one byte or one field line read. Release builds count
//! nothing, and [`spent`] is always 0.

#[cfg(debug_assertions)]
std::thread_local! {
    static STEPS: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// Counts steps. Every loop of `http1` whose length a client or the upstream decides calls it.
#[inline(always)]
pub(super) fn spend(steps: usize) {
    #[cfg(debug_assertions)]
    STEPS.with(|all| all.set(all.get() + steps as u64));
    #[cfg(not(debug_assertions))]
    let _ = steps;
}

/// The steps that the caller's thread has counted so far.
pub fn spent() -> u64 {
    #[cfg(debug_assertions)]
    let steps = STEPS.with(core::cell::Cell::get);
    #[cfg(not(debug_assertions))]
    let steps = 0;
    steps
}
