//! Calendar dates, the timestamps of log lines and the Date of responses.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::http1::gather::HttpDate;

/// A moment as RFC 3339 in UTC with milliseconds: `2026-11-27T12:00:00.000Z`.
#[derive(Clone, Copy)]
pub struct Timestamp {
    seconds: u64,
    milliseconds: u32,
}

impl Timestamp {
    /// A moment by the system's clock. Moments before 1970 read as 1970.
    pub fn of(moment: SystemTime) -> Timestamp {
        let since_epoch = moment.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since_epoch.as_secs(), milliseconds: since_epoch.subsec_millis() }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.seconds / 86_400);
        let seconds = self.seconds % 86_400;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            self.milliseconds
        )
    }
}

/// Makes the value of the Date field. The system's clock is read once a second at most.
#[derive(Default)]
pub struct DateClock {
    due: Option<Instant>,
}

impl DateClock {
    /// The date, if a new second has begun since the last date was returned.
    pub fn renew(&mut self, now: Instant) -> Option<HttpDate> {
        if self.due.is_some_and(|due| now < due) {
            return None;
        }
        let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let passed = Duration::from_nanos(moment.subsec_nanos().into());
        self.due = Some(now + (Duration::from_secs(1) - passed));
        Some(http_date(moment.as_secs()))
    }
}

/// Formats seconds since 1970 as an HTTP date (RFC 9110 §5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.
/// Later years than 9999 become the last second of 9999.
fn http_date(seconds: u64) -> HttpDate {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const LAST: u64 = 253_402_300_799;
    let seconds = seconds.min(LAST);
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let mut two = |at: usize, number: u64| {
        text[at..at + 2].copy_from_slice(&[b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
    };
    two(5, day);
    two(12, year / 100);
    two(14, year % 100);
    two(17, seconds / 3600 % 24);
    two(20, seconds / 60 % 60);
    two(23, seconds % 60);
    text[..3].copy_from_slice(DAYS[(days % 7) as usize].as_bytes());
    text[8..11].copy_from_slice(MONTHS[month as usize - 1].as_bytes());
    text
}

/// Converts days since 1970-01-01 to year, month and day of the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin in March, so that the leap day is the last of its year.
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Converts year, month and day to days since 1970-01-01. Earlier dates become 0.
pub fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year.saturating_sub(u64::from(month <= 2));
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.saturating_sub(1);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_http_wants_it() {
        for (seconds, want) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&http_date(seconds)), Ok(want));
        }
    }

    #[test]
    fn the_date_is_renewed_when_its_second_has_passed_and_not_before() {
        let now = Instant::now();
        let mut clock = DateClock::default();
        assert!(clock.renew(now).is_some(), "at first");
        assert!(clock.renew(now).is_none(), "twice at one moment");
        let due = clock.due.unwrap();
        assert!(now < due && due <= now + Duration::from_secs(1));
        assert!(clock.renew(due - Duration::from_nanos(1)).is_none());
        assert!(clock.renew(due).is_some());
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (days, want) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_780, (2026, 11, 23)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), want);
            assert_eq!(super::days(want.0, want.1, want.2), days);
        }
    }
}
