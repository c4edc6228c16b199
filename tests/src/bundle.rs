//! Bundles: a busybox rootfs of the test's own and a configuration to edit.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::container::Container;
use crate::output::Output;
use crate::test::{Rtc, Test};

/// What `runc spec` writes, without the terminal and ambient capabilities.
const DEFAULT_CONFIG: &str = include_str!("config.json");

/// The applets of busybox that are linked into each rootfs.
const APPLETS: &str = "[ arp awk cat chmod chown chroot cp cut dd df dirname du echo env expr false find free grep groups \
    head hostname id ifconfig ionice ip kill ln ls mkdir mkfifo mknod mount mountpoint mv nc nice nohup od ping printenv \
    printf ps pwd readlink realpath renice rm rmdir sed seq setsid sh sleep sort stat stty sync tail tee test timeout \
    top touch tr true truncate tty umount uname uniq unshare wc which whoami xargs yes";

/// A bundle directory and the container id it is run as.
pub(crate) struct Bundle<'t> {
    test: &'t Test,
    /// Bundle directory.
    pub(crate) directory: PathBuf,
    /// Container id of the calls below.
    pub(crate) id: String,
    /// Content of config.json; written at each call below.
    pub(crate) spec: Value,
    /// Written in place of `spec`.
    text: Option<Vec<u8>>,
}

impl<'t> Bundle<'t> {
    pub(crate) fn new(test: &'t Test) -> Result<Self> {
        Self::at(test, test.path("bundle"), &test.id())
    }

