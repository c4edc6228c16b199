//! Plans executed for real: as root, in a thread with a mount namespace of its own, which ends with it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::sys::clone::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS};
use crate::sys::process::unshare;

mod devices;
mod hostile;
mod propagation;

/// A bundle, removed at the end.
struct Bundle {
    dir: PathBuf,
}

/// What a container saw.
#[derive(Debug)]
struct Line {
    point: String,
    root: String,
    options: String,
    optional: String,
    fs_type: String,
    source: String,
    superblock: String,
    device: String,
}

impl Bundle {
    fn new() -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("rtc-rootfs-{}-{count}", std::process::id()));
        for directory in [
            "rootfs/proc",
            "rootfs/sys",
            "rootfs/dev",
            "rootfs/etc",
            "rootfs/tmp",
            "outside",
        ] {
            fs::create_dir_all(dir.join(directory)).unwrap();
        }
        Bundle { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// A file or directory to bind.
    fn source(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Makes the root filesystem, enters it, and looks around there.
    fn run<T: Send>(&self, config: &Value, look: impl FnOnce(&Plan) -> T + Send) -> Result<T> {
        self.run_with(config, &Context::default(), || {}, look)
    }

    fn run_with<T: Send>(
        &self,
        config: &Value,
        context: &Context,
        before: impl FnOnce() + Send,
        look: impl FnOnce(&Plan) -> T + Send,
    ) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                leave_the_host();
                before();
                Ok(look(&self.enter(config, context)?))
            });
            thread.join().unwrap()
        })
    }

    fn enter(&self, config: &Value, context: &Context) -> Result<Plan> {
        let spec: Spec = serde_json::from_value(config.clone()).unwrap();
        let mut plan = Plan::new(&spec, &self.dir, &self.path("rootfs"), context)?;
        plan.prepare()?;
        plan.pivot()?;
        plan.seal()?;
        Ok(plan)
    }

    fn error(&self, config: &Value) -> String {
        format!("{:#}", self.run(config, |_| ()).unwrap_err())
    }
}

/// Gives the thread a mount namespace in which nothing is shared with the host.
fn leave_the_host() {
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC).expect("these tests run as root");
    sys::mount(None, c"/", None, sys::MS_REC | sys::MS_PRIVATE, None).unwrap();
}

impl Drop for Bundle {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn mountinfo() -> Vec<Line> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    text.lines()
        .map(|line| {
            let (before, after) = line.split_once(" - ").unwrap();
            let before: Vec<&str> = before.split(' ').collect();
            let after: Vec<&str> = after.split(' ').collect();
            Line {
                device: before[2].into(),
                root: before[3].into(),
                point: before[4].into(),
                options: before[5].into(),
                optional: before[6..].join(" "),
                fs_type: after[0].into(),
                source: after[1].into(),
                superblock: after[2].into(),
            }
        })
        .collect()
}

fn at(point: &str) -> Line {
    mountinfo()
        .into_iter()
        .rev()
        .find(|line| line.point == point)
        .unwrap_or_else(|| panic!("no mount at {point}: {:#?}", mountinfo()))
}

fn has(options: &str, option: &str) -> bool {
    options.split(',').any(|known| known == option)
}

/// The configuration that `runc spec` writes, as far as it concerns us, with more mounts.
fn config(more: &Value) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "network"}, {"type": "ipc"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware",
                            "/proc/no-such-file"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.extend(more.as_array().cloned().unwrap_or_default());
    config
}

fn minimal(mounts: &Value) -> Value {
    json!({"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "mounts": mounts,
           "linux": {"namespaces": [{"type": "mount"}]}})
}

fn proc_and(mounts: &[Value]) -> Value {
    let mut all = vec![json!({"destination": "/proc", "type": "proc", "source": "proc"})];
    all.extend_from_slice(mounts);
    minimal(&Value::Array(all))
}

