//! tar, as layers have it: ustar, PAX (long names, large numbers, extended attributes, sparse files), and GNU's own.
//!
//! Written for input that means harm: what is kept in memory is bounded, and nothing is guessed.

use anyhow::{Context as _, Result, bail, ensure};

use super::pax::{Attributes, Records};
use super::sparse::{self, Extent};
use super::stream::Plain;

const BLOCK: usize = 512;
/// The longest name, and target of a link: Linux has no longer path.
const NAME_MAX: u64 = 4096;
/// The most that the records of one entry take: an extended attribute has at most 64 KiB.
const RECORDS_MAX: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// An entry, with what is said of it everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) name: Vec<u8>,
    /// Of a symbolic or hard link.
    pub(super) target: Vec<u8>,
    /// The lowest 12 bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub(super) mtime: (i64, u32),
    pub(super) major: u32,
    pub(super) minor: u32,
    /// Bytes of a file, holes and all.
    pub(super) size: u64,
    /// Where a sparse file has data.
    pub(super) extents: Option<Vec<Extent>>,
    pub(super) xattrs: Attributes,
}

/// Reads entry after entry.
pub(super) struct Reader<'r> {
    plain: Plain<'r>,
    /// Bytes of the present entry's data that were not taken, and what fills its last block.
    data: u64,
    padding: u64,
}

impl<'r> Reader<'r> {
    pub(super) fn new(plain: Plain<'r>) -> Self {
        Self {
            plain,
            data: 0,
            padding: 0,
        }
    }

    /// Some of the present entry's data; nothing at its end.
    pub(super) fn data(&mut self) -> Result<&[u8]> {
        let piece = self.plain.take(self.data).context("read")?;
        ensure!(
            self.data == 0 || !piece.is_empty(),
            "it ends in the middle of a file"
        );
        self.data -= piece.len() as u64;
        Ok(piece)
    }

    /// Ends it: `sha256:...` of the whole plain tar.
    pub(super) fn finish(self) -> Result<String> {
        self.plain.finish()
    }

    /// The next entry; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_name, mut long_target) = (None, None);
        loop {
            self.plain.skip(self.data + self.padding)?;
            (self.data, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.size()?;
            match header.kind() {
                b'x' | b'X' => records = Records::parse(&self.whole(size, RECORDS_MAX, "PAX records")?)?,
                // Of the whole archive: a comment, as git writes it. What it could change nobody writes.
                b'g' => drop(self.whole(size, RECORDS_MAX, "PAX records")?),
                b'L' => long_name = Some(text(&self.whole(size, NAME_MAX + 1, "GNU long name")?).to_vec()),
                b'K' => long_target = Some(text(&self.whole(size, NAME_MAX + 1, "GNU long link")?).to_vec()),
                // GNU: the label of a volume.
                b'V' => self.expect(size),
                _ => {
                    return self
                        .entry(&header, size, records, long_name, long_target)
                        .map(Some);
                }
            }
        }
    }

