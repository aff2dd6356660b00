//! Tests which certificates of the upstream are accepted, and the errors for the others.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use codex_responses_api_proxy::net::timeouts::CHECK_VERDICT;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, NameConstraints, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};

use super::support::upstream::{memory_file, server_config};
use super::support::{Gate, Relay, Response, Upstream, certs, ok, post, skipped};

/// As `openssl req -x509` makes it: self-signed, and a CA.
fn self_signed_ca(name: &str, last_year: i32) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(last_year, 1, 1);
    (params.self_signed(&key).unwrap(), key)
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// A server that shows this chain and responds to each request, if it gets one.
fn showing(chain: Vec<CertificateDer<'static>>, key: &KeyPair, is_tls13: bool) -> Upstream {
    let versions = if is_tls13 { [&TLS13] } else { [&TLS12] };
    let config = server_config(chain, &private(key), &versions, None);
    Upstream::new(Some(config), |peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    })
}

fn ask(upstream: &Upstream, roots: Option<&str>) -> Response {
    let mut starter = Relay::bare().args(["--upstream-url", &upstream.url()]);
    if let Some(roots) = roots {
        starter = starter.args(["--ca-file", roots]);
    }
    let relay = starter.start();
    relay.connect().send(post("", "{}")).response()
}

/// The error code of the local response; empty for a response of the upstream.
fn code(response: &Response) -> String {
    if response.status == 200 { String::new() } else { response.code().to_owned() }
}

#[test]
fn a_self_signed_certificate_that_is_given_as_a_root_holds_although_it_is_a_ca() {
    for is_tls13 in [true, false] {
        for (name, last_year, given, want) in [
            ("localhost", 4000, true, ""),
            ("localhost", 4000, false, "upstream_tls_unknown_issuer"),
            ("other.example", 4000, true, "upstream_tls_wrong_name"),
            ("localhost", 2021, true, "upstream_tls_expired"),
        ] {
            let (certificate, key) = self_signed_ca(name, last_year);
            let file = memory_file(certificate.pem().as_bytes());
            let upstream = showing(vec![certificate.der().clone()], &key, is_tls13);
            let response = ask(&upstream, given.then(|| file.to_str().unwrap()));
            assert_eq!(code(&response), want, "{name} until {last_year}, given: {given}");
            assert_eq!(upstream.requests().len(), usize::from(want.is_empty()));
        }
    }
}

#[test]
fn a_certificate_with_the_name_of_a_given_root_and_another_key_is_an_unknown_issuer() {
    let (given, _) = self_signed_ca("localhost", 4000);
    let (shown, key) = self_signed_ca("localhost", 4000);
    let file = memory_file(given.pem().as_bytes());
    let upstream = showing(vec![shown.der().clone()], &key, true);
    assert_eq!(code(&ask(&upstream, file.to_str())), "upstream_tls_unknown_issuer");
    assert!(upstream.requests().is_empty(), "the key went to another server");
}

