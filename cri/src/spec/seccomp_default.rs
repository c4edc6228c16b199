//! The default seccomp profile.

use oci_spec::runtime::{Capability, LinuxSeccomp};

pub(super) fn profile(_held: impl Fn(Capability) -> bool) -> LinuxSeccomp {
    LinuxSeccomp::default()
}
