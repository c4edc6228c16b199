//! The client of registries (OCI distribution-spec 1.1, "Pull"): what a pull downloads, and from where.
//!
//! ```text
//! pull.rs --> fetch.rs     a registry's hosts in turn, retries; digests verified
//!               blob.rs      a layer on its way: resumption, restarts
//!               hosts.rs     which hosts: hosts.toml (values.rs)
//!               auth.rs      credentials of the request -> Basic, or tokens (challenge.rs)
//!               client.rs    HTTP to one host: requests, redirects
//!                 connect.rs   names.rs proxy.rs tls.rs
//!             manifest.rs  what was downloaded, read: index -> manifest -> layers (pure)
//! ```
//!
//! Everything a registry says is hostile: sizes are limited, bytes are hashed, and addresses it sends us to get none of our
//! secrets. Secrets are in types without Debug.

pub(super) mod auth;
mod blob;
mod challenge;
mod client;
mod connect;
pub(super) mod digest;
pub(super) mod fetch;
pub(super) mod hosts;
pub(super) mod manifest;
mod names;
pub(crate) mod proxy;
mod rounds;
mod tls;
mod values;

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Kind};

/// Why a host did not give what it was asked for.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// No connection: name, address, proxy, TLS; or it ended before an answer.
    Unreachable(String),
    /// The answer ended before its end.
    Broken(String),
    /// Nothing came for so long.
    Stalled(Duration),
    /// Credentials are missing, wrong or not enough.
    Denied(String),
    /// It has no such thing.
    Absent(String),
    /// It asks to come again, after so long where it says so.
    Busy(String, Option<Duration>),
    /// It is not what was asked for, or not what we take.
    Wrong(String),
    /// It's the disk or the unpacker, not the host.
    Ours(Kind, String),
}

impl Failure {
    fn wrong(why: impl fmt::Display) -> Self {
        Self::Wrong(why.to_string())
    }

    /// Whether the same request may be answered at another try.
    fn passes(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Broken(_) | Self::Stalled(_) | Self::Busy(..)
        )
    }

    fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(..))
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Unreachable(_) | Self::Broken(_) | Self::Stalled(_) | Self::Busy(..) => Kind::Unavailable,
            Self::Denied(_) => Kind::PermissionDenied,
            Self::Absent(_) => Kind::NotFound,
            Self::Wrong(_) => Kind::FailedPrecondition,
            Self::Ours(kind, _) => *kind,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stalled(limit) => write!(f, "nothing came for {} s", limit.as_secs_f32()),
            Self::Unreachable(why)
            | Self::Broken(why)
            | Self::Denied(why)
            | Self::Absent(why)
            | Self::Busy(why, _)
            | Self::Wrong(why)
            | Self::Ours(_, why) => f.write_str(why),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error.kind, error.to_string())
    }
}
