//! The memory segments of the program: RELRO, sealing and prefaulting.

use std::ops::ControlFlow;
use std::{io, ptr};

use libc::c_void;

use super::machine::page_size;

/// The protections of the program's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Relocated constants (PT_GNU_RELRO), which are written once at the start, are read-only.
    pub relro: bool,
    /// The read-only mappings of the program and its libraries are sealed: none can be changed,
    /// replaced or removed (mseal(2), Linux 6.10).
    pub mseal: bool,
}

/// A segment of a loaded object, as its program header describes it.
struct ProgramSegment {
    kind: u32,
    flags: u32,
    start: usize,
    /// The address behind the last byte.
    end: usize,
}

/// Passes the segments of each loaded object to `look`, the program's first, until `look` breaks.
fn each_object(mut look: impl FnMut(&[ProgramSegment]) -> ControlFlow<()>) {
    unsafe extern "C" fn object<F: FnMut(&[ProgramSegment]) -> ControlFlow<()>>(
        object: *mut libc::dl_phdr_info,
        _: libc::size_t,
        look: *mut c_void,
    ) -> libc::c_int {
        // SAFETY: the pointer is the closure that was passed to dl_iterate_phdr below, with this
        // type.
        let look = unsafe { &mut *look.cast::<F>() };
        // SAFETY: libc passes a description that is valid during this call.
        let object = unsafe { &*object };
        // SAFETY: as above; the description says how many program headers there are.
        let headers =
            unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let segments: Vec<ProgramSegment> = headers
            .iter()
            .map(|header| {
                let start = (object.dlpi_addr + header.p_vaddr) as usize;
                let end = start + header.p_memsz as usize;
                ProgramSegment { kind: header.p_type, flags: header.p_flags, start, end }
            })
            .collect();
        look(&segments).is_break().into()
    }
    fn call<F: FnMut(&[ProgramSegment]) -> ControlFlow<()>>(look: &mut F) {
        // SAFETY: `object` uses only its arguments, and the closure outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(object::<F>), ptr::from_mut(look).cast()) };
    }
    call(&mut look);
}

/// Makes relocated constants read-only, then seals them and every read-only segment, of the program
/// and of its libraries. A static program has no dynamic loader that makes the constants read-only.
/// Protections that are already in place stay.
pub fn seal_program() -> Sealed {
    let page = page_size();
    let mut sealed = Sealed { relro: true, mseal: true };
    each_object(|segments| {
        // The range is rounded as the dynamic loader does it: the last page may also hold
        // variables.
        let relro = segments.iter().filter(|segment| segment.kind == libc::PT_GNU_RELRO);
        for (start, end) in relro.map(|s| (s.start / page * page, s.end / page * page)) {
            if start < end {
                let at = ptr::with_exposed_provenance_mut(start);
                // SAFETY: this removes write permission from constants whose relocation has ended.
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

/// mseal(2): seals pages, so that they can be neither unmapped nor replaced nor given other
/// permissions. `len` is in bytes.
fn mseal(start: usize, len: usize) -> io::Result<()> {
    /// The number is the same on all architectures. libc defines it for some of them.
    const SYS_MSEAL: libc::c_long = 462;
    // SAFETY: this changes no byte, and the pages belong to the program until its end.
    match unsafe { libc::syscall(SYS_MSEAL, start, len, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the page is really sealed. The kernel refuses every mprotect(2) on a sealed page with
/// EPERM, even one that keeps the permissions. A seccomp profile may let mseal(2) return 0 without
/// effect.
fn is_sealed(start: usize) -> bool {
    let at = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the page keeps its permissions, whether or not the call is refused.
    let changed = unsafe { libc::mprotect(at, page_size(), libc::PROT_READ) };
    changed == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Prefaults the program's read-only segments so that the first connection takes no page faults.
/// The unwind tables at their end are dropped again, because they are not used. Linux before 5.14
/// cannot prefault: pages are then loaded on first use.
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
                // SAFETY: the pages map the program's file, read-only: they read the same
                // afterwards.
                unsafe { libc::madvise(at, end - start, advice) };
            };
            advise(start, tables, libc::MADV_POPULATE_READ);
            advise(tables, end, libc::MADV_DONTNEED);
        }
        // The first object is the program. Libraries are not prefaulted.
        ControlFlow::Break(())
    });
}
