//! Users that a user namespace does not map: the kernel reports one uid for all of them.

use std::fs;

use crate::http1::digits;

/// The overflow uid, unless `/proc/sys/kernel/overflowuid` contains another one.
const USUAL: u32 = 65_534;
/// The number of uids: every 32-bit number except the last, which means "none".
const ALL: u64 = u32::MAX as u64;

/// The uid that represents every user who is not mapped here. `None` if all users are mapped, as
/// they are outside of containers. Without `/proc`, unmapped users are assumed.
pub fn overflow_uid() -> Option<u32> {
    let map = fs::read("/proc/self/uid_map").unwrap_or_default();
    if is_complete(&map) {
        return None;
    }
    let uid = fs::read("/proc/sys/kernel/overflowuid").ok();
    let uid = uid.and_then(|text| digits::decimal(text.trim_ascii(), 10)?.try_into().ok());
    Some(uid.unwrap_or(USUAL))
}

/// The lines `inside outside count` cover every uid.
fn is_complete(map: &[u8]) -> bool {
    let count = |line: &[u8]| {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.nth(2).and_then(|word| digits::decimal(word, 10)).unwrap_or(0)
    };
    map.split(|byte| *byte == b'\n').map(count).fold(0, u64::saturating_add) >= ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_complete_when_no_uid_is_missing() {
        for (map, complete) in [
            ("         0          0 4294967295\n", true),
            ("0 0 1000\n1000 1000 4294966295\n", true),
            ("0 0 1000\n1001 1001 4294966294\n", false),
            ("         0       1000          1\n", false),
            ("0 1000 1\n1 100000 65536\n", false),
            ("", false),
            ("0 0 x\n", false),
        ] {
            assert_eq!(is_complete(map.as_bytes()), complete, "{map}");
        }
    }
}