    /// A bundle in this directory, which is made, for a container of this id.
    pub(crate) fn at(test: &'t Test, directory: PathBuf, id: &str) -> Result<Self> {
        let rootfs = directory.join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "run", "home"] {
            fs::create_dir_all(rootfs.join(name)).with_context(|| format!("rootfs/{name}"))?;
        }
        test.link_shared("busybox", &rootfs.join("bin/busybox"))?;
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )?;
        fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        let mut spec: Value = serde_json::from_str(DEFAULT_CONFIG)?;
        spec["linux"]["cgroupsPath"] = json!(format!("{}/{id}", test.cgroup.path));
        Ok(Self {
            test,
            directory,
            id: id.to_owned(),
            spec,
            text: None,
        })
    }

    /// The rootfs on the host.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// `process.args`.
    pub(crate) fn args(self, args: &[&str]) -> Self {
        self.edit(|spec| spec["process"]["args"] = json!(args))
    }

    /// `process.args` that run a shell script.
    pub(crate) fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// `process.args` that wait to be killed.
    pub(crate) fn sleeper(self) -> Self {
        self.args(&["sleep", "1000000"])
    }

    /// `process.args` that run a payload of this program (`payload.rs`), which is put into the rootfs.
    pub(crate) fn payload(self, args: &[&str]) -> Self {
        self.add_payload();
        let all: Vec<&str> = ["/bin/rtc-tests", "payload"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        self.args(&all)
    }

    /// Puts this program into the rootfs as `/bin/rtc-tests`.
    pub(crate) fn add_payload(&self) {
        let to = self.rootfs().join("bin/rtc-tests");
        self.test
            .link_shared("rtc-tests", &to)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// Changes the configuration in any way.
    pub(crate) fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec);
        self
    }

    /// Sets the value at a JSON pointer (`/linux/resources/pids`), making objects on the way.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.spec;
        for key in pointer.split('/').skip(1) {
            place = match key.parse::<usize>() {
                Ok(index) if place.is_array() => &mut place[index],
                _ => &mut place[key],
            };
        }
        *place = value;
        self
    }

    /// Removes the member a JSON pointer names.
    pub(crate) fn unset(mut self, pointer: &str) -> Self {
        if let Some((parent, key)) = pointer.rsplit_once('/') {
            let parent = self.spec.pointer_mut(parent).and_then(Value::as_object_mut);
            parent.and_then(|parent| parent.remove(key));
        }
        self
    }

    /// Appends to the array at a JSON pointer, which is made if missing.
    pub(crate) fn push(self, pointer: &str, value: Value) -> Self {
        let mut list = self
            .spec
            .pointer(pointer)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        list.push(value);
        self.set(pointer, Value::Array(list))
    }

    /// Adds a mount.
    pub(crate) fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
        self.push("/mounts", mount)
    }

    /// Takes a namespace of this kind out of the list: the container shares the host's.
    pub(crate) fn without_namespace(self, kind: &str) -> Self {
        self.edit(|spec| {
            if let Some(list) = spec["linux"]["namespaces"].as_array_mut() {
                list.retain(|namespace| namespace["type"] != kind);
            }
        })
    }

    /// Replaces the namespace of this kind, or adds it.
    pub(crate) fn namespace(self, namespace: Value) -> Self {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        self.without_namespace(&kind).push("/linux/namespaces", namespace)
    }

    /// All five sets of capabilities.
    pub(crate) fn capabilities(self, names: &[&str]) -> Self {
        let sets = json!({"bounding": names, "effective": names, "permitted": names});
        self.set("/process/capabilities", sets)
    }

    /// A writable root.
    pub(crate) fn writable(self) -> Self {
        self.set("/root/readonly", json!(false))
    }

    /// Another container id, and the cgroup named so.
    pub(crate) fn named(mut self, id: &str) -> Self {
        id.clone_into(&mut self.id);
        let path = format!("{}/{id}", self.test.cgroup.path);
        self.set("/linux/cgroupsPath", json!(path))
    }

    /// Writes this text as config.json in place of the edited configuration.
    pub(crate) fn text(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// What config.json is to be, for the driver of cgroups.
    pub(crate) fn config(&self) -> Result<Vec<u8>> {
        if let Some(text) = &self.text {
            return Ok(text.clone());
        }
        let mut spec = self.spec.clone();
        if let Some(path) = spec.pointer_mut("/linux/cgroupsPath")
            && let Some(text) = path.as_str()
        {
            *path = json!(self.test.cgroups_path(text));
        }
        Ok(serde_json::to_vec_pretty(&spec)?)
    }

    /// Writes config.json.
    pub(crate) fn write(&self) -> Result<()> {
        fs::write(self.directory.join("config.json"), self.config()?).context("write config.json")
    }

    /// `rtc VERB --bundle DIR FLAGS... ID`, not started; config.json is written.
    pub(crate) fn command(&self, verb: &str, flags: &[&str]) -> Result<Rtc<'t>> {
        self.write()?;
        let command = self.test.command([verb, "--bundle"]).args([&self.directory]);
        Ok(command.args(flags).args([&self.id]))
    }

    /// Runs it in the foreground, to its end.
    pub(crate) fn run(&self) -> Result<Output> {
        self.command("run", &[])?.run()
    }

    /// Creates it: it waits for `start`. It is deleted when the test ends.
    pub(crate) fn create(&self) -> Result<Container<'t>> {
        self.create_with(&[])
    }

    /// [`Bundle::create`] with more flags.
    pub(crate) fn create_with(&self, flags: &[&str]) -> Result<Container<'t>> {
        self.background("create", flags)
    }

    /// Starts it in the background (`run --detach`). It is deleted when the test ends.
    pub(crate) fn start(&self) -> Result<Container<'t>> {
        self.background("run", &["--detach"])
    }

    fn background(&self, verb: &str, flags: &[&str]) -> Result<Container<'t>> {
        let running = self.command(verb, flags)?.spawn()?;
        let (stdout, stderr) = (running.stdout.clone(), running.stderr.clone());
        running.wait()?.ok()?;
        self.test.delete_at_end(&self.id);
        let path = self.spec["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        let cgroup = self.test.cgroup_at(path);
        Ok(Container::new(self.test, &self.id, cgroup, stdout, stderr))
    }
}
