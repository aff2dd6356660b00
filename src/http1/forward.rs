//! Which fields are forwarded in each direction, and the copying of their lines.

use super::field::{ConnectionOptions, FieldName, NamedFields};
use super::gather::GatherList;
use super::head::{Field, Fields};

/// The directions in which a field is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Both,
    /// From the upstream to the client only.
    ToClient,
    None,
}

/// The one list for requests and responses.
const fn direction(name: FieldName) -> Direction {
    match name {
        FieldName::Other
        | FieldName::ContentEncoding
        | FieldName::ContentType
        | FieldName::Date
        | FieldName::SecFetchSite => Direction::Both,
        // The relay writes its own Authorization and Host. It meets a client's Expect itself and
        // refuses a client's Origin. Withheld fields would change the meaning of the request.
        FieldName::Authorization
        | FieldName::Expect
        | FieldName::Host
        | FieldName::Origin
        | FieldName::Withheld => Direction::ToClient,
        // Connection and the fields that belong to one connection (RFC 9110 §7.6.1), framing, and
        // names that a server may take for one of these.
        FieldName::Connection
        | FieldName::ContentLength
        | FieldName::Disguised
        | FieldName::HopByHop
        | FieldName::TransferEncoding
        | FieldName::Upgrade => Direction::None,
    }
}

/// A client's field of this name is forwarded, unless Connection names it.
pub(super) const fn is_for_upstream(name: FieldName) -> bool {
    matches!(direction(name), Direction::Both)
}

/// An upstream's field of this name is forwarded, unless Connection names it.
pub(super) const fn is_for_client(name: FieldName) -> bool {
    matches!(direction(name), Direction::Both | Direction::ToClient)
}

/// Adds the field lines that `keeps` accepts and that Connection does not name, in order and as
/// they are spelled. Neighbouring lines become one range of the input. `names` are the fields'
/// meanings, in the same order as the fields.
pub(super) fn forwarded_fields(
    fields: &Fields<'_, '_>,
    names: &[FieldName],
    connection: &ConnectionOptions,
    out: &mut GatherList,
    mut keeps: impl FnMut(FieldName, &[u8]) -> bool,
) {
    let known = || fields.iter().zip(names.iter().copied());
    let named = connection.names_fields.then(|| {
        let connections = known().filter(|(_, known)| *known == FieldName::Connection);
        NamedFields::by(connections.map(|(field, _)| field.value))
    });
    let mut range = 0..0;
    for (Field { name, line, .. }, known) in known() {
        let is_named = named.as_ref().is_some_and(|names| names.contains(name));
        if is_named || !keeps(known, name) {
            continue;
        }
        if range.end != line.start {
            out.input(fields.input(), range.clone());
            range.start = line.start;
        }
        range.end = line.end;
    }
    out.input(fields.input(), range);
}
