//! The messages between the relay's event loop and the connector, which are parsed strictly. A
//! malformed message ends both processes.
//!
//! | message | direction | bytes |
//! |---|---|---|
//! | [`ConnectorConfig`] | to the connector, first | at most [`LONGEST`] |
//! | the report | to the loop, first | [`REPORT`](super::report::REPORT) |
//! | [`SERVER_INFO`], with the file | to the connector, at most once | at most [`LONGEST`] |
//! | [`LinkRequest`] | to the connector | [`REQUEST`] |
//! | [`Reply`], with the connection, if any | to the loop | [`REPLY`] |
//!
//! Numbers are in native byte order, because both ends run on one machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use crate::http1::local_response::UpstreamFault;
use crate::http1::url::Host;
use crate::process::upstream_users::Reach;

/// A message or field is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The first message to the connector: where it connects and which user it becomes. Sent once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectorConfig {
    /// The only host that the connector ever connects to: the upstream or the egress proxy.
    pub host: Host,
    /// The only port of that host.
    pub port: u16,
    /// The uid and gid of `--user`, if the option is given.
    pub user: Option<(u32, u32)>,
    /// Which addresses of the host are allowed.
    pub reach: Reach,
}

/// Bytes before the host of a [`ConnectorConfig`].
const BEFORE_HOST: usize = 13;
/// Bytes of the longest message to the connector: a [`ConnectorConfig`] with a name of 255 bytes.
pub const LONGEST: usize = BEFORE_HOST + 255;

impl ConnectorConfig {
    /// Encodes the configuration: kind of host, presence of the user, port, uid, gid, reach, host.
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

    /// Decodes a configuration. Fails on an unknown kind and on a host of the wrong length or
    /// encoding.
    pub fn decode(message: &[u8]) -> Result<ConnectorConfig, Malformed> {
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
        Ok(ConnectorConfig { host, port: u16::from_ne_bytes([head[2], head[3]]), user, reach })
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// A message from the loop after the [`ConnectorConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRequest {
    /// Asks for a connection. The reply carries this number.
    Dial(u64),
    /// Cancels the dial with this number.
    Cancel(u64),
    /// Reports that a connection failed after it was passed on, or that connecting took too long.
    /// The name may lead elsewhere by now.
    Doubt,
}

/// The first byte of the message that passes the server-info file. The line that was written to the
/// file follows. The message comes at most once.
pub const SERVER_INFO: u8 = 4;

/// Bytes of a [`LinkRequest`].
pub const REQUEST: usize = 9;

impl LinkRequest {
    /// Encodes the request: kind, then the number, which is 0 for a doubt.
    pub fn encode(self) -> [u8; REQUEST] {
        let (kind, id) = match self {
            LinkRequest::Dial(id) => (1, id),
            LinkRequest::Cancel(id) => (2, id),
            LinkRequest::Doubt => (3, 0),
        };
        let mut message = [kind; REQUEST];
        message[1..].copy_from_slice(&id.to_ne_bytes());
        message
    }

    /// Decodes a request. Fails on another length or kind, and on a doubt with a number.
    pub fn decode(message: &[u8]) -> Result<LinkRequest, Malformed> {
        let message: &[u8; REQUEST] = message.try_into().map_err(|_| Malformed)?;
        let [kind, id @ ..] = *message;
        match (kind, u64::from_ne_bytes(id)) {
            (1, id) => Ok(LinkRequest::Dial(id)),
            (2, id) => Ok(LinkRequest::Cancel(id)),
            (3, 0) => Ok(LinkRequest::Doubt),
            _ => Err(Malformed),
        }
    }
}

/// The result of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialOutcome {
    /// The reply carries the connection, which leads to this address.
    Connected(SocketAddr),
    /// There is no connection, for this reason.
    Failed(UpstreamFault),
    /// The loop cancelled the dial.
    Cancelled,
}

/// The most addresses in a reply. A name may have more.
pub const SHOWN: usize = 8;

/// The connector's reply to a [`LinkRequest::Dial`], which is sent once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number of the [`LinkRequest::Dial`].
    pub id: u64,
    /// The result.
    pub outcome: DialOutcome,
    /// How long the dial waited for the addresses. The message carries whole microseconds, up to
    /// [`u32::MAX`].
    pub lookup: Duration,
    /// How long the connection took after that, encoded in the same way.
    pub connect: Duration,
    /// The first addresses of the host, in the order in which they are tried.
    pub resolved: [Option<IpAddr>; SHOWN],
}

