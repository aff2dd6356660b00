//! The events that the program reports on stderr. Each event is declared once and has two forms:
//! text, and with `--access-log` one JSON object per line.

use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::panic::PanicHookInfo;
use std::time::{Duration, SystemTime};

use super::clock::Timestamp;
use crate::http1::url::{Scheme, UpstreamUrl};
use crate::process::key_ring::{LineForm, Terms};
use crate::process::protections::Protections;

/// Whether text on stderr is coloured.
#[derive(Clone, Copy)]
pub struct Colour(bool);

impl Colour {
    /// Text is coloured if stderr is a terminal, `TERM` is set and not `dumb`, and `NO_COLOR` is
    /// unset or empty (no-color.org). JSON is never coloured. Call this before the process is
    /// confined: the system call that recognises a terminal kills a confined process.
    pub fn of_stderr(form: Form) -> Colour {
        let is = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let able = is("TERM").is_some_and(|term| term != "dumb");
        Colour(form == Form::Text && able && is("NO_COLOR").is_none() && io::stderr().is_terminal())
    }

    /// Emphasised text: the words that a reader looks for first.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Text that marks an error.
    pub fn red(self, text: &str) -> String {
        self.with("1;31", text)
    }

    fn with(self, style: &str, text: &str) -> String {
        if self.0 { ["\x1b[", style, "m", text, "\x1b[0m"].concat() } else { text.to_owned() }
    }
}

/// The contents of the event `start`.
pub struct Started<'a> {
    /// The port on the loopback address.
    pub port: u16,
    /// The upstream that requests are forwarded to.
    pub upstream: &'a UpstreamUrl,
    /// With `--rotate`: how further keys are read.
    pub rotation: Option<Terms>,
    /// Clients have to send the client token.
    pub needs_token: bool,
    /// `--grace`, reported in whole seconds.
    pub grace: Duration,
    /// The protections that are in force, and those that are not.
    pub protections: &'a Protections,
}

impl Started<'_> {
    /// The event `start`: the relay listens. The event contains the address, the version, the
    /// upstream, the settings that a client needs, and the protections in force.
    pub fn event(&self, colour: Colour) -> Event {
        let Started { port, upstream, protections, .. } = self;
        let listening = format!("codex-responses-api-proxy listening on 127.0.0.1:{port}");
        let listening = colour.bold(&listening);
        let (version, pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        let scheme = if upstream.scheme == Scheme::Http { "http" } else { "https" };
        // The query may contain a secret, so only the path is shown.
        let path = upstream.path_and_query.split('?').next().unwrap_or_default();
        let upstream = format!("{scheme}://{}{path}", upstream.authority());
        let callers = protections.callers.to_string();
        let grace = self.grace.as_secs();
        let protections = protections.to_string();
        let rotation = self.rotation.map_or(String::new(), |terms| format!(", {terms}"));
        let key = if self.needs_token { "the client token" } else { "anything" };
        let text = format!(
            "{listening}\nrelay: version {version}, pid {pid}, port {port}, upstream {upstream}, open to \
             {callers}, grace {grace} s{rotation}\nclients: base URL http://127.0.0.1:{port}/v1, {key} as API key\nprotections: \
             {protections}"
        );
        let event = Event::new("start", text)
            .string("version", version)
            .number("pid", pid.into())
            .number("port", (*port).into())
            .string("upstream", &upstream)
            .string("open_to", &callers)
            .number("grace_s", grace)
            .string("protections", &protections);
        match self.rotation {
            None => event,
            Some(Terms { max_age, line }) => event
                .string(
                    "rotation",
                    match line {
                        LineForm::Key => "stdin",
                        LineForm::KeyAndLifetime => "github_oidc",
                    },
                )
                .optional("key_max_age_s", max_age.map(|age| age.as_secs())),
        }
    }
}

/// Installs the panic hook. A panic in any thread reports an event `error` with the place in the
/// source, then ends the program by SIGABRT. The hook shows the text of the panic only if the text
/// is a constant: a text made at run time may contain bytes that a client or the upstream chose.
pub fn end_on_panic(form: Form) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let text = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("a fault");
        let place = panic.location().map(|place| (place.file(), place.line()));
        let (file, line) = place.unwrap_or(("an unknown place", 0));
        let text = format!(
            "codex-responses-api-proxy: error: the program failed at {file}:{line}: {text}; start it \
             again, and report it as a bug"
        );
        let _ = io::stderr().write_all(Event::new("error", text).render(form).as_bytes());
        std::process::abort();
    }));
}

/// The relay begins to shut down for this cause, with this many exchanges under way. The event is
/// `drain`, or `end` if no exchange is under way. `grace` is reported in whole seconds.
pub fn drain(cause: &str, exchanges: usize, grace: Duration) -> Event {
    let (plural, seconds) = (if exchanges == 1 { "" } else { "s" }, grace.as_secs());
    let text = format!("codex-responses-api-proxy ending: {cause}, {exchanges} exchange{plural}");
    match exchanges {
        // No exchange is under way, so the relay ends at once.
        0 => Event::new("end", text),
        _ if seconds == 0 => Event::new("drain", text + " under way"),
        _ => Event::new("drain", format!("{text} under way, waiting for up to {seconds} s")),
    }
    .string("cause", cause)
    .number("exchanges", exchanges as u64)
    .number("grace_s", seconds)
}

/// The event `end` after a drain: the relay has shut down for this cause, and this many exchanges
/// were cut off.
pub fn end(cause: &str, exchanges: usize) -> Event {
    let plural = if exchanges == 1 { "" } else { "s" };
    let text =
        format!("codex-responses-api-proxy ended: {cause}, {exchanges} exchange{plural} cut off");
    Event::new("end", text).string("cause", cause).number("cut_off", exchanges as u64)
}

