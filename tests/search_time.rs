//! What the search for the key costs tells nothing of how much of the key a text holds. Every
//! instruction is counted, by a trap behind each: that works where no performance counters are, and
//! with the key in secret pages.
#![cfg(target_arch = "x86_64")]

use std::sync::atomic::{AtomicU64, Ordering};

use codex_responses_api_proxy::process::credential::{Credential, KeyForm, SearchPosition};
use codex_responses_api_proxy::process::key_ring::KeyRing;

/// The end of one piece of a response, and the next.
struct Case {
    name: String,
    before: Vec<u8>,
    piece: Vec<u8>,
}

/// Something that no key holds.
const FILL: u8 = b'.';

/// A key of this length.
fn key(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[(state >> 58) as usize]
    };
    (0..len).map(|_| letter()).collect()
}

/// All that a hostile text can do short of a whole window of `width` bytes, one every `stride`:
/// pieces of `size` bytes, of which the first is always that of a text without any of the key.
fn cases(key: &[u8], width: usize, stride: usize, size: usize) -> Vec<Case> {
    let nothing = Case { name: "nothing".into(), before: vec![FILL; 40], piece: vec![FILL; size] };
    let mut cases = vec![nothing];
    // A beginning of the key at the end of a piece, and its next letter or another in the next
    // piece.
    let n = width - 2;
    for (letter, name) in [(key[n], "right"), (key[n] ^ 1, "wrong")] {
        let before = [&vec![FILL; 40 - n], &key[..n]].concat();
        let piece = [&[letter][..], &vec![FILL; size - 1]].concat();
        cases.push(Case { name: format!("{n} letters and a {name} one"), before, piece });
    }
    // A window of the key except for one byte, at a place where windows begin.
    for different in [0, width - 1] {
        let mut piece = vec![FILL; size];
        piece[stride..stride + width].copy_from_slice(&key[..width]);
        piece[stride + different] ^= 1;
        let name = format!("a window but for byte {different}");
        cases.push(Case { name, before: vec![FILL; 40], piece });
    }
    cases
}

fn credential(mut key: &[u8]) -> Credential {
    let read = |buffer: &mut [u8]| std::io::Read::read(&mut key, buffer);
    match Credential::read(b"POST / HTTP/1.1\r\nAuthorization: Bearer ", KeyForm::Word, read) {
        Ok(credential) => credential,
        Err(error) => panic!("{error}"),
    }
}

static STEPS: AtomicU64 = AtomicU64::new(0);

extern "C" fn step(_: libc::c_int) {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// Sets or clears the flag upon which the processor traps behind each instruction.
fn trap(each: bool) {
    // SAFETY: changes one flag of this thread; the signal that follows from it has a handler.
    unsafe {
        match each {
            true => std::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq"),
            false => std::arch::asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq"),
        }
    }
}

/// Instructions of the search in each case's piece.
fn count(key: &[u8], cases: &[Case]) -> Vec<u64> {
    let mut keys = KeyRing::fixed(credential(key));
    let mut search = |case: &Case| {
        let mut position = SearchPosition::default();
        let before = keys.reflected(&mut position, &case.before);
        STEPS.store(0, Ordering::Relaxed);
        trap(true);
        let found = keys.reflected(&mut position, &case.piece);
        trap(false);
        assert!(!before && !found, "what must not be found was: {}", case.name);
        STEPS.load(Ordering::Relaxed)
    };
    // At first, what the processor can do is looked up.
    search(&cases[0]);
    cases.iter().map(search).collect()
}

#[test]
fn the_search_takes_the_same_instructions_however_much_of_the_key_a_text_holds() {
    let step: extern "C" fn(libc::c_int) = step;
    // SAFETY: the handler does no more than add to a number.
    unsafe { libc::signal(libc::SIGTRAP, step as *const () as libc::sighandler_t) };
    for (len, width, stride) in [(164, 20, 12), (40, 16, 8)] {
        let key = key(len);
        let cases = cases(&key, width, stride, stride + width + 3);
        // Whether a window's hash collides with one of the key's depends on the random factor of
        // each key that is read. What is seen with each of three is from the text.
        let mut least = vec![u64::MAX; cases.len()];
        for _ in 0..3 {
            let counts = count(&key, &cases);
            least.iter_mut().zip(counts).for_each(|(a, b)| *a = b.min(*a));
            if least.iter().all(|count| *count == least[0]) {
                break;
            }
        }
        assert!(least[0] > 50, "{} instructions", least[0]);
        for (case, count) in cases.iter().zip(&least) {
            assert_eq!(*count, least[0], "key of {len}: {}", case.name);
        }
    }
}
