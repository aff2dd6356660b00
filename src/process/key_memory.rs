//! The pages that a start maps before it reads a key. `--check` maps the same ones.

use std::io;

use super::credential::{KeyError, KeyForm, KeyPages, locked_kib};
use super::sys::{self, ProtectedPages, ProtectionKey, SecretMemory, SecretPages};
use crate::http1::limits;

/// The pages of a start, before a key is read.
pub struct KeyMemory {
    /// Where lines are read to. `None` without `--rotate`.
    pub(super) lines: Option<ProtectedPages>,
    /// One set for each key.
    pub(super) free: Vec<KeyPages>,
}

impl KeyMemory {
    /// `prefix` is the length of the prefix of the key. `longest_line` is `None` without
    /// `--rotate`.
    pub(super) fn map(
        prefix: usize,
        form: KeyForm,
        longest_line: Option<usize>,
    ) -> Result<KeyMemory, KeyError> {
        let page = sys::page_size();
        let sets = key_sets(longest_line.is_some());
        let map = || {
            let lines = longest_line.map(SecretPages::new).transpose()?;
            let free = (0..sets).map(|_| KeyPages::new(page, prefix, form));
            let free = free.collect::<io::Result<_>>()?;
            Ok(KeyMemory { lines: lines.map(ProtectedPages::new), free })
        };
        map().map_err(|error| KeyError::Memory(error, locked_kib(page, sets)))
    }

    /// The kind of memory that keys lie in; the less protected one where there are two.
    pub fn memory(&self) -> SecretMemory {
        least_protected(&self.free)
    }

    /// The mechanism that closes the pages between two uses.
    pub fn protection_key(&self) -> ProtectionKey {
        let is_missing = |pages: &KeyPages| pages.protection_key() == ProtectionKey::Missing;
        match self.free.iter().any(is_missing) {
            true => ProtectionKey::Missing,
            false => ProtectionKey::InForce,
        }
    }
}

/// How many sets of pages for keys a relay has.
pub fn key_sets(is_rotating: bool) -> usize {
    if is_rotating { limits::KEY_SETS } else { 1 }
}

/// The kind of these pages; the less protected one where there are two.
pub(super) fn least_protected<'a>(pages: impl IntoIterator<Item = &'a KeyPages>) -> SecretMemory {
    match pages.into_iter().all(|pages| pages.memory() == SecretMemory::MemfdSecret) {
        true => SecretMemory::MemfdSecret,
        false => SecretMemory::Locked,
    }
}