fn bind(source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

#[test]
fn the_default_configuration_is_made_whole() {
    let bundle = Bundle::new();
    bundle
        .run(&config(&json!([])), |_| {
            assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
            let points: Vec<String> = mountinfo().into_iter().map(|line| line.point).collect();
            assert_eq!(
                points[..7],
                [
                    "/",
                    "/proc",
                    "/dev",
                    "/dev/pts",
                    "/dev/shm",
                    "/dev/mqueue",
                    "/sys"
                ]
            );
            assert!(has(&at("/").options, "ro"));
            let dev = at("/dev");
            assert_eq!((dev.fs_type.as_str(), dev.source.as_str()), ("tmpfs", "tmpfs"));
            assert_eq!(dev.options, "rw,nosuid");
            assert!(has(&dev.superblock, "size=65536k") && has(&dev.superblock, "mode=755"));
            let pts = at("/dev/pts");
            assert!(
                has(&pts.superblock, "gid=5") && has(&pts.superblock, "ptmxmode=666"),
                "{pts:?}"
            );
            assert_eq!(at("/dev/shm").source, "shm");
            let sys = at("/sys");
            assert_eq!(sys.options, "ro,nosuid,nodev,noexec,relatime");
            assert_eq!(sys.superblock, "rw", "others in the network namespace share it");
            for line in mountinfo() {
                assert!(!line.optional.contains("shared"), "{line:?}");
            }
        })
        .unwrap();
}

#[test]
fn default_devices_and_links_are_there() {
    let bundle = Bundle::new();
    bundle
        .run(&config(&json!([])), |_| {
            for (name, number) in [
                ("null", (1, 3)),
                ("zero", (1, 5)),
                ("full", (1, 7)),
                ("random", (1, 8)),
                ("urandom", (1, 9)),
                ("tty", (5, 0)),
            ] {
                let meta = fs::symlink_metadata(format!("/dev/{name}")).unwrap();
                assert!(meta.file_type().is_char_device(), "{name}");
                assert_eq!(meta.mode() & 0o7777, 0o666, "{name}");
                assert_eq!(meta.rdev(), nix::sys::stat::makedev(number.0, number.1), "{name}");
            }
            assert_eq!(fs::read_link("/dev/fd").unwrap(), Path::new("/proc/self/fd"));
            assert_eq!(
                fs::read_link("/dev/stderr").unwrap(),
                Path::new("/proc/self/fd/2")
            );
            assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
        })
        .unwrap();
}

#[test]
fn masked_files_are_empty_and_masked_directories_share_one_tmpfs() {
    let bundle = Bundle::new();
    let mut config = config(&json!([]));
    config["linux"]["maskedPaths"] = json!([
        "/proc/keys",
        "/sys/firmware",
        "/sys/kernel",
        "/proc/keys/x",
        "proc/stat"
    ]);
    bundle
        .run(&config, |_| {
            assert_eq!(fs::read("/proc/keys").unwrap(), b"");
            assert_eq!(fs::read("/proc/stat").unwrap(), b"");
            assert_eq!(fs::read_dir("/sys/kernel").unwrap().count(), 0);
            let (one, two) = (at("/sys/firmware"), at("/sys/kernel"));
            assert_eq!(one.device, two.device);
            assert!(has(&one.options, "ro") && has(&two.options, "ro"));
            assert_eq!(at("/proc/keys").root, "/null");
        })
        .unwrap();
}

#[test]
fn readonly_paths_are_readonly_with_what_is_mounted_below() {
    let bundle = Bundle::new();
    let mut config = proc_and(&[json!({"destination": "/etc/deep", "type": "tmpfs", "source": "deep"})]);
    config["linux"]["readonlyPaths"] = json!(["/etc", "/proc/sys", "/no/such/path"]);
    bundle
        .run(&config, |_| {
            assert!(fs::write("/etc/x", "").is_err());
            assert!(fs::write("/etc/deep/x", "").is_err());
            assert!(has(&at("/proc/sys").options, "ro"));
            fs::write("/tmp/x", "").unwrap();
        })
        .unwrap();
}

#[test]
fn a_kubernetes_like_configuration_is_made_whole() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("shm")).unwrap();
    fs::write(bundle.path("hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(bundle.path("log"), "").unwrap();
    let options = ["rbind", "rprivate", "rw"];
    let mut config = config(&json!([
        bind(&bundle.source("hosts"), "/etc/hosts", &options),
        bind(&bundle.source("log"), "/dev/termination-log", &options),
        bind(
            &bundle.source("hosts"),
            "/var/run/secrets/new/file",
            &["rbind", "ro"]
        ),
    ]));
    config["mounts"][3] = bind(&bundle.source("shm"), "/dev/shm", &options);
    bundle
        .run(&config, |_| {
            assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), "127.0.0.1 localhost\n");
            assert!(fs::write("/var/run/secrets/new/file", "x").is_err());
            fs::write("/dev/termination-log", "bye").unwrap();
            fs::write("/dev/shm/x", "").unwrap();
            assert!(at("/etc/hosts").optional.is_empty());
        })
        .unwrap();
    assert_eq!(fs::read_to_string(bundle.path("log")).unwrap(), "bye");
    assert!(bundle.path("shm/x").exists());
    assert!(bundle.path("rootfs/var/run/secrets/new/file").is_file());
}

