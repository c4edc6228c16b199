//! A profile as CRI asks for it, of AppArmor or of seccomp.

use crate::error::{Error, Result};
use crate::proto::SecurityProfile;
use crate::proto::security_profile::ProfileType;

/// Its kind, which has a name where it is `Localhost`, and only there. `field` is where it is in the request.
///
/// # Errors
///
/// `InvalidArgument`: no kind, or a name that nothing would become of.
pub(super) fn kind(field: &str, profile: &SecurityProfile) -> Result<ProfileType> {
    let SecurityProfile {
        profile_type,
        localhost_ref,
    } = profile;
    let kind = ProfileType::try_from(*profile_type)
        .map_err(|_| Error::invalid(format_args!("{field}.profile_type: {profile_type}: is none")))?;
    if kind != ProfileType::Localhost && !localhost_ref.is_empty() {
        return Err(Error::invalid(format_args!(
            "{field}.localhost_ref: {localhost_ref:?}: is for profile_type Localhost only"
        )));
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_for_localhost_only_and_kinds_are_known_ones() {
        let of = |kind_number, name: &str| {
            let profile = SecurityProfile {
                profile_type: kind_number,
                localhost_ref: name.into(),
            };
            kind("a.b", &profile).map_err(|error| error.to_string())
        };
        assert_eq!(of(2, "web"), Ok(ProfileType::Localhost));
        assert_eq!(of(0, ""), Ok(ProfileType::RuntimeDefault));
        assert!(
            of(1, "web")
                .unwrap_err()
                .starts_with("a.b.localhost_ref: \"web\"")
        );
        assert!(of(7, "").unwrap_err().starts_with("a.b.profile_type: 7"));
    }
}
