//! The runner's command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::lists;

const USAGE: &str = "\
rtc-tests [OPTIONS] [FILTER...]

Runs the tests whose area/name contains one of the filters; where there is none, all but those with a kubelet, whose
areas begin with kubelet_, and in a machine those of caller_docker and caller_podman. Needs root.

  --rtc PATH        the runtime under test (or $RTC; else the release build next to this program)
  --shim PATH       the shim under test (or $SHIM; else the release build next to this program)
  --cri PATH        the CRI server under test (or $CRI; else the server build next to this program)
  --cri-peer NAME   the tests of the CRI server run against this peer instead (or $CRI_PEER): containerd, containerd-2.1
  --kubelet VERSION the tests with a kubelet run this one: 1.37 (or $KUBELET; default the newest of the peers)
  --cgroup-driver NAME  of the kubelet: systemd or cgroupfs (default: systemd where it runs)
  --driver NAME     of the runtime's cgroups: cgroupfs (default) or systemd, with which only the runtime's own tests run
  --peers DIRECTORY what hack/peers made: without it the tests with a real containerd are skipped
  --binary-name RUNTIME  the shim runs this OCI runtime (or $BINARY_NAME; else what is built into it)
  --area PREFIX     only areas whose names begin so
  --list            print area/name of each chosen test and stop
  --exact           filters are whole names (name or area/name)
  --jobs N          tests at a time (default: number of cpus + 1)
  --timeout SECONDS time limit of each test (default 120)
  --strict          a test that fails and then passes alone is a failure
  --machine NAME    which list of allowed skips holds: host, vm or qemu (default: vm where /sys/fs/cgroup is cgroup2)
  --keep            do not remove the directories of failed tests";

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    /// The runtime under test, absolute.
    pub(crate) rtc: PathBuf,
    /// The shim under test, absolute.
    pub(crate) shim: PathBuf,
    /// The CRI server under test, absolute; empty where it is not built.
    pub(crate) cri: PathBuf,
    /// The peer that is tested in its place: `containerd` (2.4), `containerd-2.1`; empty for none.
    pub(crate) cri_peer: String,
    /// Option `binary_name` of the shim's containers; empty for the default.
    pub(crate) binary_name: String,
    /// The kubelet's version; empty for the newest there is.
    pub(crate) kubelet: String,
    /// The kubelet's cgroup driver; empty for the machine's.
    pub(crate) cgroup_driver: String,
    /// Whether the runtime's containers are in scopes of systemd.
    pub(crate) systemd: bool,
    /// The real components around the shim, if they are there.
    pub(crate) peers: Option<PathBuf>,
    /// Substrings (or whole names with `exact`) that choose tests.
    pub(crate) filters: Vec<String>,
    /// Beginning of the areas that count.
    pub(crate) area: String,
    /// Only print what would run.
    pub(crate) list: bool,
    /// Filters are whole names.
    pub(crate) exact: bool,
    /// Tests at a time.
    pub(crate) jobs: usize,
    /// Seconds each test may take.
    pub(crate) timeout: u64,
    /// A flaky test counts as failed.
    pub(crate) strict: bool,
    /// `host`, `vm` (User Mode Linux) or `qemu`.
    pub(crate) machine: String,
    /// Leave failed tests' directories in place.
    pub(crate) keep: bool,
}

