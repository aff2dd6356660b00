//! The measurements of each program. Every function starts the program again and records its
//! figures.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::load::{Pace, Plan, Report, Target, run};
use crate::peers::{Lab, Peer};
use crate::process::{Running, own_cpu};
use crate::results::Results;
use crate::upstream::Answer;
use crate::wire::EVENT;

const MIB: u64 = 1 << 20;
/// The time at the beginning of every run that does not count: connections are opened in it.
const WARM: Duration = Duration::from_secs(1);
/// The size of the chunks of a bulk response: each fits into a TLS record.
const CHUNK: u64 = 16_000;

/// How many repetitions of each measurement.
pub struct Effort {
    /// The duration of one run with small requests.
    pub time: Duration,
    /// The number of starts in a round.
    pub starts: usize,
    /// The number of bodies of 64 MiB in a round.
    pub bodies: u64,
    /// The number of events of each of the thousand streams.
    pub events: u64,
    /// The numbers of open streams.
    pub streams: Vec<usize>,
    /// The sizes of bodies.
    pub sizes: Vec<u64>,
}

/// The state of the measurements.
pub struct Bench {
    pub lab: Lab,
    /// The TLS configuration of a client that connects to the upstream directly.
    pub tls: Arc<ClientConfig>,
    pub effort: Effort,
    pub results: Results,
}

/// A started program, or the upstream itself.
struct Subject {
    name: &'static str,
    process: Option<Running>,
    target: Target,
}

impl Subject {
    fn cpu(&self) -> f64 {
        // If the program has ended, requests fail.
        self.process.as_ref().and_then(|process| process.cpu().ok()).unwrap_or(f64::NAN)
    }

    fn resident(&self) -> f64 {
        self.process.as_ref().and_then(|process| process.resident().ok()).unwrap_or(f64::NAN)
    }
}

impl Bench {
    fn start(&self, peer: Option<&Peer>, more: &[&str]) -> io::Result<Subject> {
        let Some(peer) = peer else {
            let direct = Some((self.tls.clone(), self.lab.key.clone()));
            let target = Target { port: self.lab.upstream, direct };
            return Ok(Subject { name: "direct", process: None, target });
        };
        let process = peer.start(&self.lab, more)?;
        let target = Target { port: process.port, direct: None };
        Ok(Subject { name: peer.name, process: Some(process), target })
    }

    fn run(&mut self, subject: &Subject, plan: &Plan, mark: impl FnMut()) -> io::Result<Report> {
        let report = run(&subject.target, plan, mark)?;
        if let Some(fault) = &report.fault {
            eprintln!(
                "  {}: {} requests failed, the last with: {fault}",
                subject.name, report.failed
            );
            self.results.put("failed", subject.name, report.failed as f64);
        }
        Ok(report)
    }

    /// Records a figure. A figure that could not be measured is left out.
    fn put(&mut self, subject: &Subject, metric: &str, value: f64) {
        if value.is_finite() {
            self.results.put(metric, subject.name, value);
        }
    }

    /// The CPU time per request, while each connection sends as many requests as it can.
    pub fn saturation(&mut self, peer: Option<&Peer>) -> io::Result<()> {
        let subject = self.start(peer, &[])?;
        let small = |connections| (connections, 2 << 10, Answer::Length(1 << 10));
        let event = EVENT.len() as u64;
        let real = (16, 55_000, Answer::Chunked(400 * event, event));
        for (name, (connections, upload, answer)) in
            [("1", small(1)), ("64", small(64)), ("512", small(512)), ("real", real)]
        {
            let whole = WARM + self.effort.time;
            let (pace, marks) = (Pace::Saturate(whole), vec![WARM, whole]);
            let plan = Plan { connections, pace, upload, answer, marks };
            let mut clocks = Vec::new();
            let report = self.run(&subject, &plan, || {
                clocks.push((Instant::now(), subject.cpu(), own_cpu()));
            })?;
            let [(from, before, own_before), (to, after, own)] = clocks[..] else { continue };
            let (answered, used) = (report.answered(from, to) as f64, after - before);
            let seconds = (to - from).as_secs_f64();
            let share = (own - own_before) / seconds / self.lab.cores.others.len() as f64;
            self.put(&subject, &format!("rate/{name}"), answered / seconds);
            self.put(&subject, &format!("cpu/{name}"), used / answered * 1e6);
            self.put(&subject, &format!("busy/{name}"), used / seconds * 100.0);
            self.put(&subject, &format!("busy others/{name}"), share * 100.0);
        }
        Ok(())
    }

