//! A container of a Pod.

use anyhow::Result;
use rtc_cri::proto::{MountPropagation, PortMapping, Protocol, Signal};

use super::field::{Field, Fields};
use super::names;
use super::quantity::Quantity;
use super::security::{self, ContainerSecurity};

/// When it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// To its end, before what follows it.
    Init,
    /// From here on: an init container that is restartable.
    Sidecar,
    Main,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pull {
    Always,
    IfNotPresent,
    Never,
}

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) image: String,
    pub(crate) pull: Pull,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) requests: Amounts,
    pub(crate) limits: Amounts,
    pub(crate) mounts: Vec<VolumeMount>,
    pub(crate) security: ContainerSecurity,
    pub(crate) stop_signal: i32,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
}

/// `requests` or `limits`.
#[derive(Debug, Default)]
pub(crate) struct Amounts {
    pub(crate) cpu: Option<Quantity>,
    /// Bytes.
    pub(crate) memory: Option<Quantity>,
    /// As `2Mi`, and bytes.
    pub(crate) huge_pages: Vec<(String, Quantity)>,
}

/// A volume in a container.
#[derive(Debug)]
pub(crate) struct VolumeMount {
    pub(crate) volume: String,
    /// In the container.
    pub(crate) path: String,
    /// In the volume; empty: all of it.
    pub(crate) sub_path: String,
    pub(crate) read_only: bool,
    pub(crate) recursive_read_only: bool,
    /// CRI's `MountPropagation`.
    pub(crate) propagation: i32,
}

pub(super) fn read(field: &Field<'_>, role: Role) -> Result<Container> {
    let mut fields = field.fields()?;
    let name = fields.need("name", "give the container a name")?;
    let image = fields.need("image", "give the image to run")?;
    let image = image.word()?;
    let role = self::role(&mut fields, role)?;
    let (requests, limits) = resources(&mut fields)?;
    let container = Container {
        name: names::label(&name)?.to_owned(),
        role,
        image: image.to_owned(),
        pull: pull(&mut fields, image)?,
        command: fields.texts("command")?,
        args: fields.texts("args")?,
        working_dir: match fields.get("workingDir") {
            Some(field) => names::path(&field)?.to_owned(),
            None => String::new(),
        },
        env: env(&mut fields)?,
        ports: ports(&mut fields)?,
        requests,
        limits,
        mounts: mounts(&mut fields)?,
        security: security::container(&mut fields)?,
        stop_signal: lifecycle(&mut fields)?,
        stdin: fields.bool("stdin")?.unwrap_or_default(),
        stdin_once: fields.bool("stdinOnce")?.unwrap_or_default(),
        tty: fields.bool("tty")?.unwrap_or_default(),
    };
    fields.skip(&[
        "resizePolicy",
        "terminationMessagePath",
        "terminationMessagePolicy",
    ]);
    fields.ignore(
        &["livenessProbe", "readinessProbe", "startupProbe"],
        "probes need a kubelet",
    );
    fields.refuse(
        &["envFrom"],
        "there are no ConfigMaps and Secrets here: write the variables under env",
    )?;
    fields.refuse(&["volumeDevices"], "there are no PersistentVolumes here")?;
    fields.end()?;
    Ok(container)
}

fn role(fields: &mut Fields<'_>, role: Role) -> Result<Role> {
    fields.ignore(
        &["restartPolicyRules"],
        "a container that ends is not started again",
    );
    let Some(policy) = fields.get("restartPolicy") else {
        return Ok(role);
    };
    let always = policy.choice(&["Always", "Never", "OnFailure"])?;
    match (role, always) {
        (Role::Init, 0) => Ok(Role::Sidecar),
        (_, 1) => Ok(role),
        _ => {
            policy.warn("a container that ends is not started again: that needs a kubelet");
            Ok(role)
        }
    }
}

/// As the API server's default: what may have changed is asked for anew.
fn pull(fields: &mut Fields<'_>, image: &str) -> Result<Pull> {
    if let Some(policy) = fields.get("imagePullPolicy") {
        let policies = [Pull::Always, Pull::IfNotPresent, Pull::Never];
        return Ok(policies[policy.choice(&["Always", "IfNotPresent", "Never"])?]);
    }
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !name.contains(['@', ':']) || name.ends_with(":latest");
    Ok(if latest { Pull::Always } else { Pull::IfNotPresent })
}

fn env(fields: &mut Fields<'_>) -> Result<Vec<(String, String)>> {
    let mut env = Vec::new();
    for variable in fields.list("env")? {
        let mut variable = variable.fields()?;
        let name = variable.need("name", "give the variable's name")?;
        if name.word()?.contains(['=', '\0']) {
            return Err(name.wrong("must have no '='"));
        }
        if let Some(from) = variable.get("valueFrom") {
            let kind = from.entries()?.first().map_or("", |(kind, _)| *kind);
            return Err(anyhow::anyhow!(
                "{}: {kind} can't be had here: write the value under value",
                from.path
            ));
        }
        let value = variable.text("value")?.unwrap_or_default();
        env.push((name.text()?.to_owned(), value.to_owned()));
        variable.end()?;
    }
    Ok(env)
}

