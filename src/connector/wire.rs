//! What crosses between the loop and the connector: messages of fixed sizes, read strictly. A
//! message that means nothing is the end of both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use crate::http1::local_response::UpstreamFault;
use crate::http1::url::Host;
use crate::process::upstream_users::Reach;

/// A message that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// What the connector is told once, before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The one host that is ever connected to: the upstream's, or the egress proxy's.
    pub host: Host,
    /// Its one port.
    pub port: u16,
    /// The ids of `--user`.
    pub user: Option<(u32, u32)>,
    /// Which addresses of the host are connected to.
    pub reach: Reach,
}

/// Bytes before the host of a [`Target`].
const BEFORE_HOST: usize = 13;
/// The longest message: a [`Target`] with the longest name.
pub const LONGEST: usize = BEFORE_HOST + 255;

impl Target {
    /// As a message.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, host) = match &self.host {
            Host::Name(name) => (0, name.as_bytes().to_vec()),
            Host::V4(octets) => (4, octets.to_vec()),
            Host::V6(octets) => (6, octets.to_vec()),
        };
        let (uid, gid) = self.user.unwrap_or_default();
        let mut message = vec![kind, u8::from(self.user.is_some())];
        message.extend(self.port.to_ne_bytes());
        message.extend(uid.to_ne_bytes());
        message.extend(gid.to_ne_bytes());
        message.push(u8::from(self.reach == Reach::Here));
        message.extend(host);
        message
    }

    /// The opposite of [`Target::encode`].
    pub fn decode(message: &[u8]) -> Result<Target, Malformed> {
        let (head, host) = message.split_at_checked(BEFORE_HOST).ok_or(Malformed)?;
        let host = match (head[0], host) {
            (0, name) if name.len() <= LONGEST - BEFORE_HOST && !name.contains(&0) => {
                Host::Name(String::from_utf8(name.to_vec()).map_err(|_| Malformed)?)
            }
            (4, octets) => Host::V4(octets.try_into().map_err(|_| Malformed)?),
            (6, octets) => Host::V6(octets.try_into().map_err(|_| Malformed)?),
            _ => return Err(Malformed),
        };
        let user = match head[1] {
            0 => None,
            1 => Some((number(&head[4..8]), number(&head[8..12]))),
            _ => return Err(Malformed),
        };
        let reach = match head[12] {
            0 => Reach::Anywhere,
            1 => Reach::Here,
            _ => return Err(Malformed),
        };
        Ok(Target { host, port: u16::from_ne_bytes([head[2], head[3]]), user, reach })
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// What the loop asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A connection, which the reply names by this number.
    Dial(u64),
    /// That one is not wanted any more.
    Cancel(u64),
    /// What was connected to is not what was expected: the name may lead elsewhere by now.
    Doubt,
}

/// The first byte of a message that brings the server-info file; what was written to it follows. It
/// comes at most once.
pub const SERVER_INFO: u8 = 4;

/// Bytes of a [`Request`].
pub const REQUEST: usize = 9;

impl Request {
    /// As a message.
    pub fn encode(self) -> [u8; REQUEST] {
        let (kind, id) = match self {
            Request::Dial(id) => (1, id),
            Request::Cancel(id) => (2, id),
            Request::Doubt => (3, 0),
        };
        let mut message = [kind; REQUEST];
        message[1..].copy_from_slice(&id.to_ne_bytes());
        message
    }

    /// The opposite of [`Request::encode`].
    pub fn decode(message: &[u8]) -> Result<Request, Malformed> {
        let message: &[u8; REQUEST] = message.try_into().map_err(|_| Malformed)?;
        let [kind, id @ ..] = *message;
        match (kind, u64::from_ne_bytes(id)) {
            (1, id) => Ok(Request::Dial(id)),
            (2, id) => Ok(Request::Cancel(id)),
            (3, 0) => Ok(Request::Doubt),
            _ => Err(Malformed),
        }
    }
}

/// How a dial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection comes with the reply.
    Connected(SocketAddr),
    /// There is none.
    Failed(UpstreamFault),
    /// Nobody wanted it any more.
    Cancelled,
}

