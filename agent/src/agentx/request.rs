//! Get, GetNext and GetBulk over [`Objects`] (RFC 2741 section 7.2.3).
//!
//! Values go from where the objects keep them into the output buffer; nothing is allocated for a binding.

use super::{
    codec::{Data, Full, ResError, ResponseWriter, SearchRange, SearchRanges, VarBind},
    objects::{Lookup, Objects},
};
use crate::snmp::Oid;

/// Why there is an error in place of bindings: `res.error` and `res.index`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Failure {
    pub(super) error: ResError,
    pub(super) index: u16,
}

impl Failure {
    /// The response would be larger than a master takes; the range at `position`, from 0, is the first without
    /// room. Section 7.2.3 has no other code for it.
    fn too_large(position: usize) -> Self {
        let index = u16::try_from(position.saturating_add(1)).unwrap_or(u16::MAX);
        Self { error: ResError::GEN_ERR, index }
    }
}

/// Section 7.2.3.1.
pub(super) fn get<O: Objects + ?Sized>(
    objects: &O,
    ranges: SearchRanges<'_>,
    response: &mut ResponseWriter<'_>,
) -> Result<(), Failure> {
    for (position, SearchRange { start: name, .. }) in ranges.enumerate() {
        match objects.get(&name) {
            Lookup::Found(value) => response.value(&name, value),
            Lookup::NoSuchObject => response.binding(&VarBind { name, data: Data::NoSuchObject }),
            Lookup::NoSuchInstance => {
                response.binding(&VarBind { name, data: Data::NoSuchInstance })
            }
        }
        .map_err(|Full| Failure::too_large(position))?;
    }
    Ok(())
}

/// Section 7.2.3.2.
pub(super) fn get_next<O: Objects + ?Sized>(
    objects: &O,
    ranges: SearchRanges<'_>,
    response: &mut ResponseWriter<'_>,
) -> Result<(), Failure> {
    for (position, range) in ranges.enumerate() {
        search(objects, &range.start, range.include, &range.end, response)
            .map_err(|Full| Failure::too_large(position))?;
    }
    Ok(())
}

/// Section 7.2.3.3. Repetitions are whole: an answer to each of the repeating ranges, in their order. A repetition
/// that does not fit whole ends the response; the section leaves their number to the subagent. After the first they begin where the one before ended, which is read back from the response itself: so a request
/// with many ranges takes no memory of its own.
pub(super) fn get_bulk<O: Objects + ?Sized>(
    objects: &O,
    non_repeaters: u16,
    max_repetitions: u16,
    mut ranges: SearchRanges<'_>,
    response: &mut ResponseWriter<'_>,
) -> Result<(), Failure> {
    let first_repeater = ranges.len().min(non_repeaters.into());
    for position in 0..first_repeater {
        let Some(range) = ranges.next() else { break };
        search(objects, &range.start, range.include, &range.end, response)
            .map_err(|Full| Failure::too_large(position))?;
    }
    if ranges.is_empty() {
        return Ok(());
    }
    let mut before = None;
    for _ in 0..max_repetitions {
        let row = response.payload_len();
        let mut ended = true;
        let mut previous = before;
        for (position, range) in ranges.clone().enumerate() {
            let step = match previous.and_then(|mark| response.binding_at(mark)) {
                None => search(objects, &range.start, range.include, &range.end, response),
                Some((VarBind { name, data }, mark)) => {
                    let end_of_mib_view = data == Data::EndOfMibView;
                    previous = Some(mark);
                    if end_of_mib_view {
                        end(&name, response)
                    } else {
                        search(objects, &name, false, &range.end, response)
                    }
                }
            };
            match step {
                Ok(found) => ended &= found == Found::EndOfMibView,
                Err(Full) if before.is_none() => {
                    return Err(Failure::too_large(first_repeater + position));
                }
                Err(Full) => {
                    response.truncate(row);
                    return Ok(());
                }
            }
        }
        before = Some(row);
        if ended {
            break;
        }
    }
    Ok(())
}

/// What a search appended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Instance,
    EndOfMibView,
}

/// Appends the first instance of a range, or that there is none.
fn search<O: Objects + ?Sized>(
    objects: &O,
    start: &Oid,
    include: bool,
    bound: &Oid,
    response: &mut ResponseWriter<'_>,
) -> Result<Found, Full> {
    match objects.get_next(start, include, bound) {
        Some((name, value)) => response.value(&name, value).map(|()| Found::Instance),
        None => end(start, response),
    }
}

fn end(name: &Oid, response: &mut ResponseWriter<'_>) -> Result<Found, Full> {
    let binding = VarBind { name: *name, data: Data::EndOfMibView };
    response.binding(&binding).map(|()| Found::EndOfMibView)
}
