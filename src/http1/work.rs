//! Counts steps of work in debug builds, so that tests and fuzz targets can hold the cost of a head to
//! its length. A step is about one byte or one field line looked at. In release builds nothing is
//! counted and [`spent`] is always 0.

#[cfg(debug_assertions)]
std::thread_local! {
    static STEPS: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// Counts these steps. Every loop of this room whose length a peer decides calls it.
#[inline(always)]
pub(super) fn spend(steps: usize) {
    #[cfg(debug_assertions)]
    STEPS.with(|all| all.set(all.get() + steps as u64));
    #[cfg(not(debug_assertions))]
    let _ = steps;
}

/// Steps counted by the caller's thread so far.
pub fn spent() -> u64 {
    #[cfg(debug_assertions)]
    let steps = STEPS.with(core::cell::Cell::get);
    #[cfg(not(debug_assertions))]
    let steps = 0;
    steps
}