#[test]
fn cgroup_hierarchies_are_bound_below_a_tmpfs() {
    let bundle = Bundle::new();
    fs::create_dir_all(bundle.path("cpu,cpuacct/own")).unwrap();
    fs::write(bundle.path("cpu,cpuacct/own/tasks"), "").unwrap();
    let context = Context {
        cgroups: Cgroups::Legacy {
            hierarchies: vec![Hierarchy {
                name: "cpu,cpuacct".into(),
                options: "cpu,cpuacct".into(),
                own: bundle.path("cpu,cpuacct/own"),
            }],
            links: vec![("cpu".into(), "cpu,cpuacct".into())],
        },
        no_pivot: false,
    };
    let config = config(
        &json!([{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}]),
    );
    bundle
        .run_with(
            &config,
            &context,
            || {},
            |_| {
                assert!(Path::new("/sys/fs/cgroup/cpu/tasks").exists());
                assert!(has(&at("/sys/fs/cgroup").options, "ro"));
                assert_eq!(
                    at("/sys/fs/cgroup/cpu,cpuacct").options,
                    "ro,nosuid,nodev,noexec,relatime"
                );
            },
        )
        .unwrap();
}

#[test]
fn a_tmpfs_has_the_mode_given_or_that_of_what_it_covers_or_1777() {
    let bundle = Bundle::new();
    fs::set_permissions(bundle.path("rootfs/tmp"), fs::Permissions::from_mode(0o710)).unwrap();
    let tmpfs = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options});
    let config = proc_and(&[
        tmpfs("/tmp", &["nosuid"]),
        tmpfs("/new", &[]),
        tmpfs("/etc", &["mode=0700"]),
    ]);
    bundle
        .run(&config, |_| {
            let mode = |path: &str| fs::metadata(path).unwrap().mode() & 0o7777;
            assert_eq!((mode("/tmp"), mode("/new"), mode("/etc")), (0o710, 0o1777, 0o700));
        })
        .unwrap();
}

#[test]
fn a_read_only_tmpfs_is_made_so_when_all_is_mounted() {
    let bundle = Bundle::new();
    fs::write(bundle.path("file"), "text").unwrap();
    let config = proc_and(&[
        json!({"destination": "/run", "type": "tmpfs", "source": "run", "options": ["ro"]}),
        bind(&bundle.source("file"), "/run/secrets/file", &["bind"]),
    ]);
    bundle
        .run(&config, |_| {
            assert_eq!(fs::read_to_string("/run/secrets/file").unwrap(), "text");
            assert!(fs::write("/run/x", "").is_err());
        })
        .unwrap();
}

#[test]
fn tmpcopyup_starts_with_what_is_covered() {
    let bundle = Bundle::new();
    fs::write(bundle.path("rootfs/etc/passwd"), "root").unwrap();
    let config = proc_and(&[
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]}),
    ]);
    bundle
        .run(&config, |_| {
            assert_eq!(fs::read_to_string("/etc/passwd").unwrap(), "root");
            assert_eq!(at("/etc").fs_type, "tmpfs");
            assert!(fs::write("/etc/x", "").is_err());
        })
        .unwrap();
}

#[test]
fn tmpcopyup_keeps_the_mode_that_is_asked_for_and_else_that_of_what_is_covered() {
    let bundle = Bundle::new();
    let etc = bundle.path("rootfs/etc");
    fs::set_permissions(etc, fs::Permissions::from_mode(0o750)).unwrap();
    let config = proc_and(&[
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        json!({"destination": "/new", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=700"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=711"]}),
    ]);
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    bundle
        .run(&config, |_| {
            assert_eq!([mode("/etc"), mode("/new"), mode("/tmp")], [0o750, 0o700, 0o711]);
        })
        .unwrap();
}