    /// The latency at a constant rate, which does not depend on the responses.
    pub fn latency(&mut self, peer: Option<&Peer>, with_reference: bool) -> io::Result<()> {
        let subject = self.start(peer, &[])?;
        // The reference needs 44 ms for a response, so it gets a lower rate: half of its maximum.
        // The figures then show its own time and not a queue that grows during the whole run.
        let (usual, slow) = ([(1, 1000), (64, 5000)], [(1, 10), (64, 500)]);
        let rates = match subject.name {
            "reference" => slow.to_vec(),
            "direct" if with_reference => [usual, slow].concat(),
            _ => usual.to_vec(),
        };
        for (connections, rate) in rates {
            let plan = Plan {
                connections,
                pace: Pace::Rate(f64::from(rate), WARM + self.effort.time),
                upload: 2 << 10,
                answer: Answer::Length(1 << 10),
                marks: vec![WARM],
            };
            let mut from = None;
            let report = self.run(&subject, &plan, || from = Some(Instant::now()))?;
            let counted =
                report.answers.iter().filter(|(end, _)| from.is_some_and(|from| *end > from));
            let times: Vec<u64> = counted.map(|(_, time)| *time).collect();
            self.quantiles(&subject, &format!("latency/{connections} at {rate}"), times);
        }
        Ok(())
    }

    /// Records those quantiles, in microseconds, for which there are enough values.
    fn quantiles(&mut self, subject: &Subject, metric: &str, mut times: Vec<u64>) {
        times.sort_unstable();
        for (name, beyond) in [("50", 2), ("90", 10), ("99", 100), ("99.9", 1000)] {
            if times.len() >= beyond {
                let at = times.len() - 1 - (times.len() - 1) / beyond;
                let value = times[at] as f64 / 1e3;
                self.put(subject, &format!("{metric}/p{name}"), value);
            }
        }
    }

    /// Transfers this many bodies one after the other. Returns the CPU time and the elapsed time.
    fn transfers(
        &mut self,
        subject: &Subject,
        count: u64,
        up: u64,
        down: u64,
    ) -> io::Result<(f64, f64)> {
        let answer = if down > 0 { Answer::Chunked(down, CHUNK) } else { Answer::Length(1 << 10) };
        let pace = Pace::Times(count, Duration::ZERO);
        let plan = Plan { connections: 1, pace, upload: up, answer, marks: vec![] };
        let (start, before) = (Instant::now(), subject.cpu());
        self.run(subject, &plan, || {})?;
        Ok((subject.cpu() - before, start.elapsed().as_secs_f64()))
    }

    /// Bodies of 64 MiB.
    pub fn bulk(&mut self, peer: Option<&Peer>) -> io::Result<()> {
        let size = 64 * MIB;
        for (name, up, down) in [("up", size, 0), ("down", 2 << 10, size)] {
            let subject = self.start(peer, &[])?;
            std::thread::sleep(Duration::from_millis(200));
            let idle = subject.resident();
            if let Some(process) = &subject.process {
                process.forget_peak();
            }
            self.transfers(&subject, 1, up, down)?;
            if let Some(process) = &subject.process {
                let peak = process.peak()? - idle;
                self.put(&subject, &format!("bulk/{name}/peak"), peak / MIB as f64);
            }
            let bodies = self.effort.bodies;
            let (used, took) = self.transfers(&subject, bodies, up, down)?;
            let moved = (bodies * 64) as f64;
            self.put(&subject, &format!("bulk/{name}/per cpu"), moved / used);
            self.put(&subject, &format!("bulk/{name}/wall"), moved / took);
        }
        Ok(())
    }

