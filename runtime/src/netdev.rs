//! `linux.netDevices`: network devices of the runtime's network namespace that become the container's.
//!
//! ```text
//! runtime's namespace                             container's
//! addresses and state are read
//! down
//! RTM_NEWLINK: its new name, IFLA_NET_NS_FD ----> there, under that name
//!                                                 its permanent addresses of global scope, up
//! ```
//!
//! What else a device has (MTU, MAC address) it keeps; routes are gone with the state "up", as always. A container that is
//! deleted gives nothing back: the kernel moves physical devices to the first namespace and removes virtual ones when a
//! namespace ends, and one that was joined has an owner (runtime-spec, "Namespace Lifecycle and Container
//! Termination"). But a container that could not be created has taken nothing: [`Moved::undo`].

mod netlink;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::stat::fstat;
use oci_spec::runtime::LinuxNetDevice;

use crate::log;
use crate::sys::clone::CLONE_NEWNET;
use crate::sys::process::setns;
use crate::sys::{self, Errno, Named};
use netlink::{CREATE, Request, Socket, attribute, number};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// Sizes of `struct ifinfomsg` and `struct ifaddrmsg`.
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// An address that a person or a program has set without a time (`IFA_F_PERMANENT`).
const PERMANENT: u32 = 0x80;
/// What is said of an address and not found out: `IFA_F_NODAD`, `IFA_F_HOMEADDRESS`, `IFA_F_MANAGETEMPADDR`,
/// `IFA_F_NOPREFIXROUTE`, `IFA_F_MCAUTOJOIN`.
const KEPT_FLAGS: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;

/// How often a name is looked for that others take in the same moment.
const TRIES: u32 = 10;

/// A network namespace: a socket in it, and a descriptor of it.
#[derive(Debug)]
struct Side {
    socket: Socket,
    namespace: OwnedFd,
}

/// An address of a device.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    flags: u32,
    /// `IFA_ADDRESS`, `IFA_LOCAL`, `IFA_BROADCAST`, where they are there.
    values: Vec<(u16, Vec<u8>)>,
}

/// A device as it is found.
#[derive(Debug)]
struct Found {
    index: u32,
    up: bool,
    addresses: Vec<Address>,
}

/// A device that was moved.
#[derive(Debug)]
struct Device {
    name: String,
    new_name: String,
    was_up: bool,
    addresses: Vec<Address>,
}

/// Devices that are the container's now.
#[derive(Debug)]
pub struct Moved {
    own: Side,
    container: Side,
    devices: Vec<Device>,
}

/// Moves devices into a network namespace, in the order of their names, and leaves them up.
///
/// # Errors
///
/// A device that is not there, or can't be moved; a name that is taken. Nothing has moved then.
pub fn move_into(namespace: OwnedFd, devices: &HashMap<String, LinuxNetDevice>) -> Result<Moved> {
    let own = File::open("/proc/self/ns/net").call(|| "open(\"/proc/self/ns/net\")".into())?;
    let id = |fd: &OwnedFd| -> Result<_> {
        let found = fstat(fd).call(|| "fstat".into())?;
        Ok((found.st_dev, found.st_ino))
    };
    let own = OwnedFd::from(own);
    if id(&own)? == id(&namespace)? {
        bail!(
            "linux.netDevices: the network namespace that is joined is the runtime's own: the devices are there already"
        );
    }
    let own = Side {
        socket: Socket::open()?,
        namespace: own,
    };
    setns(&namespace, CLONE_NEWNET).context("enter the container's network namespace")?;
    let socket = Socket::open();
    setns(&own.namespace, CLONE_NEWNET).context("return to the runtime's network namespace")?;
    let mut moved = Moved {
        own,
        container: Side {
            socket: socket?,
            namespace,
        },
        devices: Vec::new(),
    };
    for (name, device) in devices.iter().collect::<BTreeMap<_, _>>() {
        let new_name = device
            .name()
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(name);
        if let Err(error) = moved.take(name, new_name) {
            moved.undo();
            return Err(error.context(format!("linux.netDevices[{name:?}]")));
        }
    }
    Ok(moved)
}

