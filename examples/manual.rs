//! Writes the manual page and the completions for bash, zsh and fish, all from the table of flags:
//! `cargo run --example manual -- FOLDER`.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use codex_responses_api_proxy::cli::flags::{FLAGS, Flag, Section};

const NAME: &str = "codex-responses-api-proxy";

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: cargo run --example manual -- FOLDER");
        return ExitCode::from(2);
    };
    match write_all(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write into {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in [
        (format!("{NAME}.1"), manual_page()),
        (format!("{NAME}.bash"), bash()),
        (format!("_{NAME}"), zsh()),
        (format!("{NAME}.fish"), fish()),
    ] {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}

/// Escapes text for troff: backslashes, a leading dot or quote, and dashes, so that a reader can
/// copy them.
fn troff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn manual_page() -> String {
    let name = troff(NAME);
    let mut page = format!(
        ".TH {} 1 \"\" \"{NAME} {}\" \"User Commands\"\n.SH NAME\n{name} \\- {}\n.SH SYNOPSIS\n.B \
         {name}\n[\\fIOPTIONS\\fR] < \\fIKEY\\fR\n.SH DESCRIPTION\n{}\n",
        NAME.to_uppercase(),
        env!("CARGO_PKG_VERSION"),
        troff("lets a local program use an API key without ever seeing it"),
        troff(
            "Relays POST /v1/responses from 127.0.0.1 to one upstream and adds the API key, which it \
             reads from standard input. Everything else is refused."
        ),
    );
    for section in Section::ALL {
        let _ = writeln!(page, ".SH \"{}\"", section.title().to_uppercase());
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            page.push_str(".TP\n");
            let names = match flag.letter {
                Some(letter) => format!("\\fB\\-{letter}\\fR, \\fB\\-\\-{}\\fR", troff(flag.name)),
                None => format!("\\fB\\-\\-{}\\fR", troff(flag.name)),
            };
            match flag.value {
                "" => page += &format!("{names}\n"),
                value => page += &format!("{names} \\fI{}\\fR\n", troff(value)),
            }
            page += &format!("{}.\n", troff(flag.help));
        }
    }
    page + &format!(
        ".SH ENVIRONMENT\n.TP\n.B HTTPS_PROXY, ALL_PROXY, NO_PROXY\nThe egress proxy, by http://, and \
         the hosts that need none; read as curl does.\n.TP\n.B SSL_CERT_FILE, \
         CODEX_CA_CERTIFICATE\nThe same as \\fB\\-\\-ca\\-file\\fR.\n.SH \"EXIT STATUS\"\n0 after an \
         orderly end, 1 when the start failed, 2 for wrong use of a flag; others name a step of the \
         hardening that failed, see the documentation.\n.SH EXAMPLE\n.nf\nprintenv OPENAI_API_KEY | \
         env \\-u OPENAI_API_KEY {name}\n.fi\n"
    )
}

/// The shell completes the value of this flag as a path.
fn takes_path(flag: &Flag) -> bool {
    ["FILE", "PEM", "DIR"].contains(&flag.value)
}

/// The shell completes the value of this flag as the name of a user.
fn takes_user(flag: &Flag) -> bool {
    flag.value.contains("UID")
}

fn bash() -> String {
    let names = |chosen: fn(&&Flag) -> bool| {
        let names = FLAGS.iter().filter(chosen).map(|flag| format!("--{}", flag.name));
        names.collect::<Vec<_>>()
    };
    let all = names(|_| true).join(" ");
    let paths = names(|flag| takes_path(flag)).join("|");
    let users = names(|flag| takes_user(flag)).join("|");
    let values = names(|flag| !flag.value.is_empty() && !takes_path(flag) && !takes_user(flag));
    let values = values.join("|");
    format!(
        r#"# bash completion for {NAME}
_codex_responses_api_proxy() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    case $previous in
    {paths})
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        ;;
    {users}) mapfile -t COMPREPLY < <(compgen -u -- "$current") ;;
    {values}) COMPREPLY=() ;;
    *) mapfile -t COMPREPLY < <(compgen -W "{all}" -- "$current") ;;
    esac
}}
complete -F _codex_responses_api_proxy {NAME}
"#
    )
}

fn zsh() -> String {
    let mut text = format!("#compdef {NAME}\n\n_arguments -s \\\n");
    for flag in FLAGS {
        let help: String = flag.help.chars().filter(|c| !"[]'\"\\".contains(*c)).collect();
        let help = help.replace(':', "\\:");
        let action = match flag.value {
            "" => String::new(),
            _ if takes_path(flag) => ":file:_files".into(),
            _ if takes_user(flag) => ":user:_users".into(),
            value => {
                let value: String = value
                    .chars()
                    .filter(|c| c.is_ascii_alphanumeric() || " {}".contains(*c))
                    .collect();
                format!(":{}:", value.trim())
            }
        };
        let once = if flag.repeatable { "*" } else { "" };
        let value = if flag.value.is_empty() { "" } else { "=" };
        let _ = writeln!(text, "    '{once}--{}{value}[{help}]{action}' \\", flag.name);
    }
    text.truncate(text.len() - " \\\n".len());
    text + "\n"
}

fn fish() -> String {
    let mut text = format!("# fish completion for {NAME}\ncomplete -c {NAME} -f\n");
    for flag in FLAGS {
        let help = flag.help.replace('\\', "\\\\").replace('\'', "\\'");
        let letter = flag.letter.map_or(String::new(), |letter| format!(" -s {letter}"));
        let value = match flag.value {
            "" => "",
            _ if takes_path(flag) => " -r -F",
            _ if takes_user(flag) => " -x -a '(__fish_complete_users)'",
            _ => " -x",
        };
        let _ = writeln!(text, "complete -c {NAME} -l {}{letter}{value} -d '{help}'", flag.name);
    }
    text
}
