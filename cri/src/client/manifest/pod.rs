//! The Pod itself: metadata, and the fields of its spec.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, ensure};

use super::container::{self, Container, Role};
use super::field::{Field, Fields};
use super::names;
use super::security::{self, PodSecurity};
use super::volume::{self, Volume};

/// Seconds that containers have for their end (`terminationGracePeriodSeconds`).
const GRACE: i64 = 30;
const NO_KUBELET: &str = "it needs a kubelet";
const NO_CLUSTER: &str = "there is no cluster here";

/// A Pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) hostname: Option<String>,
    /// The runtime handler.
    pub(crate) runtime_class: String,
    pub(crate) host_network: bool,
    pub(crate) host_pid: bool,
    pub(crate) host_ipc: bool,
    pub(crate) share_process_namespace: bool,
    /// Seconds.
    pub(crate) grace: i64,
    pub(crate) dns: Dns,
    pub(crate) security: PodSecurity,
    pub(crate) volumes: Vec<Volume>,
    /// In their order: those of `initContainers`, then the others.
    pub(crate) containers: Vec<Container>,
}

/// `dnsPolicy` and `dnsConfig`.
#[derive(Debug, Default)]
pub(crate) struct Dns {
    /// The host's resolv.conf is not wanted.
    pub(crate) alone: bool,
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

pub(super) fn read(root: &Field<'_>) -> Result<Pod> {
    let mut fields = root.fields()?;
    let version = fields.need("apiVersion", "give v1")?;
    if version.text()? != "v1" {
        return Err(version.wrong("must be v1, the Pod's"));
    }
    let kind = fields.need("kind", "give Pod")?;
    if kind.text()? != "Pod" {
        return Err(kind.wrong("must be Pod: of a workload, give the Pod that its template describes"));
    }
    fields.skip(&["status"]);
    let metadata = fields.need("metadata", "give at least metadata.name")?;
    let mut metadata = metadata.fields()?;
    let spec = fields.need("spec", "give at least spec.containers")?;
    let mut spec = spec.fields()?;
    fields.end()?;
    metadata.skip(&[
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    ]);
    let name = metadata.need("name", "give the pod a name")?;
    let pod = Pod {
        name: names::subdomain(&name)?.to_owned(),
        namespace: match metadata.get("namespace") {
            Some(field) => names::label(&field)?.to_owned(),
            None => "default".to_owned(),
        },
        uid: metadata.get("uid").map(|field| uid(&field)).transpose()?,
        labels: text_map(&mut metadata, "labels")?,
        annotations: text_map(&mut metadata, "annotations")?,
        hostname: match spec.get("hostname") {
            Some(field) => Some(names::label(&field)?.to_owned()),
            None => None,
        },
        runtime_class: spec.text("runtimeClassName")?.unwrap_or_default().to_owned(),
        host_network: spec.bool("hostNetwork")?.unwrap_or_default(),
        host_pid: spec.bool("hostPID")?.unwrap_or_default(),
        host_ipc: spec.bool("hostIPC")?.unwrap_or_default(),
        share_process_namespace: spec.bool("shareProcessNamespace")?.unwrap_or_default(),
        grace: match spec.get("terminationGracePeriodSeconds") {
            Some(field) => field.integer(0, 86400)?,
            None => GRACE,
        },
        dns: dns(&mut spec)?,
        security: security::pod(&mut spec)?,
        volumes: volume::volumes(&mut spec)?,
        containers: containers(&mut spec)?,
    };
    metadata.end()?;
    rest(&mut spec)?;
    spec.end()?;
    check(&pod)?;
    Ok(pod)
}

fn text_map(fields: &mut Fields<'_>, name: &'static str) -> Result<BTreeMap<String, String>> {
    fields
        .get(name)
        .map_or(Ok(BTreeMap::new()), |field| field.text_map())
}

/// It becomes the name of directories.
fn uid(field: &Field<'_>) -> Result<String> {
    let text = field.word()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if text.len() > 64 || !text.bytes().all(plain) {
        return Err(field.wrong("must be at most 64 letters, digits and '-'"));
    }
    Ok(text.to_owned())
}

/// What is in a spec, and not in a [`Pod`].
fn rest(spec: &mut Fields<'_>) -> Result<()> {
    spec.skip(&[
        "affinity",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "nodeName",
        "nodeSelector",
        "overhead",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "readinessGates",
        "schedulerName",
        "schedulingGates",
        "schedulingGroup",
        "tolerations",
        "topologySpreadConstraints",
        "workloadRef",
    ]);
    let service_account = "ignored: no token is mounted: there is no API server here";
    for name in ["serviceAccountName", "serviceAccount"] {
        if let Some(field) = spec
            .get(name)
            .filter(|field| field.text().is_ok_and(|name| name != "default"))
        {
            field.warn(service_account);
        }
    }
    spec.ignore(
        &["imagePullSecrets"],
        "there are no Secrets here: pull the images first with rtc-cri image pull --user NAME",
    );
    spec.ignore(
        &["activeDeadlineSeconds", "setHostnameAsFQDN", "subdomain"],
        NO_KUBELET,
    );
    if let Some(policy) = spec.get("restartPolicy")
        && policy.choice(&["Never", "Always", "OnFailure"])? != 0
    {
        policy.warn("a container that ends is not started again: that needs a kubelet");
    }
    if let Some(users) = spec.get("hostUsers")
        && !users.bool()?
    {
        return Err(users.wrong("can't be done here: a kubelet gives out the ids of user namespaces"));
    }
    if let Some(os) = spec.get("os") {
        let mut os = os.fields()?;
        if let Some(name) = os.get("name") {
            name.choice(&["linux"])?;
        }
        os.end()?;
    }
    spec.refuse(
        &["resources"],
        "is not done here: set the resources of each container",
    )?;
    spec.refuse(&["resourceClaims"], NO_CLUSTER)?;
    spec.refuse(
        &["hostAliases", "hostnameOverride"],
        &format!("is not done here: {NO_KUBELET}"),
    )?;
    spec.refuse(
        &["ephemeralContainers"],
        "can't be in a manifest: rtc-cri pod exec runs a command in a container",
    )
}

fn dns(spec: &mut Fields<'_>) -> Result<Dns> {
    let mut dns = Dns::default();
    let policy = spec.get("dnsPolicy");
    if let Some(policy) = &policy {
        // There is no DNS of a cluster: as the kubelet does where it has none, the host's is taken.
        let possible = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
        dns.alone = policy.choice(&possible)? == 3;
    }
    if let Some(config) = spec.get("dnsConfig") {
        let mut config = config.fields()?;
        for server in config.list("nameservers")? {
            if server.text()?.parse::<std::net::IpAddr>().is_err() {
                return Err(server.wrong("must be an IPv4 or IPv6 address"));
            }
            dns.servers.push(server.text()?.to_owned());
        }
        dns.searches = config.texts("searches")?;
        for option in config.list("options")? {
            let mut option = option.fields()?;
            let name = option.need("name", "give the option's name")?.word()?;
            dns.options.push(match option.text("value")? {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
            option.end()?;
        }
        config.end()?;
    }
    if let (Some(policy), true, true) = (policy, dns.alone, dns.servers.is_empty()) {
        return Err(policy.wrong("needs spec.dnsConfig.nameservers"));
    }
    Ok(dns)
}

fn containers(spec: &mut Fields<'_>) -> Result<Vec<Container>> {
    let init = spec.list("initContainers")?;
    let main = spec.need("containers", "give at least one container")?;
    let all = main.list()?;
    if all.is_empty() {
        return Err(main.wrong("must have at least one container"));
    }
    let mut containers = Vec::new();
    for (fields, role) in [(init, Role::Init), (all, Role::Main)] {
        for field in fields {
            let container = container::read(&field, role)?;
            if containers
                .iter()
                .any(|other: &Container| other.name == container.name)
            {
                let name = &container.name;
                return Err(anyhow::anyhow!(
                    "{}.name: {name:?}: another container has it",
                    field.path
                ));
            }
            containers.push(container);
        }
    }
    Ok(containers)
}

/// What fields say together.
fn check(pod: &Pod) -> Result<()> {
    ensure!(
        !(pod.host_pid && pod.share_process_namespace),
        "spec.shareProcessNamespace: true: can't be together with hostPID: the pod's processes are the host's"
    );
    let mut host_ports = HashSet::new();
    for container in &pod.containers {
        for port in &container.ports {
            ensure!(
                !pod.host_network || port.host_port == 0 || port.host_port == port.container_port,
                "container {:?}: hostPort {}: must be containerPort ({}) with hostNetwork",
                container.name,
                port.host_port,
                port.container_port
            );
            ensure!(
                port.host_port == 0
                    || host_ports.insert((port.host_port, port.protocol, port.host_ip.clone())),
                "container {:?}: hostPort {}: another port has it",
                container.name,
                port.host_port
            );
        }
        let mut paths = HashSet::new();
        for mount in &container.mounts {
            ensure!(
                pod.volumes.iter().any(|volume| volume.name == mount.volume),
                "container {:?}: volumeMounts: {:?}: is none of spec.volumes",
                container.name,
                mount.volume
            );
            ensure!(
                paths.insert(mount.path.trim_end_matches('/')),
                "container {:?}: volumeMounts: {:?}: is mounted twice",
                container.name,
                mount.path
            );
        }
    }
    Ok(())
}
