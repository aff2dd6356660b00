//! Compares this relay with nginx, HAProxy and the reference, on one machine, over loopback:
//!
//! ```text
//! cargo run --release -p benches -- [OPTIONS] [relay] [nginx] [haproxy] [reference]
//!
//! --quick             short runs, one round
//! --rounds N          (default: 3)
//! --only A,B          of saturation, latency, bulk, streams, start, scale
//! --out FOLDER        for results.json, table.md and the plots (default: benches/peers/results, and
//!                     docs/measured.md and README.md get the table; target/peers for a run that
//!                     leaves something out)
//! --plot FILE         measure nothing; draw the plots of this results.json again
//! ```
//!
//! `RELAY_BINARY` names another binary of this relay, `CODEX_BIN` the reference's (or
//! `CODEX_PREFIX` a folder in which npm has installed it). Programs that are not installed are left
//! out.

mod load;
mod measure;
mod peers;
mod plot;
mod process;
mod reply;
mod results;
#[path = "../../examples/upstream/mod.rs"]
#[allow(dead_code, reason = "its certificates alone are used")]
mod stub;
mod table;
mod upstream;
mod wire;

use std::error::Error;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use measure::{Bench, Effort};
use peers::{Lab, Peer};
use process::Cores;
use results::Results;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

const SECTIONS: [&str; 6] = ["saturation", "latency", "bulk", "streams", "start", "scale"];
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/results");
const PARTIAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers");

struct Options {
    quick: bool,
    rounds: usize,
    only: Vec<String>,
    out: PathBuf,
    plot: Option<PathBuf>,
    peers: Vec<String>,
}

fn main() -> ExitCode {
    match options().and_then(|options| work(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        quick: false,
        rounds: 0,
        only: Vec::new(),
        out: PathBuf::new(),
        plot: None,
        peers: Vec::new(),
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            lexopt::Arg::Long("quick") => options.quick = true,
            lexopt::Arg::Long("rounds") => {
                options.rounds = arguments.value()?.to_string_lossy().parse()?;
            }
            lexopt::Arg::Long("only") => {
                let names = arguments.value()?;
                options.only = names.to_string_lossy().split(',').map(str::to_owned).collect();
                if let Some(name) = options.only.iter().find(|n| !SECTIONS.contains(&n.as_str())) {
                    return Err(format!("--only knows {}, not {name}", SECTIONS.join(", ")).into());
                }
            }
            lexopt::Arg::Long("out") => options.out = arguments.value()?.into(),
            lexopt::Arg::Long("plot") => options.plot = Some(arguments.value()?.into()),
            lexopt::Arg::Value(name) => options.peers.push(name.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.out.as_os_str().is_empty() {
        // A partial run never replaces the tables of the documents.
        let whole = !options.quick && options.only.is_empty() && options.peers.is_empty();
        options.out = if whole { FOLDER } else { PARTIAL }.into();
    }
    if options.only.is_empty() {
        options.only = SECTIONS.map(str::to_owned).to_vec();
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 1 } else { 3 };
    }
    if options.peers.is_empty() {
        options.peers = peers::NAMES.map(str::to_owned).to_vec();
    }
    Ok(options)
}

fn work(options: &Options) -> Result<(), Box<dyn Error>> {
    let results = match &options.plot {
        Some(file) => Results::read(file)?,
        None => measure(options)?,
    };
    fs::create_dir_all(&options.out)?;
    if options.plot.is_none() {
        results.write(&options.out.join("results.json"))?;
    }
    let table = table::markdown(&results);
    fs::write(options.out.join("table.md"), &table)?;
    plot::draw(&results, &options.out)?;
    if options.out == Path::new(FOLDER) {
        update_document("docs/measured.md", &table)?;
        update_document("README.md", &table::excerpt(&table))?;
    }
    println!("{table}\nwritten: {}", options.out.display());
    Ok(())
}

/// Replaces the table in the document.
fn update_document(name: &str, table: &str) -> io::Result<()> {
    const PLACE: [&str; 2] = ["<!-- made by benches/peers -->\n", "<!-- end -->\n"];
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(name);
    let text = fs::read_to_string(&path)?;
    let parts = text.split_once(PLACE[0]).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(PLACE[1])?;
        Some([before, PLACE[0], table, PLACE[1], after].concat())
    });
    let no_place = || io::Error::other(format!("{name} has no place for the table"));
    fs::write(&path, parts.ok_or_else(no_place)?)
}