    fn expect(&mut self, size: u64) {
        self.data = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn whole(&mut self, size: u64, most: u64, what: &str) -> Result<Vec<u8>> {
        ensure!(size <= most, "{what}: {size} bytes: more than {most}");
        self.expect(size);
        let mut all = vec![0; usize::try_from(size)?];
        if !all.is_empty() {
            ensure!(self.plain.exact(&mut all)?, "{what}: it ends before them");
        }
        self.data = 0;
        Ok(all)
    }

    /// A header that is none of zeros: two of those, or the end of the stream, are the end of the tar.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        if !self.plain.exact(&mut block)? {
            return Ok(None);
        }
        if block == [0; BLOCK] {
            if !self.plain.exact(&mut block)? || block == [0; BLOCK] {
                return Ok(None);
            }
            bail!("a block of zeros in the middle of it");
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    fn entry(
        &mut self,
        header: &Header,
        size: u64,
        mut records: Records,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let name = records.name.take().or(long_name).unwrap_or_else(|| header.name());
        let shown = String::from_utf8_lossy(&name).into_owned();
        self.described(header, size, records, name, long_target)
            .with_context(|| format!("{shown:?}"))
    }

    fn described(
        &mut self,
        header: &Header,
        size: u64,
        mut records: Records,
        name: Vec<u8>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Entry> {
        ensure!(
            name.len() as u64 <= NAME_MAX,
            "a name of {} bytes: more than a path can have",
            name.len()
        );
        let kind = match header.kind() {
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => bail!("an entry of type {:?}, which is not known", other as char),
        };
        let target = records
            .target
            .take()
            .or(long_target)
            .unwrap_or_else(|| text(header.field(157, 100)).to_vec());
        ensure!(
            target.len() as u64 <= NAME_MAX,
            "the target of a link is too long"
        );
        // Only files have data, whatever the size says: as Go's archive/tar reads it, which layers are made for.
        self.expect(if kind == Kind::File {
            records.size.unwrap_or(size)
        } else {
            0
        });
        let extents = self.extents(header, &records)?;
        let size = match &extents {
            Some((_, real)) => *real,
            None => self.data,
        };
        Ok(Entry {
            kind,
            name,
            target,
            mode: (header.number(100, 8).context("mode")? & 0o7777) as u32,
            uid: id(records.uid, header, 108).context("uid")?,
            gid: id(records.gid, header, 116).context("gid")?,
            mtime: match records.mtime {
                Some(mtime) => mtime,
                None => (header.signed(136, 12).context("mtime")?, 0),
            },
            major: header.device(329)?,
            minor: header.device(337)?,
            size,
            extents: extents.map(|(extents, _)| extents),
            xattrs: records.xattrs,
        })
    }

    /// The extents of a sparse file and its real size; what is before its data is taken.
    fn extents(&mut self, header: &Header, records: &Records) -> Result<Option<(Vec<Extent>, u64)>> {
        let (extents, size) = if header.kind() == b'S' {
            let mut extents = Vec::new();
            let mut more = sparse::old_gnu(header.field(386, 96), header.0[482], &mut extents)?;
            while more {
                let mut block = [0; BLOCK];
                ensure!(self.plain.exact(&mut block)?, "it ends in a map of holes");
                more = sparse::old_gnu(&block[..504], block[504], &mut extents)?;
            }
            (extents, header.number(483, 12).context("real size")?)
        } else if let Some(map) = &records.sparse.map {
            (map.clone(), records.sparse.size()?)
        } else if records.sparse.is_in_data() {
            let (plain, data) = (&mut self.plain, &mut self.data);
            let extents = sparse::in_data(data, |block| plain.exact(block))?;
            (extents, records.sparse.size()?)
        } else {
            return Ok(None);
        };
        sparse::check(&extents, size, self.data)?;
        Ok(Some((extents, size)))
    }
}

fn id(record: Option<u64>, header: &Header, at: usize) -> Result<u32> {
    let number = match record {
        Some(number) => number,
        None => header.number(at, 8)?,
    };
    match u32::try_from(number) {
        // The highest one means "as it is" to chown(2).
        Ok(id) if id != u32::MAX => Ok(id),
        _ => bail!("{number}: must be below {}", u32::MAX),
    }
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A header block.
struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, length: usize) -> &[u8] {
        &self.0[at..at + length]
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn size(&self) -> Result<u64> {
        self.number(124, 12).context("size")
    }

    /// `name`, with ustar's `prefix` in front.
    fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = text(self.field(345, 155));
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    /// The sum of all bytes, its own field as spaces; old programs added them as signed ones.
    fn check(&self) -> Result<()> {
        let expected = self.number(148, 8).context("not a tar: checksum")?;
        let bytes = self
            .0
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        let unsigned: u64 = bytes.clone().map(u64::from).sum();
        let signed: i64 = bytes.map(|byte| i64::from(byte.cast_signed())).sum();
        ensure!(
            expected == unsigned || i64::try_from(expected) == Ok(signed),
            "not a tar, or a broken one: a header's checksum is wrong"
        );
        Ok(())
    }

    fn number(&self, at: usize, length: usize) -> Result<u64> {
        let value = self.signed(at, length)?;
        u64::try_from(value).map_err(|_| anyhow::anyhow!("{value}: is negative"))
    }

    fn signed(&self, at: usize, length: usize) -> Result<i64> {
        number(self.field(at, length))
    }

    fn device(&self, at: usize) -> Result<u32> {
        // Old tars have something else there, or nothing.
        if !matches!(self.kind(), b'3' | b'4') {
            return Ok(0);
        }
        Ok(u32::try_from(self.number(at, 8).context("device number")?)?)
    }
}

/// A number: octal digits between blanks, or GNU's base 256.
pub(super) fn number(field: &[u8]) -> Result<i64> {
    if let [first @ (0x80 | 0xff), rest @ ..] = field {
        let start: i128 = if *first == 0xff { -1 } else { 0 };
        let value = rest.iter().fold(start, |value, byte| {
            (value.saturating_mul(256)).saturating_add(i128::from(*byte))
        });
        return i64::try_from(value).context("a number that is too large");
    }
    let digits = text(field);
    let digits = digits.trim_ascii();
    let mut value: i64 = 0;
    for digit in digits {
        ensure!(
            (b'0'..=b'7').contains(digit),
            "{:?}: not a number",
            String::from_utf8_lossy(digits)
        );
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .context("a number that is too large")?;
    }
    Ok(value)
}
