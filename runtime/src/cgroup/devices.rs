//! Which devices a container may use: `linux.resources.devices` with the devices every container gets.
//!
//! Rules are read in order and the last one that speaks of a device and a kind of access decides; what none speaks of
//! is denied. runc's meaning in two points that the specification leaves open: the default devices are allowed *after*
//! the rules of config.json, so that they can't be taken away; a rule of type `a` speaks of everything, whatever its
//! numbers and access say.
//!
//! On v2 the rules become a program ([`program`](super::program)). On v1 the kernel keeps a default and a list of
//! exceptions, and takes changes one at a time ([`Exceptions::transition`]).

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::Cgroup;
use super::dir::write_call;
use super::program;
use crate::log;
use crate::sys::{Named as _, bpf};

/// A set of kinds of access, with the kernel's bits (`BPF_DEVCG_ACC_*`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Access(u8);

impl Access {
    pub(super) const MKNOD: Self = Self(1);
    pub(super) const READ: Self = Self(2);
    pub(super) const WRITE: Self = Self(4);
    pub(super) const ALL: Self = Self(7);

    pub(super) fn bits(self) -> u8 {
        self.0
    }
    pub(super) fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }
    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
    fn is_empty(self) -> bool {
        self.0 == 0
    }
    fn parse(text: &str) -> Option<Self> {
        let mut access = Self::default();
        for letter in text.chars() {
            access = access.with(match letter {
                'r' => Self::READ,
                'w' => Self::WRITE,
                'm' => Self::MKNOD,
                _ => return None,
            });
        }
        (!access.is_empty()).then_some(access)
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MKNOD, "m")] {
            if self.contains(kind) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Block,
    Char,
}

/// The devices a rule speaks of; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Devices {
    pub(super) kind: Option<Kind>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
}

impl Devices {
    pub(super) const ALL: Self = Self {
        kind: None,
        major: None,
        minor: None,
    };

    const fn char(major: Option<u32>, minor: Option<u32>) -> Self {
        Self {
            kind: Some(Kind::Char),
            major,
            minor,
        }
    }

    /// Whether all of the other's devices are among these.
    pub(super) fn contains(&self, other: &Self) -> bool {
        self.kind.is_none_or(|kind| other.kind == Some(kind))
            && self.major.is_none_or(|major| other.major == Some(major))
            && self.minor.is_none_or(|minor| other.minor == Some(minor))
    }
}

impl fmt::Display for Devices {
    /// As the v1 files have it, without the access.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            None => "a ",
            Some(Kind::Block) => "b ",
            Some(Kind::Char) => "c ",
        })?;
        match self.major {
            Some(major) => write!(f, "{major}:")?,
            None => f.write_str("*:")?,
        }
        match self.minor {
            Some(minor) => write!(f, "{minor}"),
            None => f.write_str("*"),
        }
    }
}

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) devices: Devices,
    pub(super) access: Access,
    pub(super) allow: bool,
}

/// What every container may use (runc's list): making any device node, and using the harmless ones.
const DEFAULTS: [Rule; 10] = [
    allow(
        Devices {
            kind: Some(Kind::Char),
            major: None,
            minor: None,
        },
        Access::MKNOD,
    ),
    allow(
        Devices {
            kind: Some(Kind::Block),
            major: None,
            minor: None,
        },
        Access::MKNOD,
    ),
    allow(Devices::char(Some(1), Some(3)), Access::ALL), // null
    allow(Devices::char(Some(1), Some(8)), Access::ALL), // random
    allow(Devices::char(Some(1), Some(7)), Access::ALL), // full
    allow(Devices::char(Some(5), Some(0)), Access::ALL), // tty
    allow(Devices::char(Some(1), Some(5)), Access::ALL), // zero
    allow(Devices::char(Some(1), Some(9)), Access::ALL), // urandom
    allow(Devices::char(Some(136), None), Access::ALL),  // pts/*
    allow(Devices::char(Some(5), Some(2)), Access::ALL), // ptmx
];

