//! The files of a node: what the kubelet, the CRI server, the registry and CNI are told.

use std::fs;
use std::os::unix::fs::symlink;

use super::{Backend, Driver, Node, REGISTRY};
use crate::registry::Result;

/// What differs from the usual.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// Further lines of the kubelet's configuration (YAML).
    pub(crate) kubelet: String,
    /// The kubelet's feature gates: `ImageVolume: true`.
    pub(crate) gates: Vec<&'static str>,
    /// The server and its shims are in a cgroup of their own.
    pub(crate) server_cgroup: bool,
}

impl Node<'_> {
    /// Writes all of them.
    pub(super) fn configure(&self) -> Result {
        let (directory, peers) = (self.directory.display(), self.peers.display());
        for made in ["manifests", "certs.d/_default", "net.d", "bin"] {
            fs::create_dir_all(self.directory.join(made))?;
        }
        fs::write(
            self.file("registry.yml"),
            format!(
                "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {peers}/images/storage}}, maintenance: {{readonly: {{enabled: true}}}}}}\n\
                 http: {{addr: {REGISTRY}}}\n"
            ),
        )?;
        fs::write(
            self.file("certs.d/_default/hosts.toml"),
            // Nobody but this one is asked: there is no way out.
            format!(
                "server = \"http://{REGISTRY}\"\n\
                 [host.\"http://{REGISTRY}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ),
        )?;
        fs::write(
            self.file("net.d/10-bridge.conflist"),
            format!(
                r#"{{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
                {{ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                  "ipam": {{ "type": "host-local", "dataDir": "{directory}/addresses",
                    "ranges": [[{{ "subnet": "10.88.0.0/16" }}]], "routes": [{{ "dst": "0.0.0.0/0" }}] }} }},
                {{ "type": "portmap", "capabilities": {{ "portMappings": true }} }} ] }}"#
            ),
        )?;
        self.configure_kubelet(&self.setup)?;
        self.configure_server()
    }

    /// The CRI server's configuration, and a shim where it looks for one.
    pub(super) fn configure_server(&self) -> Result {
        fs::write(self.file("server.toml"), self.server_configuration())?;
        // Under containerd the shim under test has the name that its systemd driver is bound to.
        let name = match self.backend() {
            Backend::RtcCri => "containerd-shim-rtc-v2",
            Backend::ContainerdWithShim => "containerd-shim-runc-v2",
            Backend::Containerd => return Ok(()),
        };
        let shim = self.directory.join("bin").join(name);
        if !shim.exists() {
            symlink(&self.t.shim, shim)?;
        }
        Ok(())
    }

    /// The kubelet's configuration; it is read at its next start.
    pub(crate) fn configure_kubelet(&self, setup: &Setup) -> Result {
        let (directory, socket) = (self.directory.display(), self.backend().socket());
        let gates: String = setup.gates.iter().map(|gate| format!("  {gate}\n")).collect();
        let (driver, root) = match self.driver {
            Driver::Systemd => ("systemd", "/"),
            Driver::Cgroupfs => ("cgroupfs", self.t.cgroup.path.as_str()),
        };
        let text = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
             staticPodPath: {directory}/manifests\nvolumePluginDir: {directory}/plugins\nfileCheckFrequency: 1s\nsyncFrequency: 2s\n\
             authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
             authorization: {{mode: AlwaysAllow}}\n\
             cgroupDriver: {driver}\ncgroupRoot: {root}\nfailCgroupV1: false\nfailSwapOn: false\n\
             makeIPTablesUtilChains: false\n\
             containerRuntimeEndpoint: unix://{socket}\nimageServiceEndpoint: unix://{socket}\n\
             address: 127.0.0.1\nreadOnlyPort: 10255\nhealthzPort: 0\n\
             serializeImagePulls: false\nregistryPullQPS: 0\n\
             {}{}",
            // What a test says of a key counts.
            defaults(
                &setup.kubelet,
                &[
                    "crashLoopBackOff: {maxContainerRestartPeriod: 1s}",
                    "imageGCHighThresholdPercent: 100",
                    "evictionHard: {memory.available: 1Mi}",
                ]
            ),
            if gates.is_empty() {
                gates
            } else {
                format!("featureGates:\n{gates}")
            },
        );
        Ok(fs::write(self.file("kubelet.yml"), text)?)
    }

    /// Has images of this host come from it, by plain HTTP.
    pub(crate) fn allow_registry(&self, address: &str) -> Result {
        let directory = self.directory.join("certs.d").join(address);
        fs::create_dir_all(&directory)?;
        let text = format!("server = \"http://{address}\"\n[host.\"http://{address}\"]\n");
        Ok(fs::write(directory.join("hosts.toml"), text)?)
    }

    fn server_configuration(&self) -> String {
        let (directory, peers) = (self.directory.display(), self.peers.display());
        let driver = self.driver;
        if self.backend() == Backend::RtcCri {
            let cgroups = match driver {
                Driver::Systemd => String::new(),
                Driver::Cgroupfs => {
                    let above = if self.setup.server_cgroup {
                        self.server_cgroup().path
                    } else {
                        self.t.cgroup.path.clone()
                    };
                    format!("cgroup_driver = \"cgroupfs\"\nshim_cgroup = \"{above}/shims\"\n")
                }
            };
            return format!(
                "shim = \"{directory}/bin/containerd-shim-rtc-v2\"\n{cgroups}\
                 [cni]\nconf_dir = \"{directory}/net.d\"\nbin_dirs = [\"{peers}/registry/cni\"]\n\
                 [images]\ncerts_dir = \"{directory}/certs.d\"\n"
            );
        }
        let (images, runtime) = (
            "plugins.\"io.containerd.cri.v1.images\"",
            "plugins.\"io.containerd.cri.v1.runtime\"",
        );
        let shim = if self.backend() == Backend::Containerd {
            String::new()
        } else {
            format!("  runtime_path = \"{directory}/bin/containerd-shim-runc-v2\"\n")
        };
        format!(
            "version = 3\n\
             disabled_plugins = [\"io.containerd.nri.v1.nri\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
             [{images}.pinned_images]\n  sandbox = \"registry.k8s.io/pause:3.10\"\n\
             [{images}.registry]\n  config_path = \"{directory}/certs.d\"\n\
             [{runtime}]\n  restrict_oom_score_adj = true\n\
             [{runtime}.cni]\n  bin_dirs = [\"{peers}/registry/cni\"]\n  conf_dir = \"{directory}/net.d\"\n\
             [{runtime}.containerd]\n  default_runtime_name = \"tested\"\n\
             [{runtime}.containerd.runtimes.tested]\n  runtime_type = \"io.containerd.runc.v2\"\n{shim}\
             [{runtime}.containerd.runtimes.tested.options]\n  SystemdCgroup = {}\n",
            driver == Driver::Systemd
        )
    }

    /// The shim in the place where the server looks for it; none where it is containerd's own.
    pub(super) fn program_path(&self) -> String {
        let (directory, peers) = (self.directory.display(), self.peers.display());
        format!("{directory}/bin:{peers}/containerd-2.4/bin:{peers}/runc/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

/// The test's lines, and of the others those whose key they do not have.
fn defaults(own: &str, others: &[&str]) -> String {
    let key = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = own.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for other in others {
        if !own.lines().any(|line| key(line) == key(other)) {
            text += other;
            text.push('\n');
        }
    }
    text
}
