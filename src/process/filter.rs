//! Compiles the lists of allowed system calls into seccomp filters, with the process ids and
//! descriptors that only a running process knows.
//!
//! A filter is a program of classic BPF. When a filter is put in force, the kernel checks it,
//! compiles it, and runs it once for every system call number. Its length and the steps of one run
//! are therefore paid at every start. The numbers form a binary tree: a run takes about ten steps
//! for any call.
//!
//! ```text
//!  another architecture → kill
//!  number ≥ middle? ──► right half            number = a? → allow
//!  left half             │                    number = b? → first form, second form, …, otherwise
//!   └─ … leaves of a few numbers ───────────► otherwise
//! ```

use std::io;
use std::os::fd::RawFd;

use libc::{c_long, sock_filter};

use super::sys;
use super::system_calls::{self, Allowed, Condition, RunTimeNumber};

/// The threads of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event loop, which holds the key.
    Loop,
    /// The thread that writes access log lines.
    Log,
}

/// Descriptors that the filters compare with the arguments of system calls. A descriptor that is
/// `None` is allowed no such call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptors {
    /// The server-info file, which the relay empties when it ends.
    pub server_info: Option<RawFd>,
    /// The files of `/proc/net`: first the pair that describes clients (`--allow-uid`), then the
    /// pair that describes the upstream (`--upstream-uid`).
    pub socket_tables: [[Option<RawFd>; 2]; 2],
}

/// The effect of a call that a list does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// The kernel kills the process.
    Kill,
    /// The call fails with EPERM.
    Refuse,
}

/// A list of allowed calls, and the effect of every other call. A call must pass every layer of a
/// filter. The first layer that does not allow the call decides.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// The list of allowed calls.
    pub allowed: &'a Allowed,
    /// The effect of a call that is not on the list.
    pub otherwise: Otherwise,
}

/// A compiled filter.
pub struct Filter(Vec<sock_filter>);

/// Builds the filter of a thread. Returns `None` if a list is malformed, which a test rules out.
pub fn of(thread: Thread, descriptors: &Descriptors) -> Option<Filter> {
    let allowed = match thread {
        Thread::Loop => &system_calls::LOOP,
        Thread::Log => &system_calls::LOG,
    };
    compile(&[Layer { allowed, otherwise: Otherwise::Kill }], descriptors)
}

/// Builds a filter from these layers, outermost first. Returns `None` if there is no layer or a
/// list is malformed.
pub fn compile(layers: &[Layer], descriptors: &Descriptors) -> Option<Filter> {
    let outermost = layers.first()?.allowed;
    // The tree contains only the numbers of the first layer. Every other number has the effect of
    // that layer.
    let mut numbers: Vec<c_long> = outermost.any.iter().copied().flatten().copied().collect();
    numbers.extend(outermost.limited.iter().copied().flatten().map(|limited| limited.call));
    numbers.sort_unstable();
    numbers.dedup();
    let mut calls = Vec::with_capacity(numbers.len());
    for number in numbers {
        calls.push((u32::try_from(number).ok()?, verdict(layers, number, descriptors)?));
    }
    let mut program = vec![
        load(ARCHITECTURE_AT),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0)?,
        end(Verdict::Otherwise(Otherwise::Kill)),
        load(NUMBER_AT),
    ];
    program.extend(tree(&calls, layers.first()?.otherwise)?);
    Some(Filter(program))
}

impl Filter {
    /// Puts the filter in force for the calling thread and for threads that this thread starts
    /// later.
    pub fn put_in_force(&self) -> io::Result<()> {
        sys::filter_thread(&self.0)
    }
}

