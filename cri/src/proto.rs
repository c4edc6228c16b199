//! CRI v1 (`proto/api.proto`), generated.

use std::fmt;

#[expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated; the words are CRI's"
)]
mod generated {
    tonic::include_proto!("runtime.v1");
}

pub use generated::*;

/// What rtc-cri answers beside CRI (`proto/rtc_cri.proto`), generated.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated; its words are in the .proto"
)]
pub mod extension {
    tonic::include_proto!("rtc.cri.v1");
}

/// Which secrets there are, never what they are: requests are printed by logs and by errors.
impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &String| if value.is_empty() { "" } else { "[redacted]" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &secret(&self.password))
            .field("auth", &secret(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &secret(&self.identity_token))
            .field("registry_token", &secret(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_never_printed() {
        let request = PullImageRequest {
            auth: Some(AuthConfig {
                username: "ann".into(),
                password: "s3cret-1".into(),
                auth: "s3cret-2".into(),
                server_address: "registry.example".into(),
                identity_token: "s3cret-3".into(),
                registry_token: "s3cret-4".into(),
            }),
            ..PullImageRequest::default()
        };
        let printed = format!("{request:?} {request:#?}");
        assert!(printed.contains("ann") && printed.contains("[redacted]"));
        assert!(!printed.contains("s3cret"), "{printed}");
    }
}
