//! PEM files and certificates, compared with the independent readers of `strict.rs`.

use codex_responses_api_proxy::x509::certificate::Certificate;
use codex_responses_api_proxy::x509::pem;

use super::strict;

/// A PEM file holds exactly the certificates that an independent reader finds, or it is refused. An
/// error names a line of the file.
pub fn pem_file(data: &[u8]) {
    let mut found = Vec::new();
    let all = pem::certificates(data, |line, section| {
        found.push((line, section.to_vec()));
        Ok(())
    });
    match (all, strict::pem(data)) {
        (Ok(()), Some(want)) => assert_eq!(found, want),
        (Err(error), None) => {
            let lines = data.split_inclusive(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(&error.line), "line {} of {lines}", error.line);
        }
        (all, want) => panic!("{all:?} and {want:?}"),
    }
}

/// An independent reader finds the same issuer and date in a certificate; a terminal can show them.
pub fn certificate(data: &[u8]) {
    let got = Certificate::read(data);
    let want = strict::certificate(data);
    let Some(Certificate { issuer, not_after: (year, month, day) }) = got else {
        return assert_eq!(want, None);
    };
    assert!(issuer.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
    assert!((1..=12).contains(&month) && (1..=31).contains(&day) && year < 10_000);
    let (name, date) = want.expect("shown, but it is no certificate");
    let shown: String = name[..name.len().min(64)].escape_ascii().to_string();
    assert_eq!((issuer, (year, month, day)), (shown, date));
    assert_eq!(Certificate::read(&[data, b"more"].concat()), Certificate::read(data));
}