/// Addresses of the name that a reply tells; a name may have more.
pub const SHOWN: usize = 8;

/// What the connector says to a [`Request::Dial`], once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number of the request.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// How long the addresses were waited for.
    pub lookup: Duration,
    /// How long the connection took after that.
    pub connect: Duration,
    /// The first addresses of the name, in the order in which they are tried.
    pub resolved: [Option<IpAddr>; SHOWN],
}

/// Bytes of an [`encode_address`].
pub const ADDRESS: usize = 23;
/// Bytes of a [`Reply`].
pub const REPLY: usize = 8 + 1 + 4 + 4 + ADDRESS * (1 + SHOWN);

/// What an attempt can fail with, each with its byte.
const FAULTS: [(u8, UpstreamFault); 4] = [
    (1, UpstreamFault::Dns),
    (2, UpstreamFault::Refused),
    (3, UpstreamFault::Unreachable),
    (4, UpstreamFault::OutOfDescriptors),
];
const CONNECTED: u8 = 0;
const CANCELLED: u8 = 255;

impl Reply {
    /// As a message.
    pub fn encode(&self) -> [u8; REPLY] {
        let (result, address) = match self.outcome {
            Outcome::Connected(address) => (CONNECTED, Some(address)),
            Outcome::Cancelled => (CANCELLED, None),
            Outcome::Failed(fault) => {
                let byte = FAULTS.iter().find(|(_, known)| *known == fault);
                (byte.map_or(3, |(byte, _)| *byte), None)
            }
        };
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let mut message = [0; REPLY];
        message[..8].copy_from_slice(&self.id.to_ne_bytes());
        message[8] = result;
        message[9..13].copy_from_slice(&micros(self.lookup).to_ne_bytes());
        message[13..17].copy_from_slice(&micros(self.connect).to_ne_bytes());
        let shown = self.resolved.map(|ip| ip.map(|ip| SocketAddr::new(ip, 0)));
        let places = message[17..].chunks_exact_mut(ADDRESS);
        for (place, address) in places.zip(std::iter::once(address).chain(shown)) {
            place.copy_from_slice(&encode_address(address));
        }
        message
    }

    /// The opposite of [`Reply::encode`].
    pub fn decode(message: &[u8]) -> Result<Reply, Malformed> {
        let message: &[u8; REPLY] = message.try_into().map_err(|_| Malformed)?;
        let (head, places) = message.split_at(17);
        let mut places = places.chunks_exact(ADDRESS).map(decode_address);
        let address = places.next().ok_or(Malformed)??;
        let mut resolved = [None; SHOWN];
        for (to, from) in resolved.iter_mut().zip(places) {
            *to = from?.map(|address| address.ip());
        }
        let outcome = match (head[8], address) {
            (CONNECTED, Some(address)) => Outcome::Connected(address),
            (CANCELLED, None) => Outcome::Cancelled,
            (byte, None) => {
                let fault = FAULTS.iter().find(|(known, _)| *known == byte).ok_or(Malformed)?;
                Outcome::Failed(fault.1)
            }
            _ => return Err(Malformed),
        };
        let micros = |at: usize| Duration::from_micros(number(&head[at..at + 4]).into());
        let id = head[..8].try_into().map_err(|_| Malformed)?;
        Ok(Reply {
            id: u64::from_ne_bytes(id),
            outcome,
            lookup: micros(9),
            connect: micros(13),
            resolved,
        })
    }
}

