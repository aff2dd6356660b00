//! The program's own segments: RELRO, seals, prefaulting.

use std::ops::ControlFlow;
use std::{io, ptr};

use libc::c_void;

use super::machine::page_size;

/// What was done to the program's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Relocated constants, which are written once at the start, are read-only (PT_GNU_RELRO).
    pub relro: bool,
    /// No mapping of the program can be changed, replaced or removed (mseal(2), Linux 6.10).
    pub mseal: bool,
}

/// A segment of a loaded object: its pages, and what its program header says.
struct Segment {
    kind: u32,
    flags: u32,
    start: usize,
    /// Behind the last byte.
    end: usize,
}

/// Shows the segments of each loaded object, the program's first, until `look` breaks.
fn each_object(mut look: impl FnMut(&[Segment]) -> ControlFlow<()>) {
    unsafe extern "C" fn object<F: FnMut(&[Segment]) -> ControlFlow<()>>(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        look: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: this is the closure that was handed to dl_iterate_phdr below, by this type.
        let look = unsafe { &mut *look.cast::<F>() };
        // SAFETY: libc hands over a description that is good for the time of this call.
        let object = unsafe { &*object };
        // SAFETY: as above, with so many program headers.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let segments: Vec<Segment> = headers
            .iter()
            .map(|header| {
                let start = (object.dlpi_addr + header.p_vaddr) as usize;
                let end = start + header.p_memsz as usize;
                Segment { kind: header.p_type, flags: header.p_flags, start, end }
            })
            .collect();
        look(&segments).is_break().into()
    }
    fn call<F: FnMut(&[Segment]) -> ControlFlow<()>>(look: &mut F) {
        // SAFETY: `object` keeps to what it is handed, and the closure outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(object::<F>), ptr::from_mut(look).cast()) };
    }
    call(&mut look);
}

/// Makes the program's relocated constants read-only, which nobody does for a static program, and
/// seals its text, its constants and what has become read-only, those of its libraries too. What is
/// already sealed or read-only stays so.
pub fn seal_program() -> Sealed {
    let page = page_size();
    let mut sealed = Sealed { relro: true, mseal: true };
    each_object(|segments| {
        // As the dynamic loader does it: the last page may hold variables too.
        let relro = segments.iter().filter(|segment| segment.kind == libc::PT_GNU_RELRO);
        for (start, end) in relro.map(|s| (s.start / page * page, s.end / page * page)) {
            if start < end {
                let at = ptr::with_exposed_provenance_mut(start);
                // SAFETY: takes write permission from constants whose relocation has ended.
                sealed.relro &= unsafe { libc::mprotect(at, end - start, libc::PROT_READ) } == 0;
                sealed.mseal &= mseal(start, end - start).is_ok() && is_sealed(start);
            }
        }
        for segment in segments {
            if segment.kind == libc::PT_LOAD && segment.flags & libc::PF_W == 0 {
                let start = segment.start / page * page;
                let len = segment.end.next_multiple_of(page) - start;
                sealed.mseal &= mseal(start, len).is_ok();
            }
        }
        ControlFlow::Continue(())
    });
    sealed
}

/// Seals pages, so that they can be neither unmapped, replaced nor given other permissions.
fn mseal(start: usize, len: usize) -> io::Result<()> {
    /// One number on all architectures; libc knows it on some.
    const SYS_MSEAL: libc::c_long = 462;
    // SAFETY: changes no byte, and the pages belong to the program until its end.
    match unsafe { libc::syscall(SYS_MSEAL, start, len, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel refuses to change pages that are read-only, even to what they are. A profile may have
/// mseal(2) return 0 and do nothing.
fn is_sealed(start: usize) -> bool {
    let at = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the page keeps its permissions, whether or not this is refused.
    let changed = unsafe { libc::mprotect(at, page_size(), libc::PROT_READ) };
    changed == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Prefaults the program's read-only segments so that the first connection takes no page faults.
/// The unwind tables at their end are dropped again: nothing needs them. Linux before 5.14 cannot
/// prefault: there the pages come as they are used.
pub fn prefault_code() {
    let page = page_size();
    each_object(|segments| {
        let unwinding = segments.iter().find(|segment| segment.kind == libc::PT_GNU_EH_FRAME);
        for segment in segments {
            if segment.kind != libc::PT_LOAD || segment.flags & libc::PF_W != 0 {
                continue;
            }
            let (start, end) = (segment.start / page * page, segment.end);
            let tables =
                unwinding.map(|tables| tables.start).filter(|at| (start..end).contains(at));
            let [tables, end] =
                [tables.unwrap_or(end), end].map(|address| address.next_multiple_of(page));
            let advise = |start: usize, end: usize, advice| {
                let at = ptr::with_exposed_provenance_mut(start);
                // SAFETY: the pages are the program's file, read-only: they read the same
                // afterwards.
                unsafe { libc::madvise(at, end - start, advice) };
            };
            advise(start, tables, libc::MADV_POPULATE_READ);
            advise(tables, end, libc::MADV_DONTNEED);
        }
        // The first object is the program; others need no care.
        ControlFlow::Break(())
    });
}
