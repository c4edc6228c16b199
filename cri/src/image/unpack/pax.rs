//! PAX records: `<length> <key>=<value>\n`, in front of the entry they are about (POSIX, pax(1)).

use anyhow::{Context as _, Result, bail, ensure};

use super::sparse::Sparse;

/// Extended attributes: names and values.
pub(super) type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// What is used of them.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) name: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Attributes,
    pub(super) sparse: Sparse,
}

impl Records {
    pub(super) fn parse(mut text: &[u8]) -> Result<Self> {
        let mut records = Self::default();
        let mut sparse_name = None;
        while !text.is_empty() {
            let (key, value, rest) = split(text).context("a PAX record that is none")?;
            text = rest;
            let shown = String::from_utf8_lossy(key).into_owned();
            if key == b"GNU.sparse.name" {
                sparse_name = Some(path(value).context("GNU.sparse.name")?);
                continue;
            }
            records
                .set(key, value)
                .with_context(|| format!("PAX record {shown:?}"))?;
        }
        // Beside it, `path` is one that is made up.
        if sparse_name.is_some() {
            records.name = sparse_name;
        }
        Ok(records)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        // An empty one takes back what is said elsewhere: here there is nothing.
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.name = Some(path(value)?),
            b"linkpath" => self.target = Some(path(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Key, value, and what follows the first record.
fn split(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..blank]).ok()?).ok()?;
    let record = text.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &text[length..]))
}

fn path(value: &[u8]) -> Result<Vec<u8>> {
    ensure!(!value.contains(&0), "a NUL in it");
    Ok(value.to_vec())
}

/// A decimal number without a sign.
pub(super) fn decimal(text: &[u8]) -> Result<u64> {
    let shown = || String::from_utf8_lossy(text).into_owned();
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    ensure!(digits, "{:?}: not a number", shown());
    std::str::from_utf8(text)?
        .parse()
        .with_context(|| format!("{:?}", shown()))
}

/// Seconds since the epoch, which may have a sign and a fraction.
fn time(text: &[u8]) -> Result<(i64, u32)> {
    let text = std::str::from_utf8(text)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().with_context(|| format!("{text:?}"))?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("{text:?}: not a time");
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse()?;
    if negative && nanos > 0 {
        let seconds = seconds.checked_sub(1).context("a time that is too early")?;
        return Ok((seconds, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length += 1;
        }
        format!("{length}{rest}").into_bytes()
    }

    #[test]
    fn records_say_what_a_header_has_no_room_for() {
        let text = [
            record("path", "a/ä"),
            record("linkpath", "b"),
            record("size", "8589934592"),
            record("uid", "4000000000"),
            record("mtime", "1700000000.5"),
            record("SCHILY.xattr.user.a", "=\n1"),
            record("comment", "nothing"),
        ]
        .concat();
        let records = Records::parse(&text).unwrap();
        assert_eq!(records.name.unwrap(), "a/ä".as_bytes());
        assert_eq!(records.target.unwrap(), b"b");
        assert_eq!(records.size, Some(8_589_934_592));
        assert_eq!(records.uid, Some(4_000_000_000));
        assert_eq!(records.mtime, Some((1_700_000_000, 500_000_000)));
        assert_eq!(records.xattrs, [(b"user.a".to_vec(), b"=\n1".to_vec())]);
    }

    #[test]
    fn a_time_before_the_epoch_counts_its_fraction_backwards() {
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"12.1234567891").unwrap(), (12, 123_456_789));
        assert!(time(b"1.x").is_err() && time(b"").is_err());
    }

    #[test]
    fn records_with_a_wrong_length_are_refused() {
        for text in [
            "9999 path=a\n",
            "5 a=b\n",
            "3 =\n",
            "path=a\n",
            "99999999999999999999 a=b\n",
            " a=b\n",
        ] {
            assert!(Records::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_with_a_nul_is_refused() {
        assert!(Records::parse(&record("path", "a\0b")).is_err());
    }
}
