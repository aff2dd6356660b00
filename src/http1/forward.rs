//! Which fields travel on, in both directions, and the copying of those that do.

use super::field::{ConnectionOptions, FieldName, NamedFields};
use super::gather::GatherList;
use super::head::{Field, Fields};

/// In which directions a field travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Travels {
    BothWays,
    /// From the upstream to the client alone.
    ToClient,
    Nowhere,
}

/// The one list for requests and responses.
const fn travels(name: FieldName) -> Travels {
    match name {
        FieldName::Other
        | FieldName::ContentEncoding
        | FieldName::ContentType
        | FieldName::Date
        | FieldName::SecFetchSite => Travels::BothWays,
        // A client's Authorization and Host are replaced by the relay's own. Its Expect is answered
        // here, its Origin is refused, and the withheld ones would change what is asked for.
        FieldName::Authorization
        | FieldName::Expect
        | FieldName::Host
        | FieldName::Origin
        | FieldName::Withheld => Travels::ToClient,
        // Connection and what belongs to it (RFC 9110 §7.6.1), framing, and names that a server
        // may take for one of these.
        FieldName::Connection
        | FieldName::ContentLength
        | FieldName::Disguised
        | FieldName::HopByHop
        | FieldName::TransferEncoding
        | FieldName::Upgrade => Travels::Nowhere,
    }
}

/// A client's field of this name goes to the upstream, unless Connection names it.
pub(super) const fn is_for_upstream(name: FieldName) -> bool {
    matches!(travels(name), Travels::BothWays)
}

/// An upstream's field of this name goes to the client, unless Connection names it.
pub(super) const fn is_for_client(name: FieldName) -> bool {
    matches!(travels(name), Travels::BothWays | Travels::ToClient)
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
