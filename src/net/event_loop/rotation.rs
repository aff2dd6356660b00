//! `--rotate`: lines on stdin, each of which replaces the key, and the age of the key.
//!
//! stdin is read once in a pass at most. While it has a writer, it is not read again for a while
//! after each read. So a writer that floods takes no time from clients.

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::EventLoop;
use super::key_reader::KeyReader;
use crate::net::report;
use crate::net::timeouts::KEY_PAUSE;
use crate::process::detach::Stdin;
use crate::process::key_input::{KeyInput, refusal};
use crate::process::key_ring::{Ended, TakenKey};

impl EventLoop {
    /// Whether stdin stays open with `--detach`.
    pub fn stdin(&self) -> Stdin {
        if self.key_reader.is_some() { Stdin::Kept } else { Stdin::Left }
    }

    /// When to look at the key again. `now` is the time of the last pass.
    pub(super) fn key_due(&self, now: Instant) -> Option<Instant> {
        if !self.state.keys.is_rotating() {
            return None;
        }
        let read = self.key_reader.as_ref().and_then(KeyReader::due);
        let expiry = self.state.keys.expires_in().map(|left| now + left);
        read.into_iter().chain(expiry).min()
    }

    /// Replaces the key if a line has come, and notes that the key has expired.
    pub(super) fn renew_key(&mut self, now: Instant) {
        if !self.state.keys.is_rotating() {
            return;
        }
        self.read_key(now);
        while let Some(oldest) = self.state.keys.crowded_by() {
            self.end_exchanges_of(oldest, now);
            self.state.keys.retire();
        }
        if self.state.keys.expire().is_some() {
            self.state.log.event(&report::key_expired(self.state.keys.line()));
        }
    }

    fn read_key(&mut self, now: Instant) {
        let due = |reader: &&mut KeyReader| reader.due().is_some_and(|when| when <= now);
        let Some(reader) = self.key_reader.as_mut().filter(due) else {
            return;
        };
        let input = reader.input();
        let read = self.state.keys.read(&mut |buffer| input.read(buffer));
        let again = match read {
            Ok(0) => {
                reader.note_end();
                return self.key_input_ended(None);
            }
            Ok(_) => reader.register_again(self.poll.registry(), now + KEY_PAUSE),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return reader.note_end(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                reader.register_again(self.poll.registry(), now)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = again {
            self.key_input_ended(Some(error));
        }
        self.take_key();
    }

    fn take_key(&mut self) {
        let keys = &mut self.state.keys;
        let taken = keys.take();
        if let Some(error) = &taken.refused {
            let text = refusal(error, taken.refused_lines);
            self.state.log.event(&report::key_refused(&text, taken.refused_lines));
        }
        match taken.key {
            Some(TakenKey::Fresh | TakenKey::Revived) => {
                let (generation, is_searched) =
                    (keys.carry().generation(), keys.current().is_searched_for());
                self.state.log.event(&report::key_rotated(generation, is_searched));
            }
            Some(TakenKey::Same) | None => {}
        }
    }

    /// No more keys come, unless another writer opens the pipe by its name.
    fn key_input_ended(&mut self, error: Option<io::Error>) {
        let ended = self.state.keys.end();
        let input = self.key_reader.as_ref().map(KeyReader::input);
        if ended == Ended::WithinLine {
            let text = "the last line has no end and is ignored; the key stays as it is";
            self.state.log.event(&report::key_refused(text, 1));
        }
        match (input, error) {
            // Another writer may open it.
            (Some(KeyInput::NamedPipe), None) => {}
            (_, error) => {
                if let Some(reader) = self.key_reader.take() {
                    reader.deregister(self.poll.registry());
                }
                let line = self.state.keys.line();
                self.state.log.event(&report::key_input_ended(line, error.as_ref()));
            }
        }
    }

    /// Ends the exchanges that carry this key, because its pages are needed for a fresh one.
    fn end_exchanges_of(&mut self, generation: u64, now: Instant) {
        for id in self.sessions.ids() {
            if self.sessions.get(id).is_some_and(|session| session.carries(generation)) {
                self.run_session(id, now, &mut |session, turn, buffers| {
                    session.end_with_its_key(turn, buffers)
                });
            }
        }
    }
}
