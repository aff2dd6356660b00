//! The report that the connector sends once: whether it is confined, and what it read back from the
//! kernel.

use super::wire::Malformed;
use crate::process::confine::ReadBack;
use crate::process::harden::HardenError;
use crate::process::protections::ProcessProtections;
use crate::process::status::Status;
use crate::process::sys::Sealed;

/// Bytes of a report: exit code, flags, uid, number of groups, capabilities, bounding set. Numbers
/// are in native byte order.
pub const REPORT: usize = 2 + 4 + 4 + 8 + 8;

const HAS_STATUS: u8 = 1 << 0;
const NO_NEW_PRIVILEGES: u8 = 1 << 1;
const SECCOMP: u8 = 1 << 2;
const LANDLOCK_DENIES: u8 = 1 << 3;
const RELRO: u8 = 1 << 4;
const MSEAL: u8 = 1 << 5;
const NO_EXECUTABLE_MEMORY: u8 = 1 << 6;

/// Encodes a report. After a failure the message holds only the exit code; after a success the exit
/// code is 0 and the other fields follow.
pub fn encode(result: &Result<ProcessProtections, HardenError>) -> [u8; REPORT] {
    let mut message = [0; REPORT];
    let confined = match result {
        Ok(confined) => confined,
        Err(error) => {
            message[0] = error.exit_code();
            return message;
        }
    };
    let status = confined.read_back.status.unwrap_or_default();
    let flags = [
        (HAS_STATUS, confined.read_back.status.is_some()),
        (NO_NEW_PRIVILEGES, status.no_new_privileges),
        (SECCOMP, status.seccomp),
        (LANDLOCK_DENIES, confined.read_back.landlock_denies),
        (RELRO, confined.sealed.relro),
        (MSEAL, confined.sealed.mseal),
        (NO_EXECUTABLE_MEMORY, confined.executable_memory_denied),
    ];
    message[1] = flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag).sum();
    message[2..6].copy_from_slice(&confined.uid.to_ne_bytes());
    let groups = u32::try_from(status.groups).unwrap_or(u32::MAX);
    message[6..10].copy_from_slice(&groups.to_ne_bytes());
    message[10..18].copy_from_slice(&status.capabilities.to_ne_bytes());
    message[18..].copy_from_slice(&status.bounding.to_ne_bytes());
    message
}

/// Decodes a report. Fields that a report does not carry are `None` or 0. Fails when the length or
/// the exit code is wrong.
pub fn decode(message: &[u8]) -> Result<Result<ProcessProtections, HardenError>, Malformed> {
    let message: &[u8; REPORT] = message.try_into().map_err(|_| Malformed)?;
    let (code, flags) = (message[0], message[1]);
    if code != 0 {
        return HardenError::of_exit_code(code).map(Err).ok_or(Malformed);
    }
    let has = |flag| flags & flag != 0;
    let short = |at: usize| message[at..at + 4].try_into().map_or(u32::MAX, u32::from_ne_bytes);
    let long = |at: usize| message[at..at + 8].try_into().map_or(u64::MAX, u64::from_ne_bytes);
    let status = Status {
        no_new_privileges: has(NO_NEW_PRIVILEGES),
        seccomp: has(SECCOMP),
        filters: None,
        capabilities: long(10),
        bounding: long(18),
        groups: short(6) as usize,
        tracer: 0,
    };
    Ok(Ok(ProcessProtections {
        uid: short(2),
        read_back: ReadBack {
            status: has(HAS_STATUS).then_some(status),
            landlock_denies: has(LANDLOCK_DENIES),
        },
        sealed: Sealed { relro: has(RELRO), mseal: has(MSEAL) },
        executable_memory_denied: has(NO_EXECUTABLE_MEMORY),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reported_is_understood() {
        let status = Status {
            no_new_privileges: true,
            seccomp: true,
            capabilities: 1 << 40,
            bounding: 0x1ff_ffff_ffff,
            groups: 3,
            ..Status::default()
        };
        for flags in 0..32u8 {
            let is = |at: u8| flags & 1 << at != 0;
            let confined = ProcessProtections {
                uid: 65_520,
                read_back: ReadBack { status: is(0).then_some(status), landlock_denies: is(1) },
                sealed: Sealed { relro: is(2), mseal: is(3) },
                executable_memory_denied: is(4),
            };
            assert_eq!(decode(&encode(&Ok(confined))), Ok(Ok(confined)));
        }
        let failed = Err(HardenError::Landlock);
        assert_eq!(decode(&encode(&failed)), Ok(failed));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        let mut message = encode(&Err(HardenError::Seccomp));
        message[0] = 200;
        assert_eq!(decode(&message), Err(Malformed));
        assert_eq!(decode(&message[1..]), Err(Malformed));
        assert_eq!(decode(&[]), Err(Malformed));
    }
}