/// A folder that is removed when this is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn measure(options: &Options) -> Result<Results, Box<dyn Error>> {
    let mut found = Vec::new();
    for name in &options.peers {
        match Peer::find(name) {
            Ok(peer) => found.push(peer),
            // A missing binary of this relay or an unknown name is an error.
            Err(why) if name == "relay" || !peers::NAMES.contains(&name.as_str()) => {
                return Err(why.into());
            }
            Err(why) => eprintln!("{name} is left out: {why}"),
        }
    }
    let cores = Cores::split()?;
    if cores.relay == cores.others {
        eprintln!("one core for everything: times are not comparable with those of two");
    }
    cores.run_on(&cores.others)?;
    let open_files = process::raise_open_files(65_536);
    let folder = std::env::temp_dir().join(format!("peers-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let folder = Temporary(folder);

    let identity = stub::Identity::new()?;
    fs::write(folder.0.join("ca.pem"), &identity.ca)?;
    let key = new_key()?;
    let tls = Arc::new(client(&identity.ca)?);
    let upstream = upstream::serve(identity.config()?, &key)?;
    let results = Results::new(&found, &cores, open_files, options.rounds);
    let effort = effort(options.quick, open_files);
    let lab = Lab { folder: folder.0.clone(), upstream, key, cores };
    let mut bench = Bench { lab, tls, effort, results };

    let rest = |peer: Option<&Peer>| peer.map_or("direct", |peer| peer.name);
    for peer in &found {
        let size = fs::metadata(&peer.binary)?.len();
        bench.results.put("start/binary", peer.name, size as f64 / (1 << 20) as f64);
    }
    for round in 0..options.rounds {
        let before = process::foreign_cpu()?;
        let start = Instant::now();
        // Each round begins with another program, so that drift affects all.
        let mut order: Vec<Option<&Peer>> = found.iter().map(Some).collect();
        if !order.is_empty() {
            order.rotate_left(round % found.len());
        }
        order.insert(0, None);
        for section in &options.only {
            for peer in &order {
                eprintln!("round {} of {}: {section}, {}", round + 1, options.rounds, rest(*peer));
                let done = match section.as_str() {
                    "saturation" => bench.saturation(*peer),
                    "latency" => bench.latency(*peer, found.iter().any(|p| p.name == "reference")),
                    "bulk" => bench.bulk(*peer),
                    "streams" => bench.streams(*peer),
                    "start" => bench.starting(*peer),
                    _ => match peer {
                        Some(peer) if peer.name == "relay" => bench.scale(peer),
                        _ => Ok(()),
                    },
                };
                // A failure of one program must not lose the figures of the others.
                if let Err(error) = done {
                    eprintln!("  {}: {error}", rest(*peer));
                    bench.results.put("failed", rest(*peer), 1.0);
                }
            }
        }
        let share = (process::foreign_cpu()? - before) / start.elapsed().as_secs_f64();
        bench.results.put("foreign", "machine", share * 100.0);
    }
    Ok(bench.results)
}

fn effort(quick: bool, open_files: u64) -> Effort {
    // This process has two descriptors of each stream; the relay has the other two.
    let most = (open_files.saturating_sub(100) / 2).min(10_000) as usize;
    let streams = if quick { vec![10, 100, 1000] } else { vec![10, 100, 1000, most] };
    let exponents =
        if quick { vec![10, 16, 22] } else { vec![10, 12, 14, 16, 18, 20, 22, 24, 26, 28] };
    Effort {
        time: Duration::from_millis(if quick { 800 } else { 2000 }),
        starts: if quick { 3 } else { 7 },
        bodies: if quick { 2 } else { 8 },
        events: if quick { 12 } else { 24 },
        streams,
        sizes: exponents.into_iter().map(|exponent| 1 << exponent).collect(),
    }
}

fn new_key() -> io::Result<String> {
    let mut random = [0; 24];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sk-{}", &hex[..45]))
}

/// A TLS configuration that trusts the upstream's authority and matches that of a relay.
fn client(ca: &str) -> Result<ClientConfig, Box<dyn Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