const fn allow(devices: Devices, access: Access) -> Rule {
    Rule {
        devices,
        access,
        allow: true,
    }
}

/// The rules of a container, checked, in order.
///
/// # Errors
///
/// Names the rule, by its place in `linux.resources.devices`.
pub(super) fn rules(configured: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut rules = Vec::with_capacity(configured.len() + DEFAULTS.len());
    for (index, rule) in configured.iter().enumerate() {
        rules.push(checked(rule).with_context(|| format!("linux.resources.devices[{index}]"))?);
    }
    rules.extend(DEFAULTS);
    Ok(rules)
}

fn checked(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let access = rule.access().as_deref().unwrap_or_default();
    if access.is_empty() {
        bail!("access: device access field cannot be empty: must be some of r, w and m");
    }
    let access =
        Access::parse(access).with_context(|| format!("access: {access:?}: must be some of r, w and m"))?;
    let number = |name: &str, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => match i32::try_from(value) {
            Ok(value @ 0..) => Ok(Some(value.unsigned_abs())),
            _ => bail!("{name}: {value}: must be a device number, or -1 for any"),
        },
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => {
            return Ok(Rule {
                devices: Devices::ALL,
                access: Access::ALL,
                allow: rule.allow(),
            });
        }
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C) => Kind::Char,
        Some(other) => bail!(
            "type: invalid cgroup device type {:?}: must be a, b or c",
            other.as_str()
        ),
    };
    let devices = Devices {
        kind: Some(kind),
        major: number("major", rule.major())?,
        minor: number("minor", rule.minor())?,
    };
    Ok(Rule {
        devices,
        access,
        allow: rule.allow(),
    })
}

/// What a v1 cgroup allows: everything, or nothing, and where that is not so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Exceptions {
    default_allow: bool,
    except: BTreeMap<Devices, Access>,
}

impl Exceptions {
    /// What the rules come to.
    fn of(rules: &[Rule]) -> Result<Self> {
        let mut state = Self::default();
        for rule in rules {
            state.take(rule)?;
        }
        Ok(state)
    }

    fn take(&mut self, rule: &Rule) -> Result<()> {
        if rule.devices == Devices::ALL {
            *self = Self {
                default_allow: rule.allow,
                except: BTreeMap::new(),
            };
        } else if rule.allow != self.default_allow {
            let access = self.except.entry(rule.devices).or_default();
            *access = access.with(rule.access);
        } else {
            self.take_back(rule)?;
        }
        Ok(())
    }

    /// Ends an exception. The kernel takes back only what was given as such: not a part of a wildcard.
    fn take_back(&mut self, rule: &Rule) -> Result<()> {
        let wider = |(devices, access): &(&Devices, &Access)| {
            **devices != rule.devices && devices.contains(&rule.devices) && access.meets(rule.access)
        };
        if let Some((devices, access)) = self.except.iter().find(wider) {
            bail!(
                "linux.resources.devices: requested rule [{} {:?}] not supported by devices cgroupv1 \
                 (cannot punch hole in existing wildcard rule [{devices} {access:?}])",
                rule.devices,
                rule.access
            );
        }
        if let Some(access) = self.except.get_mut(&rule.devices) {
            *access = access.without(rule.access);
            if access.is_empty() {
                self.except.remove(&rule.devices);
            }
        }
        Ok(())
    }

    /// What the kernel has now (`devices.list`).
    fn parse(list: &str) -> Result<Self> {
        let mut state = Self::default();
        for line in list.lines() {
            let rule = parse_line(line).with_context(|| format!("devices.list: {line:?}"))?;
            state.take(&rule)?;
        }
        Ok(state)
    }

