//! `res.error` and `c.reason` (RFC 2741 sections 6.2.16 and 6.2.2).

use std::fmt;

/// Declares the codes: constant, number, the RFC's name.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ident($number:ty) { $($constant:ident = $code:literal $name:literal)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub struct $type(pub $number);

        impl $type {
            $(
                #[doc = concat!("`", $name, "`.")]
                pub const $constant: Self = Self($code);
            )*

            /// The RFC's name, if it has one for this number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($name),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{name} ({})", self.0),
                    None => write!(f, "{}", self.0),
                }
            }
        }
    };
}

codes! {
    /// `res.error`. Unknown numbers are kept.
    ResError(u16) {
        NO_ERROR = 0 "noAgentXError"
        GEN_ERR = 5 "genErr"
        NO_ACCESS = 6 "noAccess"
        WRONG_TYPE = 7 "wrongType"
        WRONG_LENGTH = 8 "wrongLength"
        WRONG_ENCODING = 9 "wrongEncoding"
        WRONG_VALUE = 10 "wrongValue"
        NO_CREATION = 11 "noCreation"
        INCONSISTENT_VALUE = 12 "inconsistentValue"
        RESOURCE_UNAVAILABLE = 13 "resourceUnavailable"
        COMMIT_FAILED = 14 "commitFailed"
        UNDO_FAILED = 15 "undoFailed"
        NOT_WRITABLE = 17 "notWritable"
        INCONSISTENT_NAME = 18 "inconsistentName"
        OPEN_FAILED = 256 "openFailed"
        NOT_OPEN = 257 "notOpen"
        INDEX_WRONG_TYPE = 258 "indexWrongType"
        INDEX_ALREADY_ALLOCATED = 259 "indexAlreadyAllocated"
        INDEX_NONE_AVAILABLE = 260 "indexNoneAvailable"
        INDEX_NOT_ALLOCATED = 261 "indexNotAllocated"
        UNSUPPORTED_CONTEXT = 262 "unsupportedContext"
        DUPLICATE_REGISTRATION = 263 "duplicateRegistration"
        UNKNOWN_REGISTRATION = 264 "unknownRegistration"
        UNKNOWN_AGENT_CAPS = 265 "unknownAgentCaps"
        PARSE_ERROR = 266 "parseError"
        REQUEST_DENIED = 267 "requestDenied"
        PROCESSING_ERROR = 268 "processingError"
    }
}

codes! {
    /// `c.reason`.
    CloseReason(u8) {
        OTHER = 1 "reasonOther"
        PARSE_ERROR = 2 "reasonParseError"
        PROTOCOL_ERROR = 3 "reasonProtocolError"
        TIMEOUTS = 4 "reasonTimeouts"
        SHUTDOWN = 5 "reasonShutdown"
        BY_MANAGER = 6 "reasonByManager"
    }
}
