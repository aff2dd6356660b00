//! TLS under fire: what a server says, changed at random and cut anywhere, makes an error at worst.

use codex_responses_api_proxy::http1::url::Host;
use codex_responses_api_proxy::net::buffer::Scratch;
use codex_responses_api_proxy::net::tls::{Recording, RootStore, Tls, TlsConnector};
use rustls::{ServerConfig, ServerConnection};
use std::io::Write;
use std::sync::Arc;

#[path = "../examples/upstream/mod.rs"]
#[allow(dead_code, reason = "its certificates alone are used")]
mod stub;

/// Connections.
const ROUNDS: u64 = 1_000;
const ANSWER: &[u8] = &[b'.'; 40_000];

/// The same numbers in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

/// Where records begin.
fn records(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![0];
    while let Some([a, b]) =
        bytes.get(starts[starts.len() - 1] + 3..).and_then(|rest| rest.get(..2))
    {
        let next = starts[starts.len() - 1] + 5 + usize::from(u16::from_be_bytes([*a, *b]));
        if next > bytes.len() {
            break;
        }
        starts.push(next);
    }
    starts
}

fn change(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        return;
    }
    let starts = records(bytes);
    let record = starts[random.below(starts.len())];
    let anywhere = random.below(bytes.len() + 1);
    match random.below(6) {
        0 => (0..1 + random.below(4)).for_each(|_| {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }),
        1 => bytes.truncate(anywhere),
        2 => drop(bytes.drain(anywhere..(anywhere + 1 + random.below(64)).min(bytes.len()))),
        3 => {
            let again = bytes[record..].to_vec();
            let _ = bytes.splice(record..record, again);
        }
        // A record in the clear: some type, and in it the beginning of some message.
        _ => {
            let kind = [0x14, 0x15, 0x16, 0x16, 0x16, 0x17, 0x63][random.below(7)];
            let message = [0, 1, 2, 4, 8, 11, 13, 15, 20, 24][random.below(10)];
            let length = [0, 1, 4, 32, 255, 4_096, 65_535, 65_536, 0xff_ffff][random.below(9)];
            let mut body = vec![message];
            body.extend(&(length as u32).to_be_bytes()[1..]);
            body.resize(random.below(64), b'a');
            let mut record_bytes = vec![kind, 3, 3, 0, body.len() as u8];
            record_bytes.extend(body);
            let at = if random.below(4) == 0 { anywhere } else { record };
            let _ = bytes.splice(at..at, record_bytes);
        }
    }
}

/// Feeds the bytes in pieces; false when that led to an error, after which nothing may panic
/// either.
fn feed(
    tls: &mut Tls,
    bytes: &[u8],
    random: &mut Random,
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> bool {
    let (mut wire, mut decrypted, mut sent) = (Scratch::new(0), Scratch::new(0), Scratch::new(0));
    let mut rest = bytes;
    loop {
        let most = [1, 7, 300, 20_000][random.below(4)];
        let (piece, later) = rest.split_at(rest.len().min(1 + random.below(most)));
        rest = later;
        tls.resume(&mut wire);
        wire.push(piece);
        decrypted.clear();
        sent.clear();
        let result = tls.decrypt(&mut wire, &mut decrypted, &mut sent);
        plain.extend(decrypted.bytes());
        out.extend(sent.bytes());
        if result.is_err() {
            assert!(tls.encrypt(b"more", &mut sent).is_err());
            tls.close(&mut sent);
            return false;
        }
        if rest.is_empty() {
            return true;
        }
    }
}

/// What the server has to say now.
fn said(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn what_a_server_says_changed_at_random_is_an_error_and_never_a_panic_or_another_answer() {
    let identity = stub::Identity::new().unwrap();
    let file = std::env::temp_dir().join(format!("tls-{}.pem", std::process::id()));
    std::fs::write(&file, &identity.ca).unwrap();
    let mut roots = RootStore::built_in(&Host::Name("localhost".into()));
    roots.add(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let (connector, _) = TlsConnector::new(roots, Recording::Off).unwrap();
    let config: Arc<ServerConfig> = Arc::new(identity.config().unwrap());
    let (mut whole, mut failed, mut after) = (0, 0, 0);
    for seed in 1..=ROUNDS {
        let mut random = Random(seed);
        let mut tls = connector.connection().unwrap();
        let mut server = ServerConnection::new(config.clone()).unwrap();
        let (mut plain, mut out) = (Vec::new(), Vec::new());
        assert!(feed(&mut tls, &[], &mut random, &mut plain, &mut out));
        server.read_tls(&mut &out[..]).unwrap();
        server.process_new_packets().unwrap();
        out.clear();
        let mut flight = said(&mut server);
        let early = random.below(2) == 0;
        if early {
            (0..1 + random.below(3)).for_each(|_| change(&mut flight, &mut random));
        }
        if !feed(&mut tls, &flight, &mut random, &mut plain, &mut out) || !tls.is_ready() {
            failed += 1;
            continue;
        }
        server.read_tls(&mut &out[..]).unwrap();
        if server.process_new_packets().is_err() {
            failed += 1;
            continue;
        }
        server.writer().write_all(ANSWER).unwrap();
        let mut answer = said(&mut server);
        if random.below(8) > 0 {
            (0..1 + random.below(3)).for_each(|_| change(&mut answer, &mut random));
            after += 1;
        }
        let is_ok = feed(&mut tls, &answer, &mut random, &mut plain, &mut out);
        assert!(ANSWER.starts_with(&plain), "another response");
        whole += usize::from(is_ok && plain.len() == ANSWER.len());
    }
    println!("{whole} whole responses, {failed} handshakes that failed, {after} responses changed");
    assert!(whole > 0 && failed > 0 && after > 0);
}