/// The decision on one call number.
enum Decision {
    ByNumber(Verdict),
    /// Instructions that compare the arguments. Every path through them ends with a verdict.
    ByArguments(Vec<sock_filter>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Otherwise(Otherwise),
}

/// Decides on a call number, layer by layer.
fn verdict(layers: &[Layer], number: c_long, descriptors: &Descriptors) -> Option<Decision> {
    let Some((layer, rest)) = layers.split_first() else {
        return Some(Decision::ByNumber(Verdict::Allow));
    };
    let otherwise = Verdict::Otherwise(layer.otherwise);
    if layer.allowed.any.iter().copied().flatten().any(|call| *call == number) {
        return verdict(rest, number, descriptors);
    }
    let limited = layer.allowed.limited.iter().copied().flatten();
    let mut forms = Vec::new();
    for form in limited.filter(|limited| limited.call == number).flat_map(|limited| limited.forms) {
        forms.extend(filled_in(form, descriptors));
    }
    if forms.is_empty() {
        return Some(Decision::ByNumber(otherwise));
    }
    // These instructions follow a form that matches.
    let fits = match verdict(rest, number, descriptors)? {
        Decision::ByNumber(verdict) => vec![end(verdict)],
        Decision::ByArguments(instructions) => instructions,
    };
    let mut instructions = vec![end(otherwise)];
    for form in forms.iter().rev() {
        let mut ahead = fits.clone();
        for comparison in form.iter().rev() {
            // A comparison that fails skips the rest of its form, so the next form is tried.
            let mut asked = vec![load(comparison.at)];
            if comparison.mask != u32::MAX {
                asked.push(instruction(libc::BPF_ALU | libc::BPF_AND, comparison.mask));
            }
            asked.push(jump(libc::BPF_JEQ, comparison.value, 0, ahead.len())?);
            ahead.splice(0..0, asked);
        }
        ahead.append(&mut instructions);
        instructions = ahead;
    }
    Some(Decision::ByArguments(instructions))
}

/// One comparison of 32 bits of `struct seccomp_data` (seccomp(2)).
#[derive(Clone, Copy)]
struct Comparison {
    at: u32,
    mask: u32,
    value: u32,
}

/// Expands a form to comparisons with the numbers that are known now. The result has one form for
/// each combination of values, and none where a number does not exist.
fn filled_in(form: &[Condition], descriptors: &Descriptors) -> Vec<Vec<Comparison>> {
    let mut filled = vec![Vec::new()];
    for condition in form {
        let alternatives: Vec<Vec<Comparison>> = match *condition {
            Condition::Bits(argument, mask, value) => {
                vec![vec![Comparison { at: low(argument), mask, value }]]
            }
            Condition::Null(argument) => {
                let half = |at| Comparison { at, mask: u32::MAX, value: 0 };
                vec![vec![half(low(argument)), half(low(argument) + 4)]]
            }
            Condition::AtRunTime(argument, known) => {
                let one = |value| vec![Comparison { at: low(argument), mask: u32::MAX, value }];
                values(known, descriptors).into_iter().map(one).collect()
            }
        };
        let longer = alternatives.iter().flat_map(|alternative| {
            filled.iter().map(move |form: &Vec<Comparison>| [form.as_slice(), alternative].concat())
        });
        filled = longer.collect();
    }
    filled
}

fn values(number: RunTimeNumber, descriptors: &Descriptors) -> Vec<u32> {
    let numbers =
        |fds: &[Option<RawFd>]| fds.iter().flatten().map(|fd| fd.cast_unsigned()).collect();
    match number {
        RunTimeNumber::ServerInfo => numbers(&[descriptors.server_info]),
        RunTimeNumber::SocketTables => numbers(descriptors.socket_tables.as_flattened()),
        RunTimeNumber::Process => vec![std::process::id()],
        RunTimeNumber::Thread => vec![sys::thread_id()],
    }
}

/// The most numbers that a leaf of the tree compares one after the other.
const LEAF: usize = 6;

/// Builds instructions that search for the number, which has been loaded, and end with its verdict.
fn tree(calls: &[(u32, Decision)], otherwise: Otherwise) -> Option<Vec<sock_filter>> {
    if calls.len() <= LEAF {
        return leaf(calls, otherwise);
    }
    let (left, right) = calls.split_at(calls.len() / 2);
    let middle = right.first()?.0;
    let (left, right) = (tree(left, otherwise)?, tree(right, otherwise)?);
    let mut instructions = match jump(libc::BPF_JGE, middle, left.len(), 0) {
        Some(near) => vec![near],
        None => vec![jump(libc::BPF_JGE, middle, 0, 1)?, jump_far(left.len())?],
    };
    instructions.extend(left);
    instructions.extend(right);
    Some(instructions)
}

fn leaf(calls: &[(u32, Decision)], otherwise: Otherwise) -> Option<Vec<sock_filter>> {
    let mut instructions = Vec::new();
    let verdicts = [
        Verdict::Allow,
        Verdict::Otherwise(Otherwise::Refuse),
        Verdict::Otherwise(Otherwise::Kill),
    ];
    // The last instruction is the verdict for all other numbers.
    let last = Verdict::Otherwise(otherwise);
    for verdict in verdicts.into_iter().filter(|verdict| *verdict != last) {
        let known = |(number, decision): &(u32, Decision)| {
            matches!(decision, Decision::ByNumber(known) if *known == verdict).then_some(*number)
        };
        let numbers: Vec<u32> = calls.iter().filter_map(known).collect();
        // A number that matches jumps to the verdict behind the last number. If the last number
        // does not match either, that verdict is skipped.
        for (nth, number) in numbers.iter().enumerate() {
            let behind = numbers.len() - 1 - nth;
            instructions.push(jump(libc::BPF_JEQ, *number, behind, usize::from(behind == 0))?);
        }
        if !numbers.is_empty() {
            instructions.push(end(verdict));
        }
    }
    for (number, decision) in calls {
        if let Decision::ByArguments(forms) = decision {
            instructions.push(jump(libc::BPF_JEQ, *number, 0, forms.len())?);
            instructions.extend(forms);
        }
    }
    instructions.push(end(last));
    Some(instructions)
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data`, in bytes.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// The offset of the lower 32 bits of an argument.
const fn low(argument: u8) -> u32 {
    const { assert!(cfg!(target_endian = "little")) }
    ARGUMENTS_AT + 8 * argument as u32
}

/// Loads 32 bits of `struct seccomp_data` from this offset.
fn load(at: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)
}

/// Ends the run of the filter with a verdict.
fn end(verdict: Verdict) -> sock_filter {
    let value = match verdict {
        Verdict::Allow => libc::SECCOMP_RET_ALLOW,
        Verdict::Otherwise(Otherwise::Kill) => libc::SECCOMP_RET_KILL_PROCESS,
        Verdict::Otherwise(Otherwise::Refuse) => {
            libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()
        }
    };
    instruction(libc::BPF_RET | libc::BPF_K, value)
}

/// Compares the loaded value with `value`. Skips `fits` instructions if the comparison holds, and
/// `fits_not` otherwise. Returns `None` if a count exceeds 255, the most that one instruction can
/// encode.
fn jump(comparison: u32, value: u32, fits: usize, fits_not: usize) -> Option<sock_filter> {
    let mut jump = instruction(libc::BPF_JMP | comparison | libc::BPF_K, value);
    (jump.jt, jump.jf) = (u8::try_from(fits).ok()?, u8::try_from(fits_not).ok()?);
    Some(jump)
}

/// Skips this many instructions unconditionally.
fn jump_far(passed: usize) -> Option<sock_filter> {
    Some(instruction(libc::BPF_JMP | libc::BPF_JA, u32::try_from(passed).ok()?))
}

const fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Compares filters with the lists that they are built from.
#[cfg(test)]
pub(crate) mod probe {
    use super::*;

    pub(crate) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    pub(crate) const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
    pub(crate) const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned();

    /// Runs a filter as the kernel does. Returns the verdict and the number of steps.
    pub(crate) fn run(
        filter: &Filter,
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    ) -> (u32, usize) {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&architecture.to_le_bytes());
        for (place, argument) in data[16..].chunks_mut(8).zip(arguments) {
            place.copy_from_slice(&argument.to_le_bytes());
        }
        let (mut at, mut loaded, mut steps) = (0, 0_u32, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter.0[at];
            (at, steps) = (at + 1, steps + 1);
            const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
            const AND: u32 = libc::BPF_ALU | libc::BPF_AND;
            const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ;
            const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE;
            const FAR: u32 = libc::BPF_JMP | libc::BPF_JA;
            match u32::from(code) {
                LOAD => {
                    let word = data[k as usize..].first_chunk().unwrap();
                    loaded = u32::from_le_bytes(*word);
                }
                AND => loaded &= k,
                EQUAL => at += usize::from(if loaded == k { jt } else { jf }),
                AT_LEAST => at += usize::from(if loaded >= k { jt } else { jf }),
                FAR => at += k as usize,
                libc::BPF_RET => return (k, steps),
                other => panic!("instruction {other:x}"),
            }
        }
    }

    /// Reads the verdict from the lists, without a filter.
    fn said(layers: &[Layer], number: u32, arguments: [u64; 6], descriptors: &Descriptors) -> u32 {
        let fits = |condition: &Condition| match *condition {
            Condition::Bits(argument, mask, value) => {
                arguments[usize::from(argument)] as u32 & mask == value
            }
            Condition::Null(argument) => arguments[usize::from(argument)] == 0,
            Condition::AtRunTime(argument, known) => {
                values(known, descriptors).contains(&(arguments[usize::from(argument)] as u32))
            }
        };
        for Layer { allowed, otherwise } in layers {
            let number = c_long::from(number);
            let any = allowed.any.iter().copied().flatten().any(|call| *call == number);
            let mut limited = allowed.limited.iter().copied().flatten();
            let in_a_form = limited.any(|limited| {
                limited.call == number && limited.forms.iter().any(|form| form.iter().all(fits))
            });
            if !any && !in_a_form {
                return match otherwise {
                    Otherwise::Kill => KILL,
                    Otherwise::Refuse => REFUSE,
                };
            }
        }
        ALLOW
    }

    /// Returns the arguments of every form of a call, and each of them with one bit changed.
    fn probes(layers: &[Layer], number: u32, descriptors: &Descriptors) -> Vec<[u64; 6]> {
        let lists = layers.iter().flat_map(|layer| layer.allowed.limited.iter().copied().flatten());
        let forms = lists.filter(|limited| limited.call == c_long::from(number));
        let forms = forms.flat_map(|limited| limited.forms);
        let fitting = forms.flat_map(|form| filled_in(form, descriptors)).map(|form| {
            let mut arguments = [0; 6];
            for Comparison { at, value, .. } in form {
                let (argument, high) = ((at - ARGUMENTS_AT) / 8, at % 8 == 4);
                arguments[argument as usize] |= u64::from(value) << if high { 32 } else { 0 };
            }
            arguments
        });
        let mut probes = vec![[0; 6], [u64::MAX; 6]];
        for arguments in fitting {
            probes.push(arguments);
            for bit in 0..6 * 64 {
                let mut changed = arguments;
                changed[bit / 64] ^= 1 << (bit % 64);
                probes.push(changed);
            }
        }
        probes
    }

    /// Compares a filter with its lists for every number and the arguments that matter. Each
    /// instruction costs about half a microsecond at every start, so the number of instructions is
    /// bounded.
    #[track_caller]
    pub(crate) fn says_what_the_lists_say(
        layers: &[Layer],
        descriptors: &Descriptors,
        longest: usize,
    ) {
        let filter = compile(layers, descriptors).unwrap();
        assert!(filter.0.len() <= longest, "{} instructions", filter.0.len());
        let mut most = 0;
        for number in (0..1024).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            for arguments in probes(layers, number, descriptors) {
                let (found, steps) = run(&filter, ARCHITECTURE, number, arguments);
                let want = said(layers, number, arguments, descriptors);
                assert_eq!(found, want, "call {number} with {arguments:x?}");
                most = most.max(steps);
            }
            assert_eq!(run(&filter, 0x4000_0003, number, [0; 6]).0, KILL, "another architecture");
        }
        assert!(most < 60, "{most} steps");
    }
}

#[cfg(test)]
mod tests {
    use super::probe::{ALLOW, KILL, REFUSE, run, says_what_the_lists_say};
    use super::*;
    use crate::process::system_calls::Limited;

    const DESCRIPTORS: Descriptors =
        Descriptors { server_info: Some(7), socket_tables: [[Some(8), Some(9)], [None; 2]] };

    #[test]
    fn a_filter_says_what_its_lists_say() {
        for descriptors in [Descriptors::default(), DESCRIPTORS] {
            for (allowed, longest) in [(&system_calls::LOOP, 190), (&system_calls::LOG, 115)] {
                let otherwise = Otherwise::Kill;
                says_what_the_lists_say(&[Layer { allowed, otherwise }], &descriptors, longest);
            }
        }
    }

    /// One call of each kind in each of two layers.
    #[test]
    fn the_first_layer_that_a_call_fails_decides() {
        const BIT: &[Condition] = &[Condition::Bits(0, 1, 1)];
        const ZERO: &[Condition] = &[Condition::Null(5)];
        const fn limited(call: c_long, forms: &'static [&'static [Condition]]) -> Limited {
            Limited { call, forms }
        }
        const OUTER: Allowed = Allowed {
            any: &[&[0, 1, 2, 500]],
            limited: &[&[limited(3, &[BIT]), limited(4, &[BIT, ZERO]), limited(5, &[ZERO])]],
        };
        const INNER: Allowed = Allowed {
            any: &[&[0, 3, 6]],
            limited: &[&[limited(1, &[BIT, ZERO]), limited(4, &[ZERO]), limited(7, &[BIT])]],
        };
        let outer = Layer { allowed: &OUTER, otherwise: Otherwise::Kill };
        let inner = Layer { allowed: &INNER, otherwise: Otherwise::Refuse };
        let none = Descriptors::default();
        says_what_the_lists_say(&[outer, inner], &none, 80);
        says_what_the_lists_say(&[inner, outer], &none, 80);
        let filter = compile(&[outer, inner], &none).unwrap();
        for (number, first, want) in
            [(0, 0, ALLOW), (1, 1, ALLOW), (2, 0, REFUSE), (3, 0, KILL), (6, 0, KILL)]
        {
            let arguments = [first, 0, 0, 0, 0, 1];
            assert_eq!(run(&filter, ARCHITECTURE, number, arguments).0, want, "call {number}");
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
        let filters = [Descriptors::default(), DESCRIPTORS]
            .map(|descriptors| of(Thread::Loop, &descriptors).unwrap());
        let [none, all] = filters.map(|filter| {
            [(libc::SYS_ftruncate, 7), (libc::SYS_pread64, 8), (libc::SYS_pread64, 9)].map(
                |(call, file)| run(&filter, ARCHITECTURE, call as u32, [file, 0, 0, 0, 0, 0]).0,
            )
        });
        assert_eq!((none, all), ([KILL; 3], [ALLOW; 3]));
    }
}