#[test]
fn a_certificate_that_does_not_hold_for_another_reason_is_a_bad_certificate() {
    let key = KeyPair::generate().unwrap();
    let leaf = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        change(&mut params);
        params
    };
    let plain = leaf(&|_| {});
    let purpose = certs().sign(
        leaf(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
        &key,
    );
    let ca = certs()
        .sign(leaf(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), &key);
    // An intermediate that may sign for other names only, and one below it that may sign nothing.
    let between = |change: &dyn Fn(&mut CertificateParams)| {
        let key = KeyPair::generate().unwrap();
        let mut params = leaf(change);
        params.distinguished_name.push(DnType::CommonName, "between");
        (certs().sign(params.clone(), &key), Issuer::new(params, key))
    };
    let (constrained, issuer) = between(&|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    let outside = plain.signed_by(&key, &issuer).unwrap().der().clone();
    let (no_ca, issuer) = between(&|params| params.is_ca = IsCa::ExplicitNoCa);
    let below = plain.signed_by(&key, &issuer).unwrap().der().clone();
    for (what, chain) in [
        ("for clients only", vec![purpose]),
        ("a CA as a server", vec![ca]),
        ("outside the names of its issuer", vec![outside, constrained]),
        ("signed by no CA", vec![below, no_ca]),
    ] {
        for is_tls13 in [true, false] {
            let upstream = showing(chain.clone(), &key, is_tls13);
            let response = ask(&upstream, Some(&certs().ca_file()));
            assert_eq!(code(&response), "upstream_tls_bad_certificate", "{what}");
            assert!(upstream.requests().is_empty(), "the key went to another server");
        }
    }
}

/// A folder for the files that the openssl program reads and writes.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("relay-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Runs openssl there; false where it is missing.
    pub fn openssl(&self, arguments: &str) -> bool {
        let command = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .output();
        match command {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "openssl {arguments}: {said}");
                true
            }
            Err(_) => {
                skipped("there is no openssl program here");
                false
            }
        }
    }

    fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::pem_file_iter(self.file(name)).unwrap().map(Result::unwrap).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn sha_1_and_version_1_are_bad_certificates() {
    let folder = Folder::new("old-certificates");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(folder.file("key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.file("san"), "subjectAltName=DNS:localhost\n").unwrap();
    if !folder.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ca -days 9 -keyout ca.key -out ca.pem") {
        return;
    }
    folder.openssl("req -new -key key -subj /CN=localhost -out request");
    let sign = "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 9";
    folder.openssl(&format!("{sign} -sha1 -extfile san -out sha1.pem"));
    folder.openssl(&format!("{sign} -sha256 -out v1.pem"));
    for file in ["sha1.pem", "v1.pem"] {
        let upstream = showing(folder.chain(file), &key, true);
        let response = ask(&upstream, Some(&folder.file("ca.pem")));
        assert_eq!(code(&response), "upstream_tls_bad_certificate", "{file}");
        assert!(upstream.requests().is_empty(), "the key went to another server");
    }
}

#[test]
fn a_client_certificate_that_is_demanded_is_named() {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let chain = vec![certs().sign(params, &key)];
    for version in [&TLS13, &TLS12] {
        let verifier = Some(certs().client_verifier());
        let config = server_config(chain.clone(), &private(&key), &[version], verifier);
        let upstream = Upstream::new(Some(config), |_| {});
        for _ in 0..3 {
            let relay = Relay::to(&upstream.url()).start();
            let response = relay.connect().send(post("", "{}")).response();
            assert_eq!(code(&response), "upstream_tls_client_certificate", "{version:?}");
        }
        let (exit_code, _, said) = Relay::to(&upstream.url()).args(["--check"]).run(b"");
        assert_eq!(exit_code, 1);
        assert!(said.contains("client certificate"), "{said}");
    }
}

#[test]
fn a_client_certificate_that_is_only_asked_for_is_not_needed() {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let chain = vec![certs().sign(params, &key)];
    let verifier = Some(certs().lenient_client_verifier());
    let config = server_config(chain, &private(&key), &[&TLS13], verifier);
    let upstream = Upstream::new(Some(config), |peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    // `--check` waits for a refusal, which may come behind the handshake.
    let start = Instant::now();
    let (exit_code, out, err) = Relay::to(&upstream.url()).args(["--check"]).run(b"");
    assert_eq!(exit_code, 0, "{out}{err}");
    assert!(start.elapsed() >= CHECK_VERDICT);
}

/// A server of OpenSSL's.
pub struct OpensslServer {
    child: Child,
    pub port: u16,
}

impl OpensslServer {
    pub fn start(program: &str, folder: &Folder, arguments: &str) -> OpensslServer {
        let mut child = Command::new(program)
            .args("s_server -accept 127.0.0.1:0 -naccept 1 -www".split(' '))
            .args(arguments.split(' '))
            .current_dir(&folder.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (tell, told) = Gate::pair();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                tell.pass(line);
            }
        });
        let port = loop {
            let line: String = told.wait();
            if let Some((_, port)) = line.strip_prefix("ACCEPT ").and_then(|at| at.rsplit_once(':'))
            {
                break port.parse().unwrap();
            }
        };
        OpensslServer { child, port }
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn suites_and_certificate_keys_that_servers_have_are_taken() {
    let folder = Folder::new("keys");
    let make = |name: &str, key: &str| {
        folder.openssl(&format!(
            "req -x509 -newkey {key} -nodes -subj /CN=localhost -addext subjectAltName=DNS:localhost -days 9 -keyout {name}.key -out {name}.pem"
        ))
    };
    if !make("rsa", "rsa:2048") {
        return;
    }
    make("p256", "ec -pkeyopt ec_paramgen_curve:P-256");
    make("p384", "ec -pkeyopt ec_paramgen_curve:P-384");
    make("ed25519", "ed25519");
    make("pss", "rsa-pss -pkeyopt rsa_keygen_bits:2048");
    for hash in ["sha256", "sha384", "sha512"] {
        make(
            hash,
            &format!(
                "rsa-pss -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:{hash} -pkeyopt rsa_pss_keygen_mgf1_md:{hash} -pkeyopt rsa_pss_keygen_saltlen:{} -{hash}",
                match hash {
                    "sha256" => 32,
                    "sha384" => 48,
                    _ => 64,
                }
            ),
        );
    }
    for (key, more) in [
        ("p256", "-tls1_3 -ciphersuites TLS_CHACHA20_POLY1305_SHA256"),
        ("p256", "-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305"),
        ("rsa", "-tls1_2 -cipher ECDHE-RSA-CHACHA20-POLY1305"),
        ("rsa", "-tls1_3"),
        ("p384", "-tls1_3"),
        ("ed25519", "-tls1_3"),
        ("pss", "-tls1_3"),
        ("sha256", "-tls1_3"),
        ("sha384", "-tls1_3"),
        ("sha512", "-tls1_3"),
    ] {
        let server = OpensslServer::start(
            "openssl",
            &folder,
            &format!("-cert {key}.pem -key {key}.key {more}"),
        );
        let (code, out, err) = Relay::bare()
            .args(["--upstream-url", &format!("https://localhost:{}/", server.port)])
            .args(["--ca-file", &folder.file(&format!("{key}.pem")), "--check"])
            .run(b"");
        assert!(code == 0 && out.contains("TLS 1."), "{key} {more}: {out}{err}");
    }
}