/// The event `key_rotated`: requests carry a fresh key from now on. The first key has generation 1.
pub fn key_rotated(generation: u64, is_searched: bool) -> Event {
    let searched = match is_searched {
        true => "",
        false => ", which is too short (fewer than 16 bytes) to be looked for in responses",
    };
    let text = format!("codex-responses-api-proxy: requests carry key {generation} now{searched}");
    Event::new("key_rotated", text).number("key_generation", generation)
}

/// The event `key_refused`: so many lines on stdin are no keys, and the text says why.
pub fn key_refused(text: &str, lines: u64) -> Event {
    let text = format!("codex-responses-api-proxy: warning: stdin: {text}");
    Event::new("key_refused", text).number("lines", lines)
}

/// The event `key_expired`: requests get a 503 until a fresh key comes.
pub fn key_expired(line: LineForm) -> Event {
    let from = match line {
        LineForm::Key => "comes on stdin",
        LineForm::KeyAndLifetime => "has been fetched (renewal_unavailable)",
    };
    let text = format!(
        "codex-responses-api-proxy: warning: the key has expired; requests get a 503 until a fresh one \
         {from}"
    );
    Event::new("key_expired", text)
}

/// The event `key_input_ended`: no further key can come.
pub fn key_input_ended(line: LineForm, error: Option<&io::Error>) -> Event {
    let text = match (line, error) {
        (LineForm::Key, None) => "stdin has ended".to_owned(),
        (LineForm::Key, Some(error)) => format!("warning: stdin cannot be read any more ({error})"),
        (LineForm::KeyAndLifetime, _) => {
            let until = "requests are served until the key expires";
            let text = format!(
                "codex-responses-api-proxy: warning: the feeder has ended, and no key can be fetched any \
                 more; {until}"
            );
            return Event::new("key_input_ended", text);
        }
    };
    let text = format!("codex-responses-api-proxy: {text}; the key stays as it is");
    Event::new("key_input_ended", text)
}

/// The form of the lines on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text for people.
    Text,
    /// `--access-log`: every line is a JSON object, from the first line on.
    Json,
}

/// One event: `start`, `drain`, `end`, `warning` or `error`. An event contains no byte that a
/// client or the upstream chose.
///
/// ```
/// # use codex_responses_api_proxy::net::report::{Event, Form};
/// let drain = Event::new("drain", "waiting for 2 exchanges").number("exchanges", 2);
/// assert_eq!(drain.render(Form::Text), "waiting for 2 exchanges\n");
/// assert!(drain.render(Form::Json).ends_with("\"exchanges\":2}\n"));
/// ```
pub struct Event {
    name: &'static str,
    text: String,
    /// The fields as JSON. A comma precedes each field.
    fields: String,
}

impl Form {
    /// The form that the command line asks for. The form is decided before the arguments are
    /// parsed, because an error in the arguments is an event too.
    pub fn of(arguments: impl IntoIterator<Item = OsString>) -> Form {
        let asked = arguments.into_iter().any(|argument| argument == "--access-log");
        if asked { Form::Json } else { Form::Text }
    }
}

impl Event {
    /// An event with this text: one or more lines for people, without the last newline. The JSON
    /// form has the text as `message`.
    pub fn new(name: &'static str, text: impl Display) -> Event {
        Event { name, text: text.to_string(), fields: String::new() }
    }

    /// Adds a field with a number.
    pub fn number(mut self, name: &'static str, value: u64) -> Event {
        let _ = write!(self.fields, ",\"{name}\":{value}");
        self
    }

    /// Adds a field with a string.
    pub fn string(mut self, name: &'static str, value: &str) -> Event {
        let _ = write!(self.fields, ",\"{name}\":");
        quote(value, &mut self.fields);
        self
    }

    /// Adds a field with a number; `None` becomes `null`.
    pub fn optional(self, name: &'static str, value: Option<u64>) -> Event {
        match value {
            Some(value) => self.number(name, value),
            None => Event { fields: self.fields + ",\"" + name + "\":null", ..self },
        }
    }

    /// The event in the form in which it is written to stderr, with the last newline.
    pub fn render(&self, form: Form) -> String {
        match form {
            Form::Text => format!("{}\n", self.text),
            Form::Json => {
                let time = Timestamp::of(SystemTime::now());
                let mut line =
                    format!("{{\"time\":\"{time}\",\"event\":\"{}\",\"message\":", self.name);
                quote(&self.text, &mut line);
                line + &self.fields + "}\n"
            }
        }
    }
}

/// Writes a JSON string (RFC 8259 §7).
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            '\n' => write!(out, "\\n"),
            c if c.is_control() => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_in_json_is_one_line_whatever_its_text_holds() {
        let event = Event::new("warning", "one \"two\"\nthree\\\u{1b}é")
            .string("cause", "a\tb")
            .number("exchanges", 7)
            .optional("uid", None);
        let line = event.render(Form::Json);
        let (time, rest) = line.split_at("{\"time\":\"1970-01-01T00:00:00.000Z\"".len());
        assert!(time.starts_with("{\"time\":\"20") && time.ends_with("Z\""), "{time}");
        assert_eq!(
            rest,
            ",\"event\":\"warning\",\"message\":\"one \\\"two\\\"\\nthree\\\\\\u001bé\",\"cause\":\"a\\u0009b\",\
             \"exchanges\":7,\"uid\":null}\n"
        );
        assert_eq!(Event::new("end", "it ends").number("n", 1).render(Form::Text), "it ends\n");
    }
}
