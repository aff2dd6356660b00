//! `cargo run --release --example leak-check -- PID MARKER`: does a secret stand in the memory of a
//! process, in its arguments or its environment? Of this relay or of any other program.

use std::process::ExitCode;

mod memory;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (pid, marker) = match &arguments[..] {
        [pid, marker] => (pid.parse().ok(), marker.as_bytes()),
        _ => (None, &[][..]),
    };
    let (Some(pid), true) = (pid, marker.len() >= memory::PIECE) else {
        eprintln!(
            "usage: leak-check PID MARKER (12 bytes or more; the key that the process was given)"
        );
        return ExitCode::from(2);
    };
    let scan = match memory::scan(pid, &memory::Needles::new(marker)) {
        Ok(scan) => scan,
        Err(error) => {
            eprintln!("cannot read the memory of {pid}: {error} (run this as root)");
            return ExitCode::from(2);
        }
    };
    for hit in &scan.hits {
        println!(
            "{} bytes of it, {}, at {:#x} in {}",
            hit.length, hit.form, hit.address, hit.place
        );
    }
    println!(
        "{} copies or pieces in {} KiB; {} KiB that not even root can read",
        scan.hits.len(),
        scan.bytes / 1024,
        scan.refused / 1024
    );
    if scan.hits.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