fn ports(fields: &mut Fields<'_>) -> Result<Vec<PortMapping>> {
    let mut ports = Vec::new();
    for port in fields.list("ports")? {
        let mut port = port.fields()?;
        let number = |field: Field<'_>| field.integer(1, 65535).map(|port| port as i32);
        let host_ip = port.get("hostIP");
        if let Some(address) = &host_ip
            && address.text()?.parse::<std::net::IpAddr>().is_err()
        {
            return Err(address.wrong("must be an IPv4 or IPv6 address"));
        }
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = match port.get("protocol") {
            Some(field) => protocols[field.choice(&["TCP", "UDP", "SCTP"])?],
            None => Protocol::Tcp,
        };
        ports.push(PortMapping {
            protocol: protocol.into(),
            container_port: number(
                port.need("containerPort", "give the port that the container listens on")?,
            )?,
            host_port: port.get("hostPort").map_or(Ok(0), number)?,
            host_ip: host_ip.map_or(Ok(""), |field| field.text())?.to_owned(),
        });
        port.skip(&["name"]);
        port.end()?;
    }
    Ok(ports)
}

fn resources(fields: &mut Fields<'_>) -> Result<(Amounts, Amounts)> {
    let Some(field) = fields.get("resources") else {
        return Ok(Default::default());
    };
    let mut resources = field.fields()?;
    resources.refuse(&["claims"], "there is no cluster here")?;
    let limits = amounts(&mut resources, "limits")?;
    let requests = amounts(&mut resources, "requests")?;
    resources.end()?;
    for (name, request, limit) in [
        ("cpu", requests.cpu, limits.cpu),
        ("memory", requests.memory, limits.memory),
    ] {
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            return Err(anyhow::anyhow!(
                "{}: requests.{name} must not be more than limits.{name}",
                field.path
            ));
        }
    }
    Ok((requests, limits))
}

fn amounts(resources: &mut Fields<'_>, which: &'static str) -> Result<Amounts> {
    let mut amounts = Amounts::default();
    let Some(field) = resources.get(which) else {
        return Ok(amounts);
    };
    for (name, field) in field.entries()? {
        let quantity = field.quantity()?;
        match (name, name.strip_prefix("hugepages-")) {
            ("cpu", _) => amounts.cpu = Some(quantity),
            ("memory", _) => amounts.memory = Some(quantity),
            (_, Some(size)) => amounts.huge_pages.push((size.to_owned(), quantity)),
            ("ephemeral-storage", _) => field.warn("ignored: disk space is watched by a kubelet"),
            _ => {
                return Err(
                    field.wrong("can't be had here: devices are given out by a kubelet's device plugins")
                );
            }
        }
    }
    Ok(amounts)
}

fn mounts(fields: &mut Fields<'_>) -> Result<Vec<VolumeMount>> {
    let mut mounts = Vec::new();
    for mount in fields.list("volumeMounts")? {
        let mut mount = mount.fields()?;
        let path = mount.need("mountPath", "give the path in the container")?;
        if path.word()?.contains(':') {
            return Err(path.wrong("must have no ':'"));
        }
        let sub_path = mount.get("subPath");
        if let Some(field) = &sub_path
            && (field.text()?.starts_with('/') || field.text()?.split('/').any(|part| part == ".."))
        {
            return Err(field.wrong("must be a path in the volume, without \"..\""));
        }
        let read_only = mount.bool("readOnly")?.unwrap_or_default();
        let recursive = mount.get("recursiveReadOnly");
        let asked = match &recursive {
            Some(field) => field.choice(&["Disabled", "IfPossible", "Enabled"])?,
            None => 0,
        };
        if let (Some(field), true, false) = (&recursive, asked > 0, read_only) {
            return Err(field.wrong("needs readOnly: true"));
        }
        let propagations = [
            MountPropagation::PropagationPrivate,
            MountPropagation::PropagationHostToContainer,
            MountPropagation::PropagationBidirectional,
        ];
        let propagation = match mount.get("mountPropagation") {
            Some(field) => propagations[field.choice(&["None", "HostToContainer", "Bidirectional"])?],
            None => MountPropagation::PropagationPrivate,
        };
        mounts.push(VolumeMount {
            volume: mount
                .need("name", "give the name of one of spec.volumes")?
                .word()?
                .to_owned(),
            path: absolute(path.text()?),
            sub_path: sub_path.map_or(Ok(""), |field| field.text())?.to_owned(),
            read_only,
            recursive_read_only: asked > 0,
            propagation: propagation.into(),
        });
        mount.refuse(&["subPathExpr"], "is not done here: write the path under subPath")?;
        mount.end()?;
    }
    Ok(mounts)
}

/// A path that is not absolute is so from the root (the kubelet's `MakeAbsolutePath`).
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Of `lifecycle`, the signal that ends it.
fn lifecycle(fields: &mut Fields<'_>) -> Result<i32> {
    let Some(field) = fields.get("lifecycle") else {
        return Ok(0);
    };
    let mut lifecycle = field.fields()?;
    lifecycle.ignore(&["postStart", "preStop"], "hooks need a kubelet");
    let signal = match lifecycle.get("stopSignal") {
        None => 0,
        Some(field) => {
            let name = field.word()?.replace('+', "PLUS").replace('-', "MINUS");
            let signal = Signal::from_str_name(&name).filter(|_| name.starts_with("SIG"));
            signal
                .ok_or_else(|| field.wrong("must be a signal, as SIGTERM"))?
                .into()
        }
    };
    lifecycle.end()?;
    Ok(signal)
}
