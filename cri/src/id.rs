//! Ids of sandboxes and containers: 64 hexadecimal digits, as the kubelet's and cAdvisor's parsers expect.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;

use anyhow::Context as _;

use crate::error::Result;

/// A new one: 256 random bits.
///
/// # Errors
///
/// There is no `/dev/urandom`.
pub(crate) fn new() -> Result<String> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("/dev/urandom")?;
    let mut id = String::with_capacity(64);
    for byte in bytes {
        // A string takes all.
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_64_digits_and_no_other_is_the_same() {
        let (one, other) = (new().unwrap(), new().unwrap());
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(one, other);
    }
}
