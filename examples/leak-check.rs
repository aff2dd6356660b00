//! `cargo run --release --example leak-check -- PID < KEYFILE`: searches the memory, the arguments
//! and the environment of a process for a secret, the first line of stdin. The process may be this
//! relay or any other program. Files that are mapped for reading only do not count, because the
//! process has made no copy of them.
//!
//! The exit status is 0 if the secret was not found, 1 if it or a piece of it was, and 2 if the
//! arguments are wrong or the memory cannot be read.

use std::io::{Read, stdin};
use std::process::ExitCode;

mod memory;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let pid = match &arguments[..] {
        [pid] => pid.parse().ok(),
        _ => None,
    };
    let mut secret = Vec::new();
    let read = pid.is_some() && stdin().lock().read_to_end(&mut secret).is_ok();
    let end = secret.iter().position(|byte| b"\r\n".contains(byte)).unwrap_or(secret.len());
    let secret = &secret[..end];
    let (Some(pid), true) = (pid, read && secret.len() >= memory::PIECE) else {
        eprintln!(
            "usage: leak-check PID < KEYFILE (12 bytes or more; the key that the process was given)"
        );
        return ExitCode::from(2);
    };
    let scan = match memory::scan(pid, &memory::Needles::new(secret)) {
        Ok(scan) => scan,
        Err(error) => {
            eprintln!("cannot read the memory of {pid}: {error} (run this as root)");
            return ExitCode::from(2);
        }
    };
    let hits: Vec<_> = scan.hits.iter().filter(|hit| !hit.is_of_file).collect();
    for hit in &hits {
        println!(
            "{} bytes of it, {}, at {:#x} in {}",
            hit.length, hit.form, hit.address, hit.place
        );
    }
    println!(
        "{} copies or pieces in {} KiB; {} KiB that not even root can read",
        hits.len(),
        scan.bytes / 1024,
        scan.refused / 1024
    );
    if hits.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
