//! Where the lines of further keys come from, as the loop sees it.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::process::key_input::KeyInput;

/// The token of stdin.
pub(super) const KEY_INPUT: Token = Token(usize::MAX - 5);

/// Where further keys come from.
pub(super) struct KeyReader {
    input: KeyInput,
    state: Readiness,
    /// It is not read before this moment.
    paused_until: Instant,
}

/// Whether the input can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// An event will report when the input can be read.
    Waiting,
    /// The input can be read.
    Readable,
}

impl KeyReader {
    pub(super) fn new(input: KeyInput, registry: &Registry, now: Instant) -> io::Result<KeyReader> {
        let reader = KeyReader { input, state: Readiness::Waiting, paused_until: now };
        reader.register(registry)?;
        Ok(reader)
    }

    fn register(&self, registry: &Registry) -> io::Result<()> {
        let fd = self.input.as_raw_fd();
        registry.register(&mut SourceFd(&fd), KEY_INPUT, Interest::READABLE)
    }

    /// Registers stdin again, so that an event reports whether more bytes can be read. A further
    /// read could block instead, because O_NONBLOCK need not be set. stdin is not read before
    /// `paused_until`.
    pub(super) fn register_again(
        &mut self,
        registry: &Registry,
        paused_until: Instant,
    ) -> io::Result<()> {
        let fd = self.input.as_raw_fd();
        registry.deregister(&mut SourceFd(&fd))?;
        self.state = Readiness::Waiting;
        self.paused_until = paused_until;
        self.register(registry)
    }

    /// It is not read again.
    pub(super) fn deregister(self, registry: &Registry) {
        let fd = self.input.as_raw_fd();
        let _ = registry.deregister(&mut SourceFd(&fd));
    }

    /// The input.
    pub(super) fn input(&self) -> KeyInput {
        self.input
    }

    /// There is nothing to read until the next event.
    pub(super) fn note_end(&mut self) {
        self.state = Readiness::Waiting;
    }

    /// An event says that there is something to read. The end of a writer is read without a pause:
    /// the line that this writer has left unfinished is dropped before the next writer opens a
    /// named pipe, whose line would be appended to it.
    pub(super) fn note_event(&mut self, event: &Event, now: Instant) {
        self.state = Readiness::Readable;
        if event.is_read_closed() {
            self.paused_until = now;
        }
    }

    /// When to read next; `None` after the next event.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.state == Readiness::Readable).then_some(self.paused_until)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use mio::{Events, Poll};

    use super::*;
    use crate::net::timeouts::KEY_PAUSE;

    #[test]
    fn what_a_writer_writes_is_read_after_the_pause_and_its_end_at_once() {
        let (pipe, mut writer) = io::pipe().unwrap();
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        let source = pipe.as_raw_fd();
        poll.registry().register(&mut SourceFd(&source), KEY_INPUT, Interest::READABLE).unwrap();
        let now = Instant::now();
        let paused_until = now + KEY_PAUSE;
        let (input, state) = (KeyInput::NamedPipe, Readiness::Waiting);
        let mut reader = KeyReader { input, state, paused_until };
        writer.write_all(b"the beginning of a line").unwrap();
        let mut next = |reader: &mut KeyReader| {
            poll.poll(&mut events, None).unwrap();
            events.iter().for_each(|event| reader.note_event(event, now));
            reader.due()
        };
        assert_eq!(next(&mut reader), Some(paused_until));
        drop(writer);
        assert_eq!(next(&mut reader), Some(now));
    }
}
