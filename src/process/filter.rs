//! The lists of system calls made into filters, with the numbers that only a running process knows.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::confine::Thread;
use super::sys;
use super::system_calls::{self, Allowed, Condition, Known};

/// Descriptors that the filters name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptors {
    /// The server-info file, which is emptied at the end.
    pub server_info: Option<RawFd>,
    /// The kernel's tables of sockets: those that are asked about clients, and about the upstream.
    pub socket_tables: [[Option<RawFd>; 2]; 2],
}

/// The filter of a thread, made by it. `None`: the lists are wrong, which a test finds.
pub fn of(thread: Thread, descriptors: &Descriptors) -> Option<BpfProgram> {
    let (allowed, otherwise) = match thread {
        Thread::Loop => (&system_calls::LOOP, SeccompAction::KillProcess),
        Thread::Log => (&system_calls::LOG, SeccompAction::KillProcess),
    };
    compile(allowed, otherwise, descriptors)
}

/// The filter that allows these, and otherwise does that. `None`: the list is wrong.
pub fn compile(
    allowed: &Allowed,
    otherwise: SeccompAction,
    descriptors: &Descriptors,
) -> Option<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    SeccompFilter::new(rules(allowed, descriptors)?, otherwise, SeccompAction::Allow, architecture)
        .ok()?
        .try_into()
        .ok()
}

fn rules(allowed: &Allowed, descriptors: &Descriptors) -> Option<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules = BTreeMap::new();
    for call in allowed.any.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    for limited in allowed.limited.iter().copied().flatten() {
        for form in limited.forms {
            for conditions in filled_in(form, descriptors)? {
                let rule = SeccompRule::new(conditions).ok()?;
                rules.entry(limited.call).or_insert_with(Vec::new).push(rule);
            }
        }
    }
    Some(rules)
}

/// The form with the numbers that are known now: once for each value, and not at all where
/// there is none.
fn filled_in(form: &[Condition], descriptors: &Descriptors) -> Option<Vec<Vec<SeccompCondition>>> {
    let mut filled = vec![Vec::new()];
    for condition in form {
        let (argument, length, mask, values) = match *condition {
            Condition::Bits(argument, mask, value) => {
                (argument, SeccompCmpArgLen::Dword, u64::from(mask), vec![value])
            }
            Condition::Null(argument) => (argument, SeccompCmpArgLen::Qword, u64::MAX, vec![0]),
            Condition::Known(argument, known) => {
                (argument, SeccompCmpArgLen::Dword, u64::from(u32::MAX), values(known, descriptors))
            }
        };
        let fits = SeccompCmpOp::MaskedEq(mask);
        let mut longer = Vec::new();
        for value in values {
            let condition =
                SeccompCondition::new(argument, length.clone(), fits.clone(), value.into());
            let condition = condition.ok()?;
            for form in &filled {
                longer.push([form.as_slice(), std::slice::from_ref(&condition)].concat());
            }
        }
        filled = longer;
    }
    Some(filled)
}

fn values(known: Known, descriptors: &Descriptors) -> Vec<u32> {
    let numbers =
        |fds: &[Option<RawFd>]| fds.iter().flatten().map(|fd| fd.cast_unsigned()).collect();
    match known {
        Known::ServerInfo => numbers(&[descriptors.server_info]),
        Known::SocketTables => numbers(descriptors.socket_tables.as_flattened()),
        Known::Process => vec![std::process::id()],
        Known::Thread => vec![sys::thread_id()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter() {
        for descriptors in [
            Descriptors::default(),
            Descriptors { server_info: Some(7), socket_tables: [[Some(8), Some(9)], [None; 2]] },
        ] {
            for thread in [Thread::Loop, Thread::Log] {
                let filter = of(thread, &descriptors).unwrap();
                assert!(filter.len() > 20, "{thread:?}");
            }
        }
    }

    #[test]
    fn no_call_is_allowed_in_any_form_and_limited_too() {
        for allowed in [&system_calls::LOOP, &system_calls::LOG] {
            for limited in allowed.limited.iter().copied().flatten() {
                assert!(!allowed.any.iter().copied().flatten().any(|call| *call == limited.call));
                assert!(!limited.forms.is_empty());
            }
        }
    }

    #[test]
    fn a_form_that_names_what_is_not_there_allows_nothing() {
        let rules = |descriptors: &Descriptors| rules(&system_calls::LOOP, descriptors).unwrap();
        let none = rules(&Descriptors::default());
        assert!(!none.contains_key(&libc::SYS_ftruncate) && !none.contains_key(&libc::SYS_pread64));
        let descriptors =
            Descriptors { server_info: Some(7), socket_tables: [[Some(8), Some(9)], [None; 2]] };
        let all = rules(&descriptors);
        assert_eq!(all[&libc::SYS_ftruncate].len(), 1);
        assert_eq!(all[&libc::SYS_pread64].len(), 2, "one for each table");
    }
}
