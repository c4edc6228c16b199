//! Digests of content (image-spec, `descriptor.md`): read once, computed while the content goes by.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use super::Failure;

/// Takes content and says at its end whether it is what was meant.
#[derive(Clone)]
pub(crate) struct Verifier {
    expected: Digest,
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Verifier {
    /// # Errors
    ///
    /// An algorithm that we can't compute.
    pub(super) fn new(expected: &Digest) -> Result<Self, Failure> {
        let state = match expected.algorithm() {
            DigestAlgorithm::Sha256 => State::Sha256(Sha256::new()),
            DigestAlgorithm::Sha512 => State::Sha512(Sha512::new()),
            other => {
                let why = format_args!("digest algorithm {other}: only sha256 and sha512 are known");
                return Err(Failure::wrong(why));
            }
        };
        Ok(Self {
            expected: expected.clone(),
            state,
        })
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// # Errors
    ///
    /// It is other content.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let found = match self.state {
            State::Sha256(state) => format!("sha256:{}", hex(&state.finalize())),
            State::Sha512(state) => format!("sha512:{}", hex(&state.finalize())),
        };
        if found == self.expected.as_ref() {
            return Ok(());
        }
        Err(Failure::wrong(format_args!(
            "{}: what came has digest {found}",
            self.expected
        )))
    }
}

/// Checks content that is here whole.
///
/// # Errors
///
/// It is other content, or the algorithm is not known.
pub(super) fn verify(expected: &Digest, content: &[u8]) -> Result<(), Failure> {
    let mut verifier = Verifier::new(expected)?;
    verifier.update(content);
    verifier.finish()
}

/// `sha256:...` of it.
pub(super) fn sha256(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_content_has_another_digest() {
        // FIPS 180-4's example "abc".
        let digest: Digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
            .parse()
            .unwrap();
        assert_eq!(sha256(b"abc"), digest.as_ref());
        assert!(verify(&digest, b"abc").is_ok());
        let error = verify(&digest, b"abd").unwrap_err();
        assert!(error.to_string().starts_with("sha256:ba7816bf"), "{error}");
        let sha512: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(
            verify(&sha512, b"abc")
                .unwrap_err()
                .to_string()
                .contains("sha512:ddaf35a1")
        );
        let other: Digest = "sha384:0"
            .parse()
            .unwrap_or_else(|_| format!("sha384:{}", "0".repeat(96)).parse().unwrap());
        assert!(verify(&other, b"abc").unwrap_err().to_string().contains("sha384"));
    }
}