#[test]
fn a_bind_keeps_the_flags_of_its_source_unless_told() {
    let bundle = Bundle::new();
    let source = bundle.source("outside");
    let mount = || {
        let source = c_string(&source).unwrap();
        let flags = sys::MS_NODEV | sys::MS_NOSUID | sys::MS_NOATIME;
        sys::mount(Some(c"t"), &source, Some(c"tmpfs"), flags, None).unwrap();
    };
    let config = proc_and(&[
        bind(&source, "/bare", &["bind"]),
        bind(&source, "/ro", &["bind", "ro"]),
        bind(&source, "/dev-on", &["bind", "dev"]),
        bind(&source, "/times", &["bind", "relatime"]),
    ]);
    bundle
        .run_with(&config, &Context::default(), mount, |_| {
            assert_eq!(at("/bare").options, "rw,nosuid,nodev,noatime");
            assert_eq!(at("/ro").options, "ro,nosuid,nodev,noatime");
            assert_eq!(at("/dev-on").options, "rw,nosuid,noatime");
            assert_eq!(at("/times").options, "rw,nosuid,nodev,relatime");
        })
        .unwrap();
}

#[test]
fn recursive_attributes_reach_the_mounts_below() {
    let bundle = Bundle::new();
    let mount = || {
        for path in ["outside", "outside/sub"] {
            fs::create_dir_all(bundle.path(path)).unwrap();
            let target = c_string(bundle.path(path)).unwrap();
            sys::mount(Some(c"t"), &target, Some(c"tmpfs"), 0, None).unwrap();
        }
    };
    let source = bundle.source("outside");
    let config = proc_and(&[
        bind(
            &source,
            "/all",
            &["rbind", "rro", "rnosuid", "rnoatime", "runbindable"],
        ),
        bind(&source, "/one", &["rbind", "ro"]),
        bind(&source, "/alone", &["bind"]),
    ]);
    bundle
        .run_with(&config, &Context::default(), mount, |_| {
            assert_eq!(at("/all").options, "ro,nosuid,noatime");
            assert_eq!(at("/all/sub").options, "ro,nosuid,noatime");
            assert_eq!(at("/all/sub").optional, "unbindable");
            assert!(has(&at("/one").options, "ro") && has(&at("/one/sub").options, "rw"));
            assert!(!mountinfo().iter().any(|line| line.point == "/alone/sub"));
        })
        .unwrap();
}

#[test]
fn owners_are_mapped_as_the_mount_says() {
    let bundle = Bundle::new();
    fs::write(bundle.path("outside/file"), "").unwrap();
    chown(bundle.path("outside/file"), Some(5), Some(6)).unwrap();
    let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 1000}]);
    let mut mapped = bind(&bundle.source("outside"), "/mapped", &["rbind", "ridmap"]);
    mapped["uidMappings"] = mapping(100_000);
    mapped["gidMappings"] = mapping(200_000);
    let mut implied = mapped.clone();
    implied["destination"] = json!("/implied");
    implied["options"] = json!(["bind"]);
    let config = proc_and(&[mapped, implied, bind("outside", "/plain", &["bind"])]);
    bundle
        .run(&config, |_| {
            let owner = |path: &str| fs::metadata(path).map(|meta| (meta.uid(), meta.gid())).unwrap();
            assert_eq!(owner("/mapped/file"), (100_005, 200_006));
            assert_eq!(owner("/implied/file"), (100_005, 200_006));
            assert_eq!(owner("/plain/file"), (5, 6));
        })
        .unwrap();
    let unmapped = bind(&bundle.source("outside"), "/x", &["bind", "idmap"]);
    let error = bundle.error(&proc_and(&[unmapped]));
    assert!(
        error.contains("mounts[1]: options: idmap: needs uidMappings"),
        "{error}"
    );
}

