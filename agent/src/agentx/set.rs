//! The phases of a SET (RFC 2741 section 7.2.4).
//!
//! No object that is served here can be set, so that there is no transaction to keep between the phases. Where
//! one becomes writable, its test, commit and undo belong here, and the transaction, keyed by
//! `h.transactionID`, beside [`super::Session`]'s state.

use super::{
    codec::{ResError, VarBinds},
    request::Failure,
};

/// Section 7.2.4.1: the first binding that cannot be set is named; here it is always the first.
pub(super) fn test(bindings: &VarBinds<'_>) -> Result<(), Failure> {
    if bindings.is_empty() {
        return Ok(());
    }
    Err(Failure { error: ResError::NOT_WRITABLE, index: 1 })
}

/// Section 7.2.4.2: no test succeeded that could be committed.
pub(super) const fn commit() -> Result<(), Failure> {
    Err(Failure { error: ResError::COMMIT_FAILED, index: 0 })
}

/// Section 7.2.4.3: nothing was committed, so everything is as it was before.
pub(super) const fn undo() -> Result<(), Failure> {
    Ok(())
}