impl Options {
    /// Reads the words after the program's name. Fails on an unknown option or a runtime that is not there.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|path: &String| !path.is_empty());
        let (mut rtc, mut shim, mut cri) = (variable("RTC"), variable("SHIM"), variable("CRI"));
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self {
            rtc: PathBuf::new(),
            shim: PathBuf::new(),
            cri: PathBuf::new(),
            cri_peer: variable("CRI_PEER").unwrap_or_default(),
            binary_name: variable("BINARY_NAME").unwrap_or_default(),
            kubelet: variable("KUBELET").unwrap_or_default(),
            cgroup_driver: String::new(),
            systemd: false,
            peers: None,
            filters: Vec::new(),
            area: String::new(),
            list: false,
            exact: false,
            jobs: cpus + 1,
            timeout: 120,
            strict: false,
            machine: if crate::host::cgroup::is_unified() {
                "vm"
            } else {
                "host"
            }
            .to_owned(),
            keep: false,
        };
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{word} needs a value\n{USAGE}"))
            };
            match word {
                "--rtc" => rtc = Some((*value()?).to_owned()),
                "--shim" => shim = Some((*value()?).to_owned()),
                "--cri" => cri = Some((*value()?).to_owned()),
                "--cri-peer" => options.cri_peer = (*value()?).to_owned(),
                "--binary-name" => options.binary_name = (*value()?).to_owned(),
                "--area" => options.area = (*value()?).to_owned(),
                "--kubelet" => options.kubelet = (*value()?).to_owned(),
                "--cgroup-driver" => options.cgroup_driver = (*value()?).to_owned(),
                "--driver" => {
                    options.systemd = match *value()? {
                        "systemd" => true,
                        "cgroupfs" => false,
                        other => bail!("--driver {other}: must be cgroupfs or systemd\n{USAGE}"),
                    }
                }
                "--peers" => options.peers = Some(PathBuf::from(*value()?)),
                "--jobs" => options.jobs = value()?.parse::<usize>().context("--jobs")?.max(1),
                "--timeout" => options.timeout = value()?.parse().context("--timeout")?,
                "--machine" => options.machine = (*value()?).to_owned(),
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--strict" => options.strict = true,
                "--keep" => options.keep = true,
                "-h" | "--help" => {
                    println!("{USAGE}");
                    std::process::exit(0);
                }
                _ if word.starts_with('-') => bail!("unknown option {word}\n{USAGE}"),
                _ => options.filters.push(word.to_owned()),
            }
        }
        if !options.list {
            options.rtc = find(rtc.as_deref(), "rtc")?;
            options.shim = find(shim.as_deref(), "containerd-shim-rtc-v2")?;
            options.cri = match cri {
                Some(path) => find(Some(&path), "rtc-cri")?,
                None => beside_this_program("server", "rtc-cri")?
                    .canonicalize()
                    .unwrap_or_default(),
            };
        }
        Ok(options)
    }

    /// The program that a test of this area is about.
    pub(crate) fn under_test(&self, area: &str) -> &Path {
        if is_of_cri(area) {
            &self.cri
        } else if area.starts_with("shim_") || area.starts_with("containerd_") {
            &self.shim
        } else {
            &self.rtc
        }
    }

    /// The list of what a test of this area may fail, if there is one.
    pub(crate) fn peer(&self, area: &str) -> Option<&'static str> {
        if is_of_cri(area) {
            return (!self.cri_peer.is_empty()).then_some(lists::CONTAINERD);
        }
        let peer = lists::peer(self.under_test(area));
        let foreign = area.starts_with("shim_") && !self.binary_name.is_empty();
        peer.or(foreign.then_some(lists::FOREIGN))
    }

    /// Whether the filters choose this test. A node with a kubelet takes its time, and so do Docker and Podman in an
    /// emulated machine: they are asked for.
    pub(crate) fn chooses(&self, area: &str, name: &str) -> bool {
        let path = format!("{area}/{name}");
        let by = |filter: &String| {
            if self.exact {
                *filter == path || filter == name
            } else {
                path.contains(filter.as_str())
            }
        };
        if self.systemd && !is_of_runtime(area) {
            return false;
        }
        if self.filters.is_empty() {
            let slow = area.starts_with("kubelet_")
                || (self.machine != "host" && matches!(area, "caller_docker" | "caller_podman"));
            return area.starts_with(&self.area) && !(slow && self.area.is_empty());
        }
        area.starts_with(&self.area) && self.filters.iter().any(by)
    }
}

/// Whether the area's tests are of a CRI server: what plays the kubelet's part, or a real one.
fn is_of_cri(area: &str) -> bool {
    area.starts_with("cri_") || area.starts_with("kubelet_")
}

/// Whether the area's tests call the runtime itself.
fn is_of_runtime(area: &str) -> bool {
    let others = ["cri_", "kubelet_", "shim_", "containerd_", "caller_", "cluster_"];
    !others.iter().any(|other| area.starts_with(other))
}

/// The program given, or the one built beside this one.
fn find(given: Option<&str>, name: &str) -> Result<PathBuf> {
    let path = match given {
        Some(path) => PathBuf::from(path),
        None => beside_this_program("release", name)?,
    };
    path.canonicalize()
        .with_context(|| format!("program under test: {}", path.display()))
}

/// `target/<triple>/PROFILE/NAME`, seen from `target/<triple>/<profile>/rtc-tests`; or NAME in the same directory.
fn beside_this_program(profile: &str, name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("/proc/self/exe")?;
    let directory = program.parent().unwrap_or(Path::new("/"));
    let built = directory.parent().unwrap_or(directory).join(profile).join(name);
    Ok(if built.exists() {
        built
    } else {
        directory.join(name)
    })
}