#[test]
fn links_as_sources_and_destinations_are_taken_as_told() {
    let bundle = Bundle::new();
    symlink("target", bundle.path("outside/link")).unwrap();
    fs::write(bundle.path("outside/target"), "text").unwrap();
    symlink("/elsewhere", bundle.path("rootfs/covered")).unwrap();
    symlink("/moved/here", bundle.path("rootfs/followed")).unwrap();
    let (link, target) = (bundle.source("outside/link"), bundle.source("outside/target"));
    let config = proc_and(&[
        bind(&link, "/copied", &["bind", "copy-symlink"]),
        bind(&link, "/itself", &["bind", "src-nofollow"]),
        bind(&target, "/covered", &["bind", "dest-nofollow"]),
        bind(&link, "/followed", &["bind", "copy-symlink", "bind"]),
        bind(&target, "//plain///file/", &["bind"]),
    ]);
    let result = bundle.run(&config, |_| {
        assert_eq!(fs::read_link("/copied").unwrap(), Path::new("target"));
        assert_eq!(fs::read_link("/itself").unwrap(), Path::new("target"));
        assert_eq!(fs::read_to_string("/covered").unwrap(), "text");
        assert_eq!(fs::read_to_string("/plain/file").unwrap(), "text");
    });
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.starts_with("mount /followed: symlinkat"), "{error}");
    let mut config = config;
    config["mounts"].as_array_mut().unwrap().remove(4);
    bundle.run(&config, |_| ()).unwrap();
}

#[test]
fn errors_name_the_mount_the_call_and_the_reason() {
    let bundle = Bundle::new();
    let tmpfs = json!({"destination": "/x", "type": "tmpfs", "source": "t", "options": ["frob=1"]});
    let error = bundle.error(&proc_and(&[tmpfs]));
    assert!(
        error.starts_with("mount /x: fsconfig(\"tmpfs\", \"frob\", \"1\")"),
        "{error}"
    );
    assert!(error.contains("Unknown parameter 'frob'"), "{error}");
    let error = bundle.error(&proc_and(&[bind("/no/such/source", "/x", &["rbind"])]));
    assert!(
        error.starts_with("mount /x: open_tree(\"/no/such/source\""),
        "{error}"
    );
    assert!(error.ends_with("No such file or directory"), "{error}");
    let error = bundle.error(&proc_and(&[bind(&bundle.source("outside"), "/", &["rbind"])]));
    assert!(error.contains("mounts[1]: destination: /"), "{error}");
    let error = bundle.error(&proc_and(&[json!({"destination": "/x", "type": "nosuchfs"})]));
    assert!(error.contains("fsopen(\"nosuchfs\"): No such device"), "{error}");
}

#[test]
fn a_bound_dev_stays_as_it_is() {
    let bundle = Bundle::new();
    let config = proc_and(&[bind(&bundle.source("outside"), "/dev/", &["rbind"])]);
    bundle.run(&config, |_| ()).unwrap();
    assert_eq!(fs::read_dir(bundle.path("outside")).unwrap().count(), 0);
}

#[test]
fn a_remount_changes_what_is_there() {
    let bundle = Bundle::new();
    let config = proc_and(&[
        json!({"destination": "/x", "type": "tmpfs", "source": "t", "options": ["size=64k"]}),
        json!({"destination": "/x", "type": "tmpfs", "source": "t", "options": ["remount", "ro", "size=128k"]}),
        bind(&bundle.source("outside"), "/y", &["bind"]),
        bind(&bundle.source("outside"), "/y", &["bind", "remount", "noexec"]),
    ]);
    bundle
        .run(&config, |_| {
            assert!(has(&at("/x").superblock, "size=128k") && has(&at("/x").superblock, "ro"));
            assert!(has(&at("/y").options, "noexec"));
        })
        .unwrap();
}

#[test]
fn without_pivot_the_root_is_moved_and_no_bare_proc_is_left() {
    let bundle = Bundle::new();
    let context = Context {
        no_pivot: true,
        ..Context::default()
    };
    bundle
        .run_with(
            &config(&json!([])),
            &context,
            || {},
            |_| {
                assert!(Path::new("/etc").is_dir() && !Path::new("/usr").exists());
                let procs: Vec<Line> = mountinfo()
                    .into_iter()
                    .filter(|line| line.fs_type == "proc" && line.root == "/")
                    .collect();
                assert_eq!(procs.len(), 1, "{procs:#?}");
            },
        )
        .unwrap();
}
