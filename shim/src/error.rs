//! Errors of the services, and the only place where they become ttrpc's codes.

use std::fmt;

use containerd_shim_protos::ttrpc;

/// What the caller can do about it. containerd's `errdefs` tells its errors by these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The request can't be right.
    InvalidArgument,
    /// No such container, exec or sandbox, or its process has ended.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// Never here.
    Unimplemented,
    /// Not now; trying again may help.
    Unavailable,
    /// It takes longer than the shim waits.
    DeadlineExceeded,
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

    /// With what was tried in front.
    pub(crate) fn context(self, what: &'static str) -> Self {
        Self {
            kind: self.kind,
            source: self.source.context(what),
        }
    }

    /// With a text of its own.
    pub(crate) fn text(kind: Kind, text: impl fmt::Display) -> Self {
        Self::new(kind, anyhow::anyhow!("{text}"))
    }
}

impl From<anyhow::Error> for Error {
    fn from(source: anyhow::Error) -> Self {
        Self::new(Kind::Unknown, source)
    }
}

impl From<Error> for anyhow::Error {
    fn from(error: Error) -> Self {
        error.source
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.source)
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Kind::NotFound => ttrpc::Code::NOT_FOUND,
            Kind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Kind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Kind::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Kind::Unavailable => ttrpc::Code::UNAVAILABLE,
            Kind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            Kind::Unknown => ttrpc::Code::UNKNOWN,
        };
        Self::RpcStatus(ttrpc::get_status(code, error.to_string()))
    }
}