/// Bytes of an address: family, address, port, scope. See [`encode_address`].
pub const ADDRESS: usize = 23;
/// Bytes of a [`Reply`].
pub const REPLY: usize = 8 + 1 + 4 + 4 + ADDRESS * (1 + SHOWN);

/// The faults with which a dial can fail, each with its byte in a message.
const FAULTS: [(u8, UpstreamFault); 4] = [
    (1, UpstreamFault::Dns),
    (2, UpstreamFault::Refused),
    (3, UpstreamFault::Unreachable),
    (4, UpstreamFault::OutOfDescriptors),
];
const CONNECTED: u8 = 0;
const CANCELLED: u8 = 255;

impl Reply {
    /// Encodes the reply: number, result, two durations in µs, connected address, first addresses.
    pub fn encode(&self) -> [u8; REPLY] {
        let (result, address) = match self.outcome {
            DialOutcome::Connected(address) => (CONNECTED, Some(address)),
            DialOutcome::Cancelled => (CANCELLED, None),
            DialOutcome::Failed(fault) => {
                // A fault without a byte is sent as `UpstreamFault::Unreachable`.
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

    /// Decodes a reply. Fails on another length, on an unknown result and on a malformed address.
    /// Also fails if a connected address is missing, or comes with another result.
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
            (CONNECTED, Some(address)) => DialOutcome::Connected(address),
            (CANCELLED, None) => DialOutcome::Cancelled,
            (byte, None) => {
                let fault = FAULTS.iter().find(|(known, _)| *known == byte).ok_or(Malformed)?;
                DialOutcome::Failed(fault.1)
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

/// Encodes an address: family (4 or 6), address, port, scope. `None` is all zeros. The flow label
/// of an IPv6 address is dropped.
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

/// Decodes the bytes of [`encode_address`]. Fails on another length or family, and on a byte that
/// must be zero and is not.
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
        for request in [
            LinkRequest::Dial(0),
            LinkRequest::Dial(u64::MAX),
            LinkRequest::Cancel(7),
            LinkRequest::Doubt,
        ] {
            assert_eq!(LinkRequest::decode(&request.encode()), Ok(request));
        }
        let v6 = SocketAddrV6::new("fe80::1".parse().unwrap(), 443, 0, 3).into();
        let mut resolved = [None; SHOWN];
        resolved[0] = Some("192.0.2.1".parse().unwrap());
        resolved[7] = Some("2001:db8::1".parse().unwrap());
        for outcome in [
            DialOutcome::Connected("192.0.2.1:1".parse().unwrap()),
            DialOutcome::Connected(v6),
            DialOutcome::Failed(UpstreamFault::Dns),
            DialOutcome::Failed(UpstreamFault::Refused),
            DialOutcome::Failed(UpstreamFault::Unreachable),
            DialOutcome::Failed(UpstreamFault::OutOfDescriptors),
            DialOutcome::Cancelled,
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
                    let config = ConnectorConfig { host: host.clone(), port: 443, user, reach };
                    let message = config.encode();
                    assert!(message.len() <= LONGEST);
                    assert_eq!(ConnectorConfig::decode(&message), Ok(config));
                }
            }
        }
    }

    /// A reply with one changed byte is refused, or is decoded to a reply that encodes to exactly
    /// these bytes.
    #[test]
    fn what_means_nothing_is_refused() {
        let reply = Reply {
            id: 1,
            outcome: DialOutcome::Failed(UpstreamFault::Refused),
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
        assert_eq!(LinkRequest::decode(&[0; REQUEST]), Err(Malformed));
        assert_eq!(LinkRequest::decode(&[3; REQUEST]), Err(Malformed));
        assert_eq!(LinkRequest::decode(&[1; REQUEST - 1]), Err(Malformed));
        let reach = Reach::Anywhere;
        let config = ConnectorConfig { host: Host::V4([1; 4]), port: 1, user: None, reach };
        for at in [0, 1, 12] {
            let mut changed = config.encode();
            changed[at] = 9;
            assert_eq!(ConnectorConfig::decode(&changed), Err(Malformed));
        }
        assert_eq!(ConnectorConfig::decode(&config.encode()[..14]), Err(Malformed));
        let long =
            ConnectorConfig { host: Host::Name("x".repeat(256)), port: 1, user: None, reach };
        assert_eq!(ConnectorConfig::decode(&long.encode()), Err(Malformed));
    }
}
