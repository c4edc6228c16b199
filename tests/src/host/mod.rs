//! Facts of the machine, read from the host's side.

pub(crate) mod cgroup;
pub(crate) mod mounts;
pub(crate) mod process;

use std::io::Read;

use anyhow::{Context, Result};

/// `digits` random hexadecimal digits, for names nobody else uses.
pub(crate) fn random_name(digits: usize) -> Result<String> {
    let mut bytes = vec![0; digits.div_ceil(2)];
    let mut random = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    random.read_exact(&mut bytes).context("/dev/urandom")?;
    let name: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(name[..digits].to_owned())
}
