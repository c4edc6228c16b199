//! Errors of the services, and the only place where they become gRPC's codes.

use std::fmt;

use tonic::{Code, Status};

/// What the caller can do about it. The kubelet tells these apart by gRPC's codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request can't be right.
    InvalidArgument,
    /// There is no such sandbox, container or image.
    NotFound,
    /// The name or id is in use.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// Credentials are missing, wrong, or not enough.
    PermissionDenied,
    /// More than there is room for.
    ResourceExhausted,
    /// Not now; trying again may help.
    Unavailable,
    /// It takes longer than we wait.
    DeadlineExceeded,
    /// Never here.
    Unimplemented,
    /// Anything else.
    Unknown,
}

/// An error with its kind.
#[derive(Debug)]
pub(crate) struct Error {
    pub(crate) kind: Kind,
    source: anyhow::Error,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: Kind, source: impl Into<anyhow::Error>) -> Self {
        Self {
            kind,
            source: source.into(),
        }
    }

    /// With a text of its own: what field, what value, what to do.
    pub(crate) fn text(kind: Kind, text: impl fmt::Display) -> Self {
        Self::new(kind, anyhow::anyhow!("{text}"))
    }

    /// A field of the request that can't be so.
    pub(crate) fn invalid(text: impl fmt::Display) -> Self {
        Self::text(Kind::InvalidArgument, text)
    }

    pub(crate) fn not_found(text: impl fmt::Display) -> Self {
        Self::text(Kind::NotFound, text)
    }

    /// With what was tried in front.
    pub(crate) fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self {
            kind: self.kind,
            source: self.source.context(what),
        }
    }
}

impl From<anyhow::Error> for Error {
    fn from(source: anyhow::Error) -> Self {
        Self::new(Kind::Unknown, source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.source)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::InvalidArgument => Code::InvalidArgument,
            Kind::NotFound => Code::NotFound,
            Kind::AlreadyExists => Code::AlreadyExists,
            Kind::FailedPrecondition => Code::FailedPrecondition,
            Kind::PermissionDenied => Code::PermissionDenied,
            Kind::ResourceExhausted => Code::ResourceExhausted,
            Kind::Unavailable => Code::Unavailable,
            Kind::DeadlineExceeded => Code::DeadlineExceeded,
            Kind::Unimplemented => Code::Unimplemented,
            Kind::Unknown => Code::Unknown,
        };
        Self::new(code, error.to_string())
    }
}
