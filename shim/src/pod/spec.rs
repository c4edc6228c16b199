//! What a pod changes in the configuration of its containers.
//!
//! containerd writes `/proc/<pid of the sandbox>/ns/net` into it, and expects a process there that is in the pod's
//! namespaces. There is none: the shim holds the namespaces by descriptor, and puts in their place `/proc/<shim>/fd/N`,
//! which any OCI runtime can open while the shim lives. A namespace that the pod has not is the host's: the runtime is in
//! it already.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// What the containers are told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Substitution {
    /// Whose namespaces containerd names.
    pub(crate) sandbox_pids: Vec<u32>,
    /// The pod's own namespaces: the type of the runtime specification, and where any process finds it.
    pub(crate) namespaces: Vec<(&'static str, PathBuf)>,
    /// Whether the pod is in the host's PID namespace.
    pub(crate) host_pids: bool,
    /// Files of the pod for `/etc` of its containers, by their names.
    pub(crate) etc: Vec<(&'static str, PathBuf)>,
    /// The pod's `/dev/shm`.
    pub(crate) shm: Option<PathBuf>,
}

impl Substitution {
    /// Rewrites the configuration of a bundle. For workers: the bundle may be on a disk.
    ///
    /// # Errors
    ///
    /// It can't be read or written, is no configuration, or asks for a PID namespace that the pod has not.
    pub(crate) fn rewrite(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join("config.json");
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut spec: Value = serde_json::from_slice(&content).context("config.json")?;
        self.apply(&mut spec)?;
        let new = bundle.join("config.json.new");
        std::fs::write(&new, serde_json::to_vec(&spec)?)
            .with_context(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("rename to {}", path.display()))
    }

    fn apply(&self, spec: &mut Value) -> Result<()> {
        if let Some(Value::Array(namespaces)) = spec.pointer_mut("/linux/namespaces") {
            let mut kept = Vec::with_capacity(namespaces.len());
            for mut namespace in namespaces.drain(..) {
                if self.substitute(&mut namespace)? {
                    kept.push(namespace);
                }
            }
            *namespaces = kept;
        }
        let read_only = spec.pointer("/root/readonly") == Some(&Value::Bool(true));
        if let Some(spec) = spec.as_object_mut() {
            let mounts = spec.entry("mounts").or_insert_with(|| json!([]));
            if let Value::Array(mounts) = mounts {
                self.add_files(mounts, read_only);
            }
        }
        Ok(())
    }

    /// Returns whether the namespace stays in the list.
    fn substitute(&self, namespace: &mut Value) -> Result<bool> {
        let path = namespace.get("path").and_then(Value::as_str);
        let Some(kind) = path.and_then(|path| self.of_sandbox(path)) else {
            return Ok(true);
        };
        let own = self
            .namespaces
            .iter()
            .find(|(own, _)| link(own) == kind)
            .map(|(_, path)| path);
        match own {
            Some(path) => {
                namespace["path"] = json!(path);
                Ok(true)
            }
            None if kind == "pid" && !self.host_pids => bail!(
                "config.json: linux.namespaces: the pod has no PID namespace to share: make the pod with \
                 namespace_options.pid POD, or the container with CONTAINER"
            ),
            None => Ok(false),
        }
    }

    /// The link in `/proc/<pid>/ns`, if the path is one of the sandbox.
    fn of_sandbox<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (pid, kind) = path.strip_prefix("/proc/")?.split_once("/ns/")?;
        let pid = pid.parse().ok()?;
        self.sandbox_pids.contains(&pid).then_some(kind)
    }

    fn add_files(&self, mounts: &mut Vec<Value>, read_only: bool) {
        let access = if read_only { "ro" } else { "rw" };
        for (name, source) in &self.etc {
            let destination = format!("/etc/{name}");
            // One that the user asked for.
            if mounts.iter().any(|mount| mount["destination"] == destination) {
                continue;
            }
            mounts.push(json!({
                "destination": destination,
                "type": "bind",
                "source": source,
                "options": ["rbind", "rprivate", access],
            }));
        }
        let Some(shm) = &self.shm else { return };
        let pods = json!({
            "destination": "/dev/shm",
            "type": "bind",
            "source": shm,
            "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"],
        });
        match mounts.iter_mut().find(|mount| mount["destination"] == "/dev/shm") {
            // containerd's default: one of the container alone.
            Some(mount) if mount["type"] == "tmpfs" => *mount = pods,
            Some(_) => {}
            None => mounts.push(pods),
        }
    }
}

/// The name in `/proc/<pid>/ns` of a type of the runtime specification.
fn link(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Substitution {
        Substitution {
            sandbox_pids: vec![42, 77],
            namespaces: vec![
                ("network", "/proc/42/fd/10".into()),
                ("ipc", "/proc/42/fd/11".into()),
            ],
            host_pids: false,
            etc: vec![("hostname", "/b/hostname".into())],
            shm: Some("/b/shm".into()),
        }
    }

    fn applied(pod: &Substitution, mut spec: Value) -> Value {
        pod.apply(&mut spec).unwrap();
        spec
    }

    #[test]
    fn the_sandboxs_namespaces_become_the_pods_and_the_hosts_are_left_out() {
        let spec = applied(
            &pod(),
            json!({"linux": {"namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/proc/42/ns/net"},
                {"type": "ipc", "path": "/proc/77/ns/ipc"},
                {"type": "uts", "path": "/proc/42/ns/uts"},
                {"type": "pid", "path": "/proc/4242/ns/pid"},
                {"type": "user", "path": "/run/other"},
            ]}}),
        );
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([
                {"type": "mount"},
                {"type": "network", "path": "/proc/42/fd/10"},
                {"type": "ipc", "path": "/proc/42/fd/11"},
                {"type": "pid", "path": "/proc/4242/ns/pid"},
                {"type": "user", "path": "/run/other"},
            ])
        );
    }

    #[test]
    fn the_hosts_processes_are_never_shown_by_mistake() {
        let mut spec = json!({"linux": {"namespaces": [{"type": "pid", "path": "/proc/42/ns/pid"}]}});
        let error = pod().apply(&mut spec.clone()).unwrap_err();
        assert!(
            error.to_string().contains("no PID namespace to share"),
            "{error:#}"
        );
        let host = Substitution {
            host_pids: true,
            ..pod()
        };
        host.apply(&mut spec).unwrap();
        assert_eq!(spec["linux"]["namespaces"], json!([]));
    }

    #[test]
    fn the_pods_files_are_mounted_where_the_user_has_none() {
        let spec = applied(&pod(), json!({"root": {"path": "rootfs", "readonly": true}}));
        assert_eq!(spec["mounts"][0]["source"], "/b/hostname");
        assert_eq!(spec["mounts"][0]["options"][2], "ro");
        assert_eq!(spec["mounts"][1]["destination"], "/dev/shm");
        let given = json!({"mounts": [
            {"destination": "/etc/hostname", "source": "/mine"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
        ]});
        let spec = applied(&pod(), given);
        assert_eq!(spec["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(spec["mounts"][0]["source"], "/mine");
        assert_eq!(spec["mounts"][1]["source"], "/b/shm");
        let own = json!({"mounts": [{"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"}]});
        assert_eq!(applied(&pod(), own.clone())["mounts"][0], own["mounts"][0]);
    }

    #[test]
    fn a_configuration_of_another_shape_is_left_to_the_runtime() {
        for spec in [
            json!([]),
            json!({"linux": {"namespaces": 7}}),
            json!({"mounts": {}}),
        ] {
            pod().apply(&mut spec.clone()).unwrap();
        }
    }
}