impl Moved {
    fn take(&mut self, name: &str, new_name: &str) -> Result<()> {
        let found = self
            .own
            .find(name)
            .context("no such network device can be moved")?;
        let taken =
            |name: &str| format!("a device named {name:?} is in the container's network namespace already");
        if !new_name.contains("%d") && self.container.has(new_name)? {
            bail!(taken(new_name));
        }
        let mut tries = 0;
        let new_name = loop {
            let candidate = match new_name.split_once("%d") {
                Some((before, after)) => self.container.free_name(before, after)?,
                None => new_name.to_owned(),
            };
            let Err(error) = self.own.give(name, &found, &self.container, &candidate) else {
                break candidate;
            };
            self.take_back(name, &found);
            // Somebody else took the number.
            if error.errno == Errno::EEXIST && candidate != new_name && tries < TRIES {
                tries += 1;
                continue;
            }
            let exists = error.errno == Errno::EEXIST;
            let error = anyhow::Error::from(error);
            return Err(if exists {
                error.context(taken(&candidate))
            } else {
                error
            });
        };
        let device = Device {
            name: name.to_owned(),
            new_name,
            was_up: found.up,
            addresses: found.addresses,
        };
        let set_up = self.container.set_up(&device.new_name, &device.addresses, true);
        self.devices.push(device);
        set_up.context("in the container's network namespace")
    }

    /// After a failed move: the kernel moves first and then renames, and where that fails the device is there under its
    /// old name.
    fn take_back(&self, name: &str, found: &Found) {
        if !self.own.has(name).unwrap_or(true)
            && let Ok(there) = self.container.find(name)
            && let Err(error) = self.container.give(name, &there, &self.own, name)
        {
            log::warn(format_args!("bring back network device {name:?}: {error}"));
            return;
        }
        self.own.restore(name, found.up, &found.addresses);
    }

    /// Brings all back: names, addresses and state as they were. What can't be is told.
    pub fn undo(self) {
        let Self {
            own,
            container,
            devices,
        } = self;
        for Device {
            name,
            new_name,
            was_up,
            addresses,
        } in devices.into_iter().rev()
        {
            let back = container
                .find(&new_name)
                .and_then(|found| Ok(container.give(&new_name, &found, &own, &name)?));
            match back {
                Ok(()) => own.restore(&name, was_up, &addresses),
                Err(error) => log::warn(format_args!("bring back network device {name:?}: {error:#}")),
            }
        }
    }
}

impl Side {
    fn find(&self, name: &str) -> Result<Found> {
        let what = format!("RTM_GETLINK {name:?}");
        let request = Request::new(what, RTM_GETLINK, &[0; LINK]).attribute(IFLA_IFNAME, &c_name(name));
        let answers = self.socket.ask(request, 0)?;
        let link = answers.first().context("the kernel told no device")?;
        let index = number(link, 4).context("a short answer")?;
        let flags = number(link, 8).context("a short answer")?;
        Ok(Found {
            index,
            up: flags & libc::IFF_UP.cast_unsigned() != 0,
            addresses: self.addresses(index)?,
        })
    }

    fn has(&self, name: &str) -> sys::Result<bool> {
        let request = Request::new("RTM_GETLINK", RTM_GETLINK, &[0; LINK]);
        match self.socket.ask(request.attribute(IFLA_IFNAME, &c_name(name)), 0) {
            Err(error) if error.errno == Errno::ENODEV => Ok(false),
            answered => answered.map(|_| true),
        }
    }

    /// Those that are meant to last and hold everywhere.
    fn addresses(&self, index: u32) -> Result<Vec<Address>> {
        let answers = self
            .socket
            .list(|| Request::new("RTM_GETADDR", RTM_GETADDR, &[0; ADDRESS]))?;
        let of_device = answers.iter().filter(|body| number(body, 4) == Some(index));
        Ok(of_device.filter_map(|body| address(body)).collect())
    }

    /// Moves a device to another namespace under a name. It is down then. A name that is taken there is no obstacle to the
    /// move itself.
    fn give(&self, name: &str, device: &Found, to: &Side, new_name: &str) -> sys::Result<()> {
        self.set_state(name, device.index, false)?;
        let what = format!("RTM_NEWLINK {name:?}, IFNAME {new_name:?}, NET_NS_FD");
        let request = Request::new(what, RTM_NEWLINK, &link(device.index, None))
            .attribute(IFLA_IFNAME, &c_name(new_name))
            .attribute(IFLA_NET_NS_FD, &to.namespace.as_fd().as_raw_fd().to_ne_bytes());
        self.socket.ask(request, 0).map(drop)
    }

    /// Gives a device addresses, and puts it up. Those it has already are no error.
    fn set_up(&self, name: &str, addresses: &[Address], up: bool) -> Result<()> {
        let Found { index, .. } = self.find(name)?;
        for address in addresses {
            match self.socket.ask(address.request(name, index), CREATE) {
                Err(error) if error.errno != Errno::EEXIST => return Err(error.into()),
                _ => {}
            }
        }
        if up {
            self.set_state(name, index, true)?;
        }
        Ok(())
    }

    fn restore(&self, name: &str, up: bool, addresses: &[Address]) {
        if let Err(error) = self.set_up(name, addresses, up) {
            log::warn(format_args!("restore network device {name:?}: {error:#}"));
        }
    }

