//! Names of images, as Docker's users write them and as they are kept.
//!
//! ```text
//! busybox                        -> docker.io/library/busybox:latest
//! ann/app:1                      -> docker.io/ann/app:1
//! registry.example:5000/app@sha256:...
//! ```
//!
//! The grammar is the one of github.com/distribution/reference. With a tag and a digest the digest says what is meant, as
//! containerd has it: the tag is dropped, for nobody checks that it still points there.

use std::fmt;

use crate::error::{Error, Result};

/// Bytes of a name with its domain (distribution/reference, `RepositoryNameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// Bytes of a tag.
const MAX_TAG: usize = 128;

/// The registry, the repository, and a tag or a digest: checked, and whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// `host[:port]`, as `docker.io`.
    pub(crate) domain: String,
    /// As `library/busybox`.
    pub(crate) path: String,
    pub(crate) object: Object,
}

/// Which one of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Object {
    Tag(String),
    /// `sha256:...` or `sha512:...`.
    Digest(String),
}

impl Reference {
    /// Reads one, in a short form or whole.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`: which part can't be so, and why.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|why| Error::invalid(format_args!("image {text:?}: {why}")))
    }

    /// `domain/path`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `domain/path:tag`, where it has a tag.
    pub(crate) fn tagged(&self) -> Option<String> {
        match &self.object {
            Object::Tag(tag) => Some(format!("{}:{tag}", self.name())),
            Object::Digest(_) => None,
        }
    }

    /// `domain/path@digest` with a digest of this repository.
    pub(crate) fn digested(&self, digest: &str) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.object {
            Object::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Object::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

fn parse(text: &str) -> std::result::Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(check_digest(digest)?)),
        None => (text, None),
    };
    // The colon of a port has a slash somewhere behind it.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    if digest.is_none() && tag.is_none() && name.len() == 64 && name.bytes().all(is_hex) {
        return Err("it is an image id; a name is needed".into());
    }
    let (domain, path) = split_domain(name);
    check_domain(domain)?;
    check_path(&path)?;
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err(format!("the name is longer than {MAX_NAME} bytes"));
    }
    let object = match (digest, tag) {
        (Some(digest), _) => Object::Digest(digest.into()),
        (None, Some(tag)) => Object::Tag(tag.into()),
        (None, None) => Object::Tag("latest".into()),
    };
    Ok(Reference {
        domain: domain.into(),
        path,
        object,
    })
}

/// What is before the first slash is a domain where it can't be an account of Docker Hub's.
fn split_domain(name: &str) -> (&str, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => ("docker.io", name),
    };
    match domain {
        "docker.io" | "index.docker.io" if !path.contains('/') => ("docker.io", format!("library/{path}")),
        "index.docker.io" => ("docker.io", path.into()),
        _ => (domain, path.into()),
    }
}

fn check_domain(domain: &str) -> std::result::Result<(), String> {
    let wrong = || Err(format!("{domain:?} is not a host or host:port"));
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else {
                return wrong();
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return wrong();
            }
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port),
                None if port.is_empty() => None,
                None => return wrong(),
            };
            (None, port)
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.is_some_and(|host| !host.split('.').all(label)) {
        return wrong();
    }
    if port
        .is_some_and(|port| !port.bytes().all(|byte| byte.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return wrong();
    }
    Ok(())
}

