//! The root certificates that the certificate of the upstream is checked against.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};

use super::verifier;
use crate::http1::url::Host;
use crate::net::limits::ROOTS_FILE;
use crate::x509::pem::{self, PemError, PemFault};

/// The root certificates, and the name that the upstream's certificate has to contain.
pub struct RootStore {
    pub(super) roots: RootCertStore,
    /// The certificates of PEM files that name the upstream. The upstream may show one of them as
    /// its own.
    pub(super) given: Vec<CertificateDer<'static>>,
    /// The upstream's name or address; `None` if no certificate can contain the name.
    pub(super) name: Option<ServerName<'static>>,
}

/// Why a file of root certificates cannot be used.
#[derive(Debug)]
pub enum RootsError {
    /// The file cannot be read.
    Unreadable(io::Error),
    /// The file is not well-formed PEM, or contains no certificate that can be a root.
    Bad(PemError),
    /// The file contains no certificate.
    Empty,
    /// The file is longer than [`ROOTS_FILE`] bytes.
    TooLong,
}

impl fmt::Display for RootsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootsError::Unreadable(error) => write!(
                f,
                "cannot be read: {error}; name a file that the user who starts the relay may read"
            ),
            RootsError::Bad(error) => error.fmt(f),
            RootsError::Empty => {
                f.write_str("contains no certificate in PEM form; name a file that contains one")
            }
            RootsError::TooLong => {
                f.write_str("is longer than 16 MiB; name a file that contains certificates only")
            }
        }
    }
}

impl RootStore {
    /// Mozilla's roots, for an upstream with this name or address.
    pub fn built_in(host: &Host) -> RootStore {
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.clone()).ok(),
            Host::V4(octets) => Some(IpAddr::from(*octets).into()),
            Host::V6(octets) => Some(IpAddr::from(*octets).into()),
        };
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        RootStore { roots, given: Vec::new(), name }
    }

    /// Adds the certificates of a PEM file. Certificates that webpki does not accept as roots are
    /// skipped, because the bundle of a system may contain some. Returns the number of skipped
    /// certificates. Fails if no certificate is usable.
    pub fn add(&mut self, file: &Path) -> Result<usize, RootsError> {
        let mut text = Vec::new();
        File::open(file)
            .and_then(|file| file.take(ROOTS_FILE + 1).read_to_end(&mut text))
            .map_err(RootsError::Unreadable)?;
        if text.len() as u64 > ROOTS_FILE {
            return Err(RootsError::TooLong);
        }
        let (mut usable, mut skipped_roots, mut last) = (0, 0, None);
        pem::certificates(&text, |line, section| {
            let certificate = CertificateDer::from_pem_slice(section)
                .map_err(|_| PemError { line, fault: PemFault::NotBase64 })?;
            if self.name.as_ref().is_some_and(|name| verifier::is_for(&certificate, name)) {
                self.given.push(certificate.clone());
            }
            match self.roots.add(certificate) {
                Ok(()) => {
                    usable += 1;
                    // Most certificates of a system's bundle are built in. Each root is kept once.
                    if let Some((new, known)) = self.roots.roots.split_last()
                        && known.contains(new)
                    {
                        self.roots.roots.pop();
                    }
                }
                Err(_) => skipped_roots += 1,
            }
            last = Some(line);
            Ok(())
        })
        .map_err(RootsError::Bad)?;
        match last {
            None => Err(RootsError::Empty),
            Some(line) if usable == 0 => {
                Err(RootsError::Bad(PemError { line, fault: PemFault::NotRoot }))
            }
            Some(_) => Ok(skipped_roots),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_be_as_long_as_the_bound_and_no_longer() {
        let path = std::env::temp_dir().join(format!("roots-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        let add = |len: u64| {
            // A sparse file takes no space on the disk.
            file.set_len(len).unwrap();
            RootStore::built_in(&Host::Name("localhost".into())).add(&path)
        };
        let (fits, too_long) = (add(ROOTS_FILE), add(ROOTS_FILE + 1));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(fits, Err(RootsError::Empty)), "{fits:?}");
        assert!(matches!(too_long, Err(RootsError::TooLong)), "{too_long:?}");
    }
}