/// Family, address, port, scope; zeros where there is none.
pub fn encode_address(address: Option<SocketAddr>) -> [u8; ADDRESS] {
    let mut bytes = [0; ADDRESS];
    match address {
        None => {}
        Some(SocketAddr::V4(address)) => {
            bytes[0] = 4;
            bytes[1..5].copy_from_slice(&address.ip().octets());
            bytes[17..19].copy_from_slice(&address.port().to_ne_bytes());
        }
        Some(SocketAddr::V6(address)) => {
            bytes[0] = 6;
            bytes[1..17].copy_from_slice(&address.ip().octets());
            bytes[17..19].copy_from_slice(&address.port().to_ne_bytes());
            bytes[19..].copy_from_slice(&address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

/// The opposite of [`encode_address`].
pub fn decode_address(bytes: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    let bytes: &[u8; ADDRESS] = bytes.try_into().map_err(|_| Malformed)?;
    let port = u16::from_ne_bytes([bytes[17], bytes[18]]);
    let scope = number(&bytes[19..]);
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[1..17]);
    match bytes[0] {
        0 if *bytes == [0; ADDRESS] => Ok(None),
        4 if bytes[5..17] == [0; 12] && scope == 0 => {
            let ip = Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
            Ok(Some(SocketAddrV4::new(ip, port).into()))
        }
        6 => Ok(Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for request in
            [Request::Dial(0), Request::Dial(u64::MAX), Request::Cancel(7), Request::Doubt]
        {
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        let v6 = SocketAddrV6::new("fe80::1".parse().unwrap(), 443, 0, 3).into();
        let mut resolved = [None; SHOWN];
        resolved[0] = Some("192.0.2.1".parse().unwrap());
        resolved[7] = Some("2001:db8::1".parse().unwrap());
        for outcome in [
            Outcome::Connected("192.0.2.1:1".parse().unwrap()),
            Outcome::Connected(v6),
            Outcome::Failed(UpstreamFault::Dns),
            Outcome::Failed(UpstreamFault::Refused),
            Outcome::Failed(UpstreamFault::Unreachable),
            Outcome::Failed(UpstreamFault::OutOfDescriptors),
            Outcome::Cancelled,
        ] {
            let (lookup, connect) = (Duration::from_micros(1), Duration::from_micros(9));
            let reply = Reply { id: 1 << 40, outcome, lookup, connect, resolved };
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
        for host in [
            Host::Name("upstream.test".into()),
            Host::Name("x".repeat(255)),
            Host::V4([127, 0, 0, 1]),
            Host::V6([9; 16]),
        ] {
            for user in [None, Some((0, 0)), Some((65_520, 7))] {
                for reach in [Reach::Here, Reach::Anywhere] {
                    let target = Target { host: host.clone(), port: 443, user, reach };
                    let message = target.encode();
                    assert!(message.len() <= LONGEST);
                    assert_eq!(Target::decode(&message), Ok(target));
                }
            }
        }
    }

    /// Whatever is changed: it is not understood, or means exactly what it says.
    #[test]
    fn what_means_nothing_is_refused() {
        let reply = Reply {
            id: 1,
            outcome: Outcome::Failed(UpstreamFault::Refused),
            lookup: Duration::ZERO,
            connect: Duration::ZERO,
            resolved: [None; SHOWN],
        };
        let message = reply.encode();
        for at in 0..REPLY {
            for byte in 0..=255 {
                let mut changed = message;
                changed[at] = byte;
                if let Ok(reply) = Reply::decode(&changed) {
                    assert_eq!(reply.encode(), changed, "{at} {byte}");
                }
            }
        }
        assert_eq!(Reply::decode(&message[1..]), Err(Malformed));
        assert_eq!(Reply::decode(&[&message[..], &[0]].concat()), Err(Malformed));
        assert_eq!(Request::decode(&[0; REQUEST]), Err(Malformed));
        assert_eq!(Request::decode(&[3; REQUEST]), Err(Malformed));
        assert_eq!(Request::decode(&[1; REQUEST - 1]), Err(Malformed));
        let reach = Reach::Anywhere;
        let target = Target { host: Host::V4([1; 4]), port: 1, user: None, reach };
        for at in [0, 1, 12] {
            let mut changed = target.encode();
            changed[at] = 9;
            assert_eq!(Target::decode(&changed), Err(Malformed));
        }
        assert_eq!(Target::decode(&target.encode()[..14]), Err(Malformed));
        let long = Target { host: Host::Name("x".repeat(256)), port: 1, user: None, reach };
        assert_eq!(Target::decode(&long.encode()), Err(Malformed));
    }
}
