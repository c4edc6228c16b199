//! `securityContext`, of a pod and of a container.

use std::collections::BTreeMap;

use anyhow::Result;
use rtc_cri::proto::security_profile::ProfileType;
use rtc_cri::proto::{Capability, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy};

use super::field::{Field, Fields};

/// Where profiles of seccomp are that have no absolute path, as the kubelet's.
const SECCOMP: &str = "/var/lib/kubelet/seccomp";

/// What a container may say for itself in place of what the pod says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Security {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_non_root: Option<bool>,
    pub(crate) selinux: Option<SeLinuxOption>,
    pub(crate) seccomp: Option<SecurityProfile>,
    pub(crate) apparmor: Option<SecurityProfile>,
}

/// A pod's.
#[derive(Debug, Default)]
pub(crate) struct PodSecurity {
    pub(crate) common: Security,
    /// The group of its volumes.
    pub(crate) fs_group: Option<i64>,
    pub(crate) supplemental_groups: Vec<i64>,
    /// CRI's `SupplementalGroupsPolicy`.
    pub(crate) groups_policy: i32,
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// A container's.
#[derive(Debug, Default)]
pub(crate) struct ContainerSecurity {
    pub(crate) own: Security,
    pub(crate) privileged: bool,
    /// It may gain no privileges by a program that has some.
    pub(crate) no_new_privileges: bool,
    pub(crate) capabilities: Capability,
    pub(crate) read_only_root: bool,
    /// /proc is shown whole.
    pub(crate) unmasked: bool,
}

impl Security {
    /// A container's own words, else the pod's.
    pub(crate) fn or(&self, pod: &Security) -> Security {
        Security {
            run_as_user: self.run_as_user.or(pod.run_as_user),
            run_as_group: self.run_as_group.or(pod.run_as_group),
            run_as_non_root: self.run_as_non_root.or(pod.run_as_non_root),
            selinux: self.selinux.clone().or_else(|| pod.selinux.clone()),
            seccomp: self.seccomp.clone().or_else(|| pod.seccomp.clone()),
            apparmor: self.apparmor.clone().or_else(|| pod.apparmor.clone()),
        }
    }
}

pub(super) fn pod(spec: &mut Fields<'_>) -> Result<PodSecurity> {
    let Some(field) = spec.get("securityContext") else {
        return Ok(PodSecurity::default());
    };
    let mut fields = field.fields()?;
    let mut security = PodSecurity {
        common: common(&mut fields)?,
        fs_group: fields.id("fsGroup")?,
        ..PodSecurity::default()
    };
    for group in fields.list("supplementalGroups")? {
        security
            .supplemental_groups
            .push(group.integer(0, i64::from(i32::MAX))?);
    }
    if let Some(policy) = fields.get("supplementalGroupsPolicy") {
        let policies = [SupplementalGroupsPolicy::Merge, SupplementalGroupsPolicy::Strict];
        security.groups_policy = policies[policy.choice(&["Merge", "Strict"])?].into();
    }
    for sysctl in fields.list("sysctls")? {
        let mut sysctl = sysctl.fields()?;
        let name = sysctl.need("name", "give the sysctl's name")?.word()?;
        let value = sysctl.need("value", "give the sysctl's value")?.text()?;
        security.sysctls.insert(name.replace('/', "."), value.to_owned());
        sysctl.end()?;
    }
    fields.skip(&["fsGroupChangePolicy", "seLinuxChangePolicy"]);
    fields.end()?;
    Ok(security)
}

pub(super) fn container(container: &mut Fields<'_>) -> Result<ContainerSecurity> {
    let Some(field) = container.get("securityContext") else {
        return Ok(ContainerSecurity::default());
    };
    let mut fields = field.fields()?;
    let escalation = fields.get("allowPrivilegeEscalation");
    let may_escalate = escalation.as_ref().map(Field::bool).transpose()?;
    let mut security = ContainerSecurity {
        own: common(&mut fields)?,
        privileged: fields.bool("privileged")?.unwrap_or_default(),
        no_new_privileges: may_escalate == Some(false),
        read_only_root: fields.bool("readOnlyRootFilesystem")?.unwrap_or_default(),
        unmasked: match fields.get("procMount") {
            Some(field) => field.choice(&["Default", "Unmasked"])? == 1,
            None => false,
        },
        ..ContainerSecurity::default()
    };
    if let (Some(escalation), true, true) = (escalation, security.no_new_privileges, security.privileged) {
        return Err(escalation.wrong("can't be together with privileged"));
    }
    if let Some(capabilities) = fields.get("capabilities") {
        let mut capabilities = capabilities.fields()?;
        security.capabilities.add_capabilities = capabilities.texts("add")?;
        security.capabilities.drop_capabilities = capabilities.texts("drop")?;
        capabilities.end()?;
    }
    fields.end()?;
    Ok(security)
}

fn common(fields: &mut Fields<'_>) -> Result<Security> {
    let security = Security {
        run_as_user: fields.id("runAsUser")?,
        run_as_group: fields.id("runAsGroup")?,
        run_as_non_root: fields.bool("runAsNonRoot")?,
        selinux: selinux(fields)?,
        seccomp: profile(fields, "seccompProfile", |name| {
            std::path::Path::new(SECCOMP).join(name).display().to_string()
        })?,
        apparmor: profile(fields, "appArmorProfile", str::to_owned)?,
    };
    fields.refuse(&["windowsOptions"], "this is Linux")?;
    Ok(security)
}

fn selinux(fields: &mut Fields<'_>) -> Result<Option<SeLinuxOption>> {
    let Some(field) = fields.get("seLinuxOptions") else {
        return Ok(None);
    };
    let mut fields = field.fields()?;
    let mut text = |name| Ok::<_, anyhow::Error>(fields.text(name)?.unwrap_or_default().to_owned());
    let options = SeLinuxOption {
        user: text("user")?,
        role: text("role")?,
        r#type: text("type")?,
        level: text("level")?,
    };
    fields.end()?;
    Ok(Some(options))
}

/// `seccompProfile` or `appArmorProfile`; `local`: CRI's name of a profile of this machine.
fn profile(
    fields: &mut Fields<'_>,
    name: &'static str,
    local: impl Fn(&str) -> String,
) -> Result<Option<SecurityProfile>> {
    let Some(field) = fields.get(name) else {
        return Ok(None);
    };
    let mut fields = field.fields()?;
    let kind = fields.need("type", "give RuntimeDefault, Localhost or Unconfined")?;
    let kinds = [
        ProfileType::RuntimeDefault,
        ProfileType::Localhost,
        ProfileType::Unconfined,
    ];
    let kind = kinds[kind.choice(&["RuntimeDefault", "Localhost", "Unconfined"])?];
    let given = fields.get("localhostProfile");
    let localhost_ref = match (kind, given) {
        (ProfileType::Localhost, Some(name)) => local(name.word()?),
        (ProfileType::Localhost, None) => {
            return Err(field.wrong("type Localhost needs localhostProfile"));
        }
        (_, Some(name)) => return Err(name.wrong("is of type Localhost alone")),
        (_, None) => String::new(),
    };
    fields.end()?;
    Ok(Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref,
    }))
}
