//! Figures by metric and program, one for each round, with a description of the machine, as JSON.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::peers::Peer;
use crate::process::Cores;

/// The figures of a run, from this run or from a file.
pub struct Results {
    pub machine: Map<String, Value>,
    /// By metric and program: the figure of each round.
    figures: Map<String, Value>,
}

impl Results {
    pub fn new(peers: &[Peer], cores: &Cores, open_files: u64, rounds: usize) -> Results {
        let first_line = |path: &str, start: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
            line.trim_start_matches(start).trim_matches([' ', '\t', ':']).to_owned()
        };
        let kernel = Command::new("uname").arg("-srm").output().map(|output| output.stdout);
        let kernel = String::from_utf8_lossy(&kernel.unwrap_or_default()).trim().to_owned();
        let versions: Map<String, Value> =
            peers.iter().map(|peer| (peer.name.into(), json!(peer.version))).collect();
        let machine = json!({
            "cpu": first_line("/proc/cpuinfo", "model name"),
            "relay on core": cores.relay,
            "client and upstream on cores": cores.others,
            "memory": first_line("/proc/meminfo", "MemTotal"),
            "kernel": kernel,
            "system": first_line("/etc/os-release", "PRETTY_NAME=").trim_matches('"'),
            "open files": open_files,
            "rounds": rounds,
            "load average before the run": first_line("/proc/loadavg", ""),
            "versions": versions,
        });
        let Value::Object(machine) = machine else { unreachable!("an object") };
        Results { machine, figures: Map::new() }
    }

    pub fn read(path: &Path) -> io::Result<Results> {
        let mut value: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let mut object = |name: &str| match value[name].take() {
            Value::Object(map) => Ok(map),
            _ => Err(io::Error::other(format!("no {name} in {}", path.display()))),
        };
        Ok(Results { machine: object("machine")?, figures: object("figures")? })
    }

    /// One line for each metric, so that the difference of two runs is easy to read.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let machine = serde_json::to_string_pretty(&self.machine)?;
        let lines: Vec<String> = self
            .figures
            .iter()
            .map(|(metric, peers)| format!("{}: {peers}", json!(metric)))
            .collect();
        let text = format!(
            "{{\n\"machine\": {machine},\n\"figures\": {{\n{}\n}}\n}}\n",
            lines.join(",\n")
        );
        fs::write(path, text)
    }

    /// Records a figure, rounded to five digits.
    pub fn put(&mut self, metric: &str, peer: &str, value: f64) {
        let value: f64 = format!("{value:.4e}").parse().unwrap_or(value);
        let value = if value.fract() == 0.0 { json!(value as i64) } else { json!(value) };
        let rounds = &mut self.figures.entry(metric).or_insert_with(|| json!({}))[peer];
        match rounds {
            Value::Array(rounds) => rounds.push(value),
            _ => *rounds = json!([value]),
        }
    }

    fn rounds(&self, metric: &str, peer: &str) -> Vec<f64> {
        let rounds = self.figures.get(metric).and_then(|peers| peers[peer].as_array());
        rounds.into_iter().flatten().filter_map(Value::as_f64).collect()
    }

    /// The median over the rounds.
    pub fn median(&self, metric: &str, peer: &str) -> Option<f64> {
        middle(self.rounds(metric, peer))
    }

    /// The median of the differences to the figure without a relay in the same round.
    pub fn added(&self, metric: &str, peer: &str) -> Option<f64> {
        let direct = self.rounds(metric, "direct");
        let pairs = self.rounds(metric, peer).into_iter().zip(direct);
        middle(pairs.map(|(with, without)| with - without).collect())
    }

    /// The number of failed requests of this program.
    pub fn failures(&self, peer: &str) -> f64 {
        self.rounds("failed", peer).iter().fold(0.0, |sum, failed| sum + failed)
    }

    /// The numbers that replace the star in the names of metrics of this form, in order.
    pub fn steps(&self, form: &str) -> Vec<u64> {
        let (start, end) = form.split_once('*').unwrap_or((form, ""));
        let inner = |m: &String| m.strip_prefix(start)?.strip_suffix(end)?.parse().ok();
        let mut steps: Vec<u64> = self.figures.keys().filter_map(inner).collect();
        steps.sort_unstable();
        steps
    }
}

fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}
