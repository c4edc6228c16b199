//! A v1 Pod of Kubernetes, read as strictly as the API server would (`tree.rs` -> `field.rs` -> `pod.rs` ...).
//!
//! | a field that | is |
//! |---|---|
//! | this client does what it says | read |
//! | only a scheduler or the API server obeys (`nodeSelector`, `status`) | skipped |
//! | only a kubelet obeys, and a pod runs without it (`livenessProbe`) | warned of |
//! | needs what is not here, and the pod with it (`secret`, `envFrom`) | refused |
//! | is not known | refused |

mod container;
mod field;
mod names;
mod pod;
mod quantity;
mod security;
mod tree;
mod volume;

pub(super) use container::{Amounts, Container, Pull, Role, VolumeMount};
pub(super) use pod::Pod;
pub(super) use quantity::Quantity;
pub(super) use volume::{Source, Volume};

use anyhow::Result;

/// The largest manifest, in bytes: etcd takes no more.
pub(super) const SIZE_MAX: u64 = 3 << 19;

/// Reads a Pod; and what it asks for and is not done, a line each.
///
/// # Errors
///
/// The first field that is wrong: its path, value and line, and what it must be.
pub(super) fn read(text: &str) -> Result<(Pod, Vec<String>)> {
    let tree = tree::read(text)?;
    let warnings = field::Warnings::default();
    let pod = pod::read(&field::Field::root(&tree, &warnings))?;
    Ok((pod, warnings.into_inner()))
}

#[cfg(test)]
mod tests;