    fn set_state(&self, name: &str, index: u32, up: bool) -> sys::Result<()> {
        let what = format!("RTM_NEWLINK {name:?}, {}", if up { "UP" } else { "DOWN" });
        self.socket
            .ask(Request::new(what, RTM_NEWLINK, &link(index, Some(up))), 0)
            .map(drop)
    }

    /// The first name of this form that no device has, as the kernel finds it.
    fn free_name(&self, before: &str, after: &str) -> Result<String> {
        let answers = self
            .socket
            .list(|| Request::new("RTM_GETLINK", RTM_GETLINK, &[0; LINK]))?;
        let taken: Vec<&[u8]> = answers
            .iter()
            .filter_map(|body| attribute(body, LINK, IFLA_IFNAME)?.strip_suffix(b"\0"))
            .collect();
        (0..=taken.len())
            .map(|number| format!("{before}{number}{after}"))
            .find(|name| !taken.contains(&name.as_bytes()))
            .context("no free name")
    }
}

impl Address {
    fn request(&self, name: &str, index: u32) -> Request {
        let mut body = [0; ADDRESS];
        body[0] = self.family;
        body[1] = self.prefix;
        body[4..].copy_from_slice(&index.to_ne_bytes());
        let request = Request::new(format!("RTM_NEWADDR {name:?}, {self}"), RTM_NEWADDR, &body)
            .attribute(IFA_FLAGS, &self.flags.to_ne_bytes());
        self.values
            .iter()
            .fold(request, |request, (kind, value)| request.attribute(*kind, value))
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.values.first().map_or(&[][..], |(_, value)| value);
        if let Ok(four) = <[u8; 4]>::try_from(value) {
            write!(f, "{}/{}", std::net::Ipv4Addr::from(four), self.prefix)
        } else if let Ok(sixteen) = <[u8; 16]>::try_from(value) {
            write!(f, "{}/{}", std::net::Ipv6Addr::from(sixteen), self.prefix)
        } else {
            write!(f, "{value:x?}/{}", self.prefix)
        }
    }
}

/// An address that goes with its device; `None` for those that are temporary or of a smaller scope.
fn address(body: &[u8]) -> Option<Address> {
    let [family, prefix, old_flags, scope, ..] = *body else {
        return None;
    };
    // RT_SCOPE_UNIVERSE.
    if scope != 0 {
        return None;
    }
    let flags = match attribute(body, ADDRESS, IFA_FLAGS) {
        Some(flags) => number(flags, 0)?,
        None => old_flags.into(),
    };
    let value = |kind| Some((kind, attribute(body, ADDRESS, kind)?.to_vec()));
    (flags & PERMANENT != 0).then(|| Address {
        family,
        prefix,
        flags: flags & KEPT_FLAGS,
        values: [IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST]
            .into_iter()
            .filter_map(value)
            .collect(),
    })
}

/// `struct ifinfomsg` of a device, with the change of its state.
fn link(index: u32, up: Option<bool>) -> [u8; LINK] {
    let mut body = [0; LINK];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(up) = up {
        let bit = libc::IFF_UP.cast_unsigned();
        body[8..12].copy_from_slice(&(if up { bit } else { 0 }).to_ne_bytes());
        body[12..].copy_from_slice(&bit.to_ne_bytes());
    }
    body
}

fn c_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(scope: u8, old_flags: u8, flags: Option<u32>) -> Vec<u8> {
        let mut body = vec![2, 24, old_flags, scope, 7, 0, 0, 0];
        let mut add = |kind: u16, value: &[u8]| {
            body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
            body.extend_from_slice(&kind.to_ne_bytes());
            body.extend_from_slice(value);
        };
        add(IFA_ADDRESS, &[10, 0, 0, 2]);
        add(IFA_LOCAL, &[10, 0, 0, 1]);
        if let Some(flags) = flags {
            add(IFA_FLAGS, &flags.to_ne_bytes());
        }
        body
    }

    #[test]
    fn permanent_addresses_of_global_scope_go_with_their_device() {
        let found = address(&body(0, 0x80, None)).unwrap();
        assert_eq!((found.family, found.prefix, found.flags), (2, 24, 0));
        assert_eq!(found.to_string(), "10.0.0.1/24");
        assert_eq!(found.values.len(), 2);
        // The flags that do not fit into a byte are told apart.
        assert_eq!(address(&body(0, 0, Some(0x280))).unwrap().flags, 0x200);
    }

    #[test]
    fn link_local_and_temporary_addresses_stay() {
        assert_eq!(address(&body(253, 0x80, None)), None);
        assert_eq!(address(&body(254, 0x80, None)), None);
        assert_eq!(address(&body(0, 0, None)), None);
        assert_eq!(address(&[2, 24]), None);
    }
}
