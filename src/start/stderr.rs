//! What the start writes to stderr.

use std::process::ExitCode;

use codex_responses_api_proxy::net::report::{Colour, Event, Form, Started};
use codex_responses_api_proxy::process::detach::ParentReport;

use super::error::{StartError, USAGE};

/// How to write to stderr.
#[derive(Clone, Copy)]
pub struct Stderr {
    form: Form,
    colour: Colour,
}

impl Stderr {
    /// With colour if stderr is a terminal. Call this before the process is confined.
    pub fn new(form: Form) -> Stderr {
        Stderr { form, colour: Colour::of_stderr(form) }
    }

    /// The form of lines: text, or JSON with `--access-log`.
    pub fn form(self) -> Form {
        self.form
    }

    /// The lines that report the start: where the relay listens, its protections, and warnings.
    pub fn start_lines(self, started: &Started<'_>, warnings: &[String]) -> String {
        let mut lines = started.event(self.colour).render(self.form);
        for warning in warnings {
            let text = format!("codex-responses-api-proxy: warning: {warning}");
            lines.push_str(&Event::new("warning", text).render(self.form));
        }
        lines
    }

    /// Reports why the relay does not start. The exit code says the same.
    pub fn report_failure(self, parent: &mut ParentReport, error: &StartError) -> ExitCode {
        let StartError { reason, code } = error;
        let mut text = format!("codex-responses-api-proxy: {} {reason}", self.colour.red("error:"));
        if *code == USAGE {
            text.push_str("\nTry 'codex-responses-api-proxy --help'.");
        }
        let event = Event::new("error", text).number("exit_code", (*code).into());
        let _ = parent.tell(*code, &event.render(self.form));
        ExitCode::from(*code)
    }
}