    /// A thousand open streams.
    pub fn streams(&mut self, peer: Option<&Peer>) -> io::Result<()> {
        let (streams, interval) = (1000, 250);
        let subject = self.start(peer, &[])?;
        std::thread::sleep(Duration::from_millis(200));
        let (idle, before) = (subject.resident(), subject.cpu());
        let ramp = Duration::from_secs(2);
        let plan = Plan {
            connections: streams,
            pace: Pace::Times(1, ramp),
            upload: 2 << 10,
            answer: Answer::Timed(self.effort.events, interval),
            marks: vec![ramp + Duration::from_millis(500)],
        };
        let mut full = f64::NAN;
        let report = self.run(&subject, &plan, || full = subject.resident())?;
        let (streams, events) = (streams as f64, report.events.len() as f64);
        self.put(&subject, "streams/bytes", (full - idle) / streams);
        self.put(&subject, "streams/cpu", (subject.cpu() - before) / events * 1e6);
        self.quantiles(&subject, "streams/first byte", report.first_bytes);
        self.quantiles(&subject, "streams/event", report.events);
        Ok(())
    }

    /// The time until the program accepts connections, and its memory before the first request.
    pub fn starting(&mut self, peer: Option<&Peer>) -> io::Result<()> {
        if peer.is_none() {
            return Ok(());
        }
        for _ in 0..self.effort.starts {
            let subject = self.start(peer, &[])?;
            let took = subject.process.as_ref().map_or(f64::NAN, |p| p.started_in.as_secs_f64());
            self.put(&subject, "start/ms", took * 1e3);
        }
        let subject = self.start(peer, &[])?;
        std::thread::sleep(Duration::from_millis(300));
        self.put(&subject, "start/idle", subject.resident() / MIB as f64);
        Ok(())
    }

    /// For this relay only: the cost against the number of streams and against the size of bodies.
    pub fn scale(&mut self, relay: &Peer) -> io::Result<()> {
        for streams in self.effort.streams.clone() {
            self.scale_streams(relay, streams)?;
        }
        for size in self.effort.sizes.clone() {
            for (name, up, down) in [("up", size, 0), ("down", 0, size)] {
                let subject = self.start(Some(relay), &[])?;
                // Connections are open already, and there are enough bodies for the clock's
                // resolution.
                self.transfers(&subject, 1, 1 << 10, 1 << 10)?;
                let count = (32 * MIB / size).clamp(1, 500);
                let (used, _) = self.transfers(&subject, count, up, down)?;
                let peak = subject.process.as_ref().map_or(Ok(f64::NAN), Running::peak)?;
                self.put(&subject, &format!("scale/{name}/{size}/cpu"), used / count as f64);
                self.put(&subject, &format!("scale/{name}/{size}/peak"), peak / MIB as f64);
            }
        }
        Ok(())
    }

    /// One event a second on each stream, measured for four seconds when all are open.
    fn scale_streams(&mut self, relay: &Peer, streams: usize) -> io::Result<()> {
        let subject =
            self.start(Some(relay), &["--max-connections", &(streams + 16).to_string()])?;
        let ramp = Duration::from_millis(streams as u64).max(Duration::from_secs(1));
        let (from, to) = (ramp + Duration::from_secs(1), ramp + Duration::from_secs(5));
        let plan = Plan {
            connections: streams,
            pace: Pace::Times(1, ramp),
            upload: 2 << 10,
            answer: Answer::Timed(to.as_secs() + 1, 1000),
            marks: vec![from, to],
        };
        let mut seen = Vec::new();
        let report = self.run(&subject, &plan, || {
            seen.push((Instant::now(), subject.cpu(), subject.resident()));
        })?;
        let [(from, before, _), (to, after, resident)] = seen[..] else { return Ok(()) };
        let busy = (after - before) / (to - from).as_secs_f64();
        self.put(&subject, &format!("scale/streams/{streams}/cpu"), busy * 100.0);
        self.put(&subject, &format!("scale/streams/{streams}/resident"), resident / MIB as f64);
        self.quantiles(&subject, &format!("scale/streams/{streams}/event"), report.events);
        Ok(())
    }
}
