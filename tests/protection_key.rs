//! The key's pages are closed between uses, where the processor has protection keys. Elsewhere
//! these tests say that they are skipped; `tests/pku.sh` runs them under qemu-system, which
//! emulates them.
#![cfg(target_arch = "x86_64")]

use std::io::{IoSlice, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicPtr, Ordering};

use codex_responses_api_proxy::process::credential::{Credential, KeyForm, SearchPosition};
use codex_responses_api_proxy::process::key_ring::{KeyRing, LineForm, TakenKey, Terms};
use codex_responses_api_proxy::process::sys::ProtectionKey;

const KEY: &[u8] = b"sk-proj-Qx7fK2mN9vB4cZ1aLw8eRt5yU3iO6pS0dHgJkXbVnMqWzTyRuEoPaIsD";

/// How a child ends whose access was refused by a protection key, refused otherwise, or let
/// through.
const REFUSED: i32 = 44;
const OTHER_FAULT: i32 = 45;
const LET_THROUGH: i32 = 46;

const WAYS: [&str; 8] =
    ["read", "write", "read tables", "read after use", "rotation", "thread", "handler", "kernel"];

const PREFIX: &[u8] = b"POST / HTTP/1.1\r\nAuthorization: Bearer ";

fn keys() -> KeyRing {
    let mut key = KEY;
    let read = |buffer: &mut [u8]| std::io::Read::read(&mut key, buffer);
    match Credential::read(PREFIX, KeyForm::Word, read) {
        Ok(credential) => KeyRing::fixed(credential),
        Err(error) => panic!("{error}"),
    }
}

/// The key is the second that was read.
fn rotated_keys() -> KeyRing {
    let lines = [b"sk-the-first-of-two-keys\n", KEY, b"\n"].concat();
    let mut lines = &lines[..];
    let mut read = |buffer: &mut [u8]| std::io::Read::read(&mut lines, &mut buffer[..30]);
    let terms = Terms { max_age: None, line: LineForm::Key };
    let Ok(mut keys) = KeyRing::rotating(PREFIX, KeyForm::Word, terms, &mut read) else {
        panic!("no first key");
    };
    while keys.take().key != Some(TakenKey::Fresh) {
        assert!(keys.read(&mut read).is_ok_and(|n| n > 0), "no second key");
    }
    keys
}

/// What is done while the pages are open.
struct Sink(fn());

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(bytes.windows(KEY.len()).any(|window| window == KEY), "no key in the record");
        (self.0)();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// First and last byte of what has a protection key.
fn tagged_pages() -> Option<(*mut u8, *mut u8)> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let (mut range, mut first, mut last) = ((0, 0), None, 0);
    for line in smaps.lines() {
        let word = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = word.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (number(start), number(end)) {
                range = (start, end);
            }
        } else if word == "ProtectionKey:" && line.split_whitespace().nth(1) != Some("0") {
            first.get_or_insert(range.0);
            last = range.1 - 1;
        }
    }
    Some((
        std::ptr::with_exposed_provenance_mut(first?),
        std::ptr::with_exposed_provenance_mut(last),
    ))
}

static FIRST: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    const SEGV_PKUERR: i32 = 4;
    // SAFETY: the kernel gives a siginfo_t; _exit may be called in a handler.
    unsafe { libc::_exit(if (*info).si_code == SEGV_PKUERR { REFUSED } else { OTHER_FAULT }) }
}

extern "C" fn on_signal(_: i32) {
    read(FIRST.load(Ordering::Relaxed));
}

fn read(at: *const u8) {
    // SAFETY: the byte is mapped. The access is expected to fault.
    unsafe { at.read_volatile() };
}

/// Tries one way to get at the pages, in a process of its own.
#[test]
#[ignore = "a child of the test below"]
fn child() {
    let way = std::env::var("WAY").expect("a way");
    let mut keys = keys();
    if keys.protection_key() == ProtectionKey::Missing {
        assert_eq!(tagged_pages(), None);
        return;
    }
    let (first, last) = tagged_pages().expect("pages with a protection key");
    FIRST.store(first, Ordering::Relaxed);
    // SAFETY: both handlers do nothing that a handler may not do.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = on_fault as *const () as usize;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
        libc::signal(libc::SIGUSR1, on_signal as *const () as usize);
    }
    let body = [IoSlice::new(b"body")];
    match way.as_str() {
        "read" => read(first),
        // SAFETY: the byte is mapped and writable. The access is expected to fault.
        "write" => unsafe { last.write_volatile(1) },
        "read tables" => read(last),
        "read after use" => {
            let mut position = SearchPosition::default();
            assert!(!keys.reflected(&mut position, b"nothing of it"));
            assert!(keys.reflected(&mut position, KEY));
            keys.current().splice_into(&body, &mut Sink(|| ())).expect("taken");
            let failing = keys.current().splice_into(&body, &mut &mut [0_u8; 1][..]);
            assert!(failing.is_err());
            read(first);
        }
        "rotation" => {
            drop(keys);
            let mut keys = rotated_keys();
            keys.current().splice_into(&body, &mut Sink(|| ())).expect("taken");
            read(tagged_pages().expect("pages with a protection key").0);
        }
        "thread" => {
            let first = FIRST.load(Ordering::Relaxed).expose_provenance();
            let thread = std::thread::spawn(move || read(std::ptr::with_exposed_provenance(first)));
            thread.join().expect("ended");
        }
        "handler" => {
            // SAFETY: runs the handler, while the pages are open to the thread that it interrupts.
            let raise = || unsafe { assert_eq!(libc::raise(libc::SIGUSR1), 0) };
            keys.current().splice_into(&body, &mut Sink(raise)).expect("taken");
        }
        _ => {
            let (_reader, writer) = std::io::pipe().expect("pipe");
            // SAFETY: the kernel refuses to read the pages.
            let n =
                unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), first.cast(), 1) };
            let refused =
                n == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
            std::process::exit(if refused { REFUSED } else { LET_THROUGH });
        }
    }
    std::process::exit(LET_THROUGH);
}

#[test]
fn the_keys_pages_are_closed_but_in_use() {
    let program = std::env::current_exe().expect("this program");
    let protection_key = keys().protection_key();
    let has_keys = std::fs::read_to_string("/proc/cpuinfo")
        .is_ok_and(|text| text.split_whitespace().any(|word| word == "ospke"));
    assert_eq!(
        protection_key == ProtectionKey::InForce,
        has_keys,
        "the kernel's word and the processor's"
    );
    for way in WAYS {
        let child = Command::new(&program)
            .args(["--exact", "child", "--ignored", "--test-threads", "1"])
            .env("WAY", way)
            .output()
            .expect("runs");
        let want = if has_keys { Some(REFUSED) } else { Some(0) };
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), want, "{way}: {:?} {said}", child.status.signal());
    }
    if !has_keys {
        eprintln!("skipped: this processor has no protection keys; tests/pku.sh emulates one");
    }
}