    /// The fewest changes to get there. What is allowed before and after is allowed in between, except where the
    /// default must change: the kernel can't exchange that together with the exceptions.
    fn transition(&self, target: &Self) -> Vec<Rule> {
        let mut changes = Vec::new();
        let none = BTreeMap::new();
        let mut before = &self.except;
        if self.default_allow != target.default_allow {
            changes.push(Rule {
                devices: Devices::ALL,
                access: Access::ALL,
                allow: target.default_allow,
            });
            before = &none;
        }
        let difference = |of: &BTreeMap<Devices, Access>, less: &BTreeMap<Devices, Access>, allow| {
            let rules = of.iter().map(|(devices, access)| {
                let access = access.without(less.get(devices).copied().unwrap_or_default());
                Rule {
                    devices: *devices,
                    access,
                    allow,
                }
            });
            rules.filter(|rule| !rule.access.is_empty()).collect::<Vec<_>>()
        };
        let gained = difference(&target.except, before, !target.default_allow);
        let lost = difference(before, &target.except, target.default_allow);
        // First what allows, then what denies.
        if target.default_allow {
            changes.extend(lost.into_iter().chain(gained));
        } else {
            changes.extend(gained.into_iter().chain(lost));
        }
        changes
    }
}

fn parse_line(line: &str) -> Option<Rule> {
    let mut fields = line.split(' ');
    let kind = match fields.next()? {
        "a" => None,
        "b" => Some(Kind::Block),
        "c" => Some(Kind::Char),
        _ => return None,
    };
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text: &str| {
        if text == "*" {
            Some(None)
        } else {
            text.parse().ok().map(Some)
        }
    };
    let devices = Devices {
        kind,
        major: number(major)?,
        minor: number(minor)?,
    };
    Some(Rule {
        devices,
        access: Access::parse(fields.next()?)?,
        allow: true,
    })
}

impl Cgroup {
    /// Sets which devices the container may use, at creation and on update.
    ///
    /// On v2 a program takes the place of the one before; a new container that may use everything gets none. On v1
    /// only what differs is changed.
    ///
    /// # Errors
    ///
    /// For a rule that is not well-formed, that v1 can't express, or that the kernel refuses. A caller that may set none
    /// is excused where it is not root of the machine: it has no device that is not its own anyway.
    pub fn apply_devices(&self, configured: &[LinuxDeviceCgroup]) -> Result<()> {
        let rules = rules(configured)?;
        let applied = if self.is_v2() {
            self.apply_program(&rules)
        } else if self.trees.iter().any(|tree| tree.has("devices")) {
            self.apply_exceptions(&rules)
        } else {
            return Ok(());
        };
        match applied {
            Err(error) if self.made.excuses(&error) => {
                log::debug(|| format!("device rules are left out: {error:#}"));
                Ok(())
            }
            applied => applied,
        }
    }

    fn apply_program(&self, rules: &[Rule]) -> Result<()> {
        let tree = self.main()?;
        let dir = tree.dir()?;
        let new = self.made.contains(&tree.path);
        let instructions = program::emit(rules)?;
        if new && program::allows_everything(&instructions) {
            return Ok(());
        }
        let program = bpf::load_device_program(&instructions).context("device program")?;
        if !new {
            self.replace_pinned(&instructions).context("device program")?;
        }
        let mut old = if new {
            Vec::new()
        } else {
            bpf::device_programs(dir).context("device program")?
        };
        bpf::attach_device_program(dir, &program, old.first()).context("device program")?;
        // Others (of an earlier version, of systemd) would go on denying what is allowed now.
        for other in old.drain(..).skip(1) {
            bpf::detach_device_program(dir, &other).context("device program")?;
        }
        Ok(())
    }