/// Components of `[a-z0-9]+`, with `.`, `_`, `__` or dashes between.
fn check_path(path: &str) -> std::result::Result<(), String> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("repository {path:?} must be in lower case"));
    }
    let wrong = || Err(format!("{path:?} is not a name of a repository"));
    for component in path.split('/') {
        let mut separator = String::new();
        let mut seen = false;
        for character in component.chars() {
            match character {
                'a'..='z' | '0'..='9' => {
                    let fits =
                        separator.bytes().all(|byte| byte == b'-') || matches!(&*separator, "." | "_" | "__");
                    if !fits || (!seen && !separator.is_empty()) {
                        return wrong();
                    }
                    seen = true;
                    separator.clear();
                }
                '.' | '_' | '-' => separator.push(character),
                _ => return wrong(),
            }
        }
        if !seen || !separator.is_empty() {
            return wrong();
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> std::result::Result<&str, String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let first = tag.bytes().next().is_some_and(word);
    if !first || tag.len() > MAX_TAG || !tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
        return Err(format!("{tag:?} is not a tag"));
    }
    Ok(tag)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Only algorithms that can be verified (image-spec, `descriptor.md`, "Registered algorithms").
fn check_digest(digest: &str) -> std::result::Result<&str, String> {
    let length = match digest.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha512", _)) => 128,
        Some((algorithm, _)) => {
            return Err(format!(
                "digest algorithm {algorithm:?}: only sha256 and sha512 are known"
            ));
        }
        None => return Err(format!("{digest:?} is not a digest: algorithm:hexadecimal")),
    };
    let hex = &digest["sha256:".len()..];
    if hex.len() != length || !hex.bytes().all(is_hex) {
        return Err(format!("digest {digest:?} must have {length} digits 0-9a-f"));
    }
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn whole(text: &str) -> String {
        Reference::parse(text)
            .map(|reference| reference.to_string())
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn short_names_are_docker_hubs() {
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("test.com:5000", "docker.io/library/test.com:5000"),
            ("ann/app", "docker.io/ann/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox:1", "docker.io/library/busybox:1"),
            ("index.docker.io/ann/app", "docker.io/ann/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("Registry/app", "Registry/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("127.0.0.1:5000/a/b/c:X", "127.0.0.1:5000/a/b/c:X"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("a.b/c__d.e---f:t", "a.b/c__d.e---f:t"),
        ] {
            assert_eq!(whole(text), expected, "{text}");
        }
    }

    #[test]
    fn a_digest_is_kept_and_a_tag_beside_it_is_not() {
        assert_eq!(
            whole(&format!("busybox@{DIGEST}")),
            format!("docker.io/library/busybox@{DIGEST}")
        );
        let both = Reference::parse(&format!("a.b/c:1@{DIGEST}")).unwrap();
        assert_eq!(both.object, Object::Digest(DIGEST.into()));
        assert_eq!(both.tagged(), None);
        assert_eq!(both.digested(DIGEST), format!("a.b/c@{DIGEST}"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let upper = DIGEST.replace("abcdef", "ABCDEF");
        for (text, expected) in [
            ("", "it is empty"),
            ("Busybox", "must be in lower case"),
            ("a.b/C", "must be in lower case"),
            (":tag", "not a name of a repository"),
            ("a//b", "not a name of a repository"),
            ("a/", "not a name of a repository"),
            ("a.b/c..d", "not a name of a repository"),
            ("a.b/c___d", "not a name of a repository"),
            ("a.b/-c", "not a name of a repository"),
            ("a.b/c-", "not a name of a repository"),
            ("a.b/../c", "not a name of a repository"),
            ("a b", "not a name of a repository"),
            ("a:", "not a tag"),
            ("a:.b", "not a tag"),
            ("a:b c", "not a tag"),
            ("-a.b/c", "not a host"),
            ("a.b:port/c", "not a host"),
            ("a.b:99999/c", "not a host"),
            ("[::g]/c", "not a host"),
            ("a@sha256:12", "must have 64 digits"),
            (&format!("a@{upper}"), "must have 64 digits"),
            ("a@md5:12", "only sha256 and sha512"),
            ("a@b", "not a digest"),
            (&DIGEST["sha256:".len()..], "image id"),
            (&"a/".repeat(150), "not a name"),
            (&format!("a.b/{}", "c".repeat(255)), "longer than 255"),
            (&format!("a:{}", "t".repeat(129)), "not a tag"),
            ("http://a.b/c", "not a host"),
        ] {
            let error = Reference::parse(text).unwrap_err();
            assert_eq!(error.kind, crate::error::Kind::InvalidArgument);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    /// xorshift: the same texts in every run.
    fn next(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as usize
    }

    #[test]
    fn what_is_read_once_reads_the_same_again() {
        let pieces = [
            "a",
            "b1",
            "A",
            ".",
            "..",
            "_",
            "__",
            "-",
            "/",
            ":",
            "@",
            "sha256:",
            DIGEST,
            "docker.io",
            "localhost",
            "5000",
            "[::1]",
            "é",
            " ",
            "\0",
            "library",
            "%2e",
            "latest",
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut read = 0;
        for _ in 0..200_000 {
            let text: String = (0..1 + next(&mut state) % 8)
                .map(|_| pieces[next(&mut state) % pieces.len()])
                .collect();
            let Ok(reference) = Reference::parse(&text) else {
                continue;
            };
            read += 1;
            let again =
                Reference::parse(&reference.to_string()).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(again, reference, "{text:?}");
            // It becomes part of a URL and a path.
            assert!(
                !reference.path.contains("..") && !reference.path.starts_with('/'),
                "{text:?}"
            );
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@[]".contains(&byte);
            assert!(reference.to_string().bytes().all(plain), "{text:?}");
        }
        assert!(read > 1000, "{read}");
    }
}
