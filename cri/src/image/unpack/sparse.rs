//! Sparse files: GNU tar's four ways to say where the data is.

use anyhow::{Context as _, Result, bail, ensure};

use super::pax::decimal;
use super::tar::number;

/// Where there is data: offset and length, in bytes.
pub(super) type Extent = (u64, u64);

/// So many extents are taken (16 MiB of memory).
const EXTENTS_MAX: usize = 1 << 20;

/// What PAX records say of one.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// Versions 0.0 and 0.1: in the records.
    pub(super) map: Option<Vec<Extent>>,
    offset: Option<u64>,
    major: Option<u64>,
    real: Option<u64>,
}

impl Sparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"size" | b"realsize" => self.real = Some(decimal(value)?),
            b"map" => {
                let numbers: Vec<u64> = value
                    .split(|byte| *byte == b',')
                    .map(decimal)
                    .collect::<Result<_>>()?;
                ensure!(numbers.len().is_multiple_of(2), "an odd count of numbers");
                self.map = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
            }
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().context("without an offset before it")?;
                self.map.get_or_insert_default().push((offset, decimal(value)?));
            }
            _ => {}
        }
        Ok(())
    }

    /// Version 1.0: in front of the data.
    pub(super) fn is_in_data(&self) -> bool {
        self.major == Some(1)
    }

    pub(super) fn size(&self) -> Result<u64> {
        self.real.context("a sparse file without its size")
    }
}

/// A block's extents of GNU's old form. Whether more blocks follow.
pub(super) fn old_gnu(block: &[u8], more: u8, extents: &mut Vec<Extent>) -> Result<bool> {
    for pair in block.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let offset = u64::try_from(number(&pair[..12])?).context("offset")?;
        let length = u64::try_from(number(&pair[12..])?).context("length")?;
        push(extents, (offset, length))?;
    }
    Ok(more != 0)
}

fn push(extents: &mut Vec<Extent>, extent: Extent) -> Result<()> {
    ensure!(extents.len() < EXTENTS_MAX, "more than {EXTENTS_MAX} holes");
    extents.push(extent);
    Ok(())
}

/// Version 1.0: a count, and as many pairs, each a decimal number and a newline, in blocks of their own.
pub(super) fn in_data(
    data: &mut u64,
    mut exact: impl FnMut(&mut [u8]) -> Result<bool>,
) -> Result<Vec<Extent>> {
    let mut block = [0u8; 512];
    let mut at = block.len();
    let mut number = || -> Result<u64> {
        let mut digits = Vec::with_capacity(20);
        loop {
            if at == block.len() {
                *data = data
                    .checked_sub(block.len() as u64)
                    .context("its map is longer than its data")?;
                ensure!(exact(&mut block)?, "it ends in a map of holes");
                at = 0;
            }
            let byte = block[at];
            at += 1;
            if byte == b'\n' {
                return decimal(&digits);
            }
            ensure!(digits.len() < 20, "a map of holes that is none");
            digits.push(byte);
        }
    };
    let count = number()?;
    let mut extents = Vec::new();
    for _ in 0..count {
        push(&mut extents, (number()?, number()?))?;
    }
    Ok(extents)
}

/// They follow each other, are inside the file, and are as much as there is data.
pub(super) fn check(extents: &[Extent], size: u64, data: u64) -> Result<()> {
    let (mut end, mut sum) = (0, 0u64);
    for (offset, length) in extents {
        let next = offset.checked_add(*length).context("an extent without end")?;
        if *offset < end || next > size {
            bail!("extents that overlap, or are outside of the file");
        }
        end = next;
        sum += length;
    }
    ensure!(i64::try_from(size).is_ok(), "a size of {size} bytes");
    ensure!(
        sum == data,
        "extents of {sum} bytes, where there are {data} bytes of data"
    );
    Ok(())
}