    fn apply_exceptions(&self, rules: &[Rule]) -> Result<()> {
        let dir = self.main()?.dir()?;
        let target = Exceptions::of(rules)?;
        // A new cgroup has what its parent has. Denying all comes first then, in any case.
        let new = self.made.contains(dir.path());
        let now = if new && !target.default_allow {
            Exceptions {
                default_allow: true,
                ..Exceptions::default()
            }
        } else {
            Exceptions::parse(&dir.read_list("devices.list")?)?
        };
        let changes = now.transition(&target);
        // One rule for each write; each file is opened once.
        let mut open: [Option<OwnedFd>; 2] = [None, None];
        for change in changes {
            let name = if change.allow {
                "devices.allow"
            } else {
                "devices.deny"
            };
            let file = match &mut open[usize::from(change.allow)] {
                Some(file) => file,
                slot => slot.insert(dir.file(name, OFlag::O_WRONLY)?),
            };
            let value = format!("{} {:?}", change.devices, change.access);
            nix::unistd::write(&*file, value.as_bytes())
                .call(|| write_call(name, &value))
                .with_context(|| format!("linux.resources.devices: cgroup {:?}", dir.path()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    fn rule(text: &str) -> Rule {
        let (allow, line) = text.split_at(1);
        Rule {
            allow: allow == "+",
            ..parse_line(line).unwrap()
        }
    }

    fn exceptions(texts: &[&str]) -> Exceptions {
        Exceptions::of(&texts.iter().map(|text| rule(text)).collect::<Vec<_>>()).unwrap()
    }

    fn changes(from: &str, to: &[&str]) -> Vec<String> {
        let changes = Exceptions::parse(from).unwrap().transition(&exceptions(to));
        changes
            .iter()
            .map(|change| {
                format!(
                    "{}{} {:?}",
                    if change.allow { '+' } else { '-' },
                    change.devices,
                    change.access
                )
            })
            .collect()
    }

    #[test]
    fn a_new_cgroup_denies_all_and_allows_what_is_listed() {
        assert_eq!(
            changes("a *:* rwm\n", &["-a *:* rwm", "+c 1:3 rwm", "+c 136:* rw"]),
            ["-a *:* rwm", "+c 1:3 rwm", "+c 136:* rw"]
        );
    }

    #[test]
    fn equal_rules_change_nothing() {
        assert!(
            changes(
                "c 1:3 rwm\nb *:* m\n",
                &["-a *:* rwm", "+b *:* m", "+c 1:3 rw", "+c 1:3 m"]
            )
            .is_empty()
        );
        assert!(changes("a *:* rwm\n", &["+a *:* rwm"]).is_empty());
    }

    #[test]
    fn an_update_writes_only_what_differs_and_allows_first() {
        assert_eq!(
            changes("c 1:3 rwm\nc 1:5 rw\n", &["+c 1:3 rw", "+c 1:7 r"]),
            ["+c 1:7 r", "-c 1:3 m", "-c 1:5 rw"]
        );
    }

    #[test]
    fn a_denied_part_of_a_wildcard_is_refused() {
        let rules = [rule("+c 1:* rw"), rule("-c 1:3 w")];
        let error = Exceptions::of(&rules).unwrap_err().to_string();
        assert!(
            error.contains("cannot punch hole in existing wildcard rule [c 1:* rw]"),
            "{error}"
        );
    }

    #[test]
    fn a_rule_that_is_not_well_formed_is_named() {
        let text =
            |rule: LinuxDeviceCgroupBuilder| format!("{:#}", rules(&[rule.build().unwrap()]).unwrap_err());
        let new = LinuxDeviceCgroupBuilder::default;
        assert_eq!(
            text(new().allow(true)),
            "linux.resources.devices[0]: access: device access field cannot be empty: must be some of r, w and m"
        );
        assert!(text(new().access("rx")).contains(r#"access: "rx": must be"#));
        assert!(
            text(new().access("r").typ(LinuxDeviceType::P)).contains(r#"invalid cgroup device type "p""#)
        );
        assert!(text(new().access("r").typ(LinuxDeviceType::C).major(-2_i64)).contains("major: -2: must be"));
    }
}
