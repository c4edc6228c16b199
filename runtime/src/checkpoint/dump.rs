//! `checkpoint`: a container's processes, written to files.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::criu::{Program, Start};
use super::failure::explain;
use super::image::Directory;
use super::message::{Kind, Message, Response, option, request};
use super::stdio::Names;
use super::{Options, external_key, need_root, path_bytes, work_directory};
use crate::bundle;
use crate::cgroup::Layout;
use crate::container::ContainerId;
use crate::container::cgroup_view::cgroup_view;
use crate::container::delete::remove_killed;
use crate::container::notify;
use crate::container::state::{Locked, Operation, Record, StateRoot, Status};
use crate::log;
use crate::rootfs::{Mounted, NULL, outside};
use crate::sys::{Named, fd};

const LOG: &str = "dump.log";

/// What `checkpoint` is asked for.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// What `restore` has, too.
    pub common: Options,
    /// An earlier image that has part of the memory, relative to this one.
    pub parent_path: Option<PathBuf>,
    /// The container runs on.
    pub leave_running: bool,
    /// TCP connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files that are open but unlinked get a name again.
    pub link_remap: bool,
    /// A descriptor that gets a 0 byte once the server of lazy pages is ready.
    pub status_fd: Option<RawFd>,
    /// Where memory goes in place of the image.
    pub page_server: Option<PageServer>,
    /// Only memory is written, for a later checkpoint to be quick; the container runs on.
    pub pre_dump: bool,
}

/// `ADDRESS:PORT` of a page server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageServer {
    address: String,
    port: u16,
}

impl FromStr for PageServer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || anyhow!("{text:?}: must be ADDRESS:PORT, an IPv6 address in brackets");
        let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = bare.unwrap_or(address);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        if address.is_empty() || (bare.is_none() && address.contains(':')) {
            return Err(wrong());
        }
        Ok(Self {
            address: address.to_owned(),
            port,
        })
    }
}

/// Writes the processes of a container to files. It is deleted then, unless it is to run on.
///
/// # Errors
///
/// It is neither running nor paused; CRIU can't: in the words of its log. The container is as it was.
pub fn checkpoint(root: &StateRoot, id: &ContainerId, options: &DumpOptions) -> Result<()> {
    need_root("checkpoint")?;
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    let status = directory.status(&record)?;
    status.allows(Operation::Checkpoint, id)?;
    if let Some(descriptor) = options.status_fd
        && !fd::is_writable(descriptor).context("--status-fd")?
    {
        bail!("--status-fd: {descriptor}: is not open for writing");
    }
    let program = Program::find()?;
    program.check_features(options.pre_dump, options.common.lazy_pages)?;
    let image = Directory::make(&options.common.image_path, "--image-path")?;
    check_parent(options, &image)?;
    let work = work_directory(&options.common)?;
    let dump = Dump {
        directory: &directory,
        record: &record,
        options,
        image: &image,
        spec: bundle::parse_kept(&directory.config()?)?,
    };
    let request = dump.request(work.as_ref())?;
    if let Err(error) = dump.run(&program, &request) {
        // CRIU that was killed leaves it frozen.
        if status == Status::Running && record.cgroup.is_frozen().unwrap_or(false) {
            record.cgroup.thaw()?;
        }
        return Err(explain(error, work.as_ref().unwrap_or(&image), LOG));
    }
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    remove_killed(directory, &record)
        .context("the image is complete, but what is left of the container can't be removed")
}

/// `--parent-path` is relative to the image, since the image is to be moved together with it.
fn check_parent(options: &DumpOptions, image: &Directory) -> Result<()> {
    let Some(parent) = &options.parent_path else {
        return Ok(());
    };
    if parent.is_absolute() {
        bail!("--parent-path {parent:?}: must be relative to --image-path");
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(image, parent, flags, Mode::empty())
        .call(|| format!("open({:?})", image.path().join(parent)))
        .context("invalid --parent-path (an earlier image, relative to --image-path)")?;
    Ok(())
}

/// A checkpoint of one container.
struct Dump<'a> {
    directory: &'a Locked,
    record: &'a Record,
    options: &'a DumpOptions,
    image: &'a Directory,
    spec: Spec,
}

impl Dump<'_> {
    fn run(&self, program: &Program, request: &[u8]) -> Result<()> {
        let mut criu = program.start(&Start::default())?;
        let mut status_fd = self.options.status_fd;
        let dumped = criu.converse(request, |response: &Response, _| {
            if response.notification == "status-ready"
                && let Some(descriptor) = status_fd.take()
            {
                fd::write_raw(descriptor, &[0]).context("--status-fd")?;
                // Whoever reads it may wait for its end.
                let _ = nix::unistd::close(descriptor);
            }
            Ok(())
        });
        match dumped {
            // After a pre-dump it waits for the next one, and takes our leave for an error.
            Ok(_) if self.options.pre_dump => {
                if let Err(error) = criu.end(None) {
                    log::debug(|| format!("the end of CRIU: {error:#}"));
                }
                Ok(())
            }
            Ok(_) => criu.end(None),
            Err(error) => {
                // It puts the processes to rights first.
                if let Err(error) = criu.end(None) {
                    log::debug(|| format!("the end of CRIU: {error:#}"));
                }
                Err(error)
            }
        }
    }

    fn request(&self, work: Option<&Directory>) -> Result<Vec<u8>> {
        let DumpOptions { common, pre_dump, .. } = self.options;
        if !self.has(LinuxNamespaceType::Mount) {
            bail!(
                "its configuration has no mount namespace: what it has open is the host's, and can't be part of an image"
            );
        }
        let pid = u64::try_from(self.record.pid)?;
        let directories = (self.image.number(), work.map(Directory::number));
        let mut message = super::options(common, directories, &self.spec, LOG)?
            .number(option::PID, pid)
            .flag(option::LEAVE_RUNNING, self.options.leave_running)
            .flag(option::LINK_REMAP, self.options.link_remap)
            .flag(option::TCP_SKIP_IN_FLIGHT, self.options.tcp_skip_in_flight)
            .text(option::ROOT, path_bytes(&self.record.rootfs))
            .text_if(
                option::FREEZE_CGROUP,
                self.record.cgroup.freezer().map(path_bytes),
            );
        if let Some(PageServer { address, port }) = &self.options.page_server {
            let server = Message::default().text(1, address).number(2, (*port).into());
            message = message.message(option::PAGE_SERVER, &server);
        }
        if let Some(parent) = &self.options.parent_path {
            message = message.text(option::PARENT_IMG, path_bytes(parent));
        }
        message = message.flag(option::TRACK_MEM, self.options.parent_path.is_some() || *pre_dump);
        message = self.external_namespaces(message)?;
        if *pre_dump {
            return Ok(request(Kind::PreDump, &message));
        }
        let names = Names::of(self.record.pid)?;
        for name in names.external() {
            message = message.text(option::EXTERNAL, name);
        }
        names.save(self.image)?;
        Ok(request(Kind::Dump, &self.external_mounts(message)?))
    }

    fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.namespaces().any(|namespace| namespace.typ() == kind)
    }

    fn namespaces(&self) -> impl Iterator<Item = &oci_spec::runtime::LinuxNamespace> {
        let linux = self.spec.linux().as_ref();
        linux
            .and_then(|linux| linux.namespaces().as_ref())
            .into_iter()
            .flatten()
    }

    /// A network or PID namespace that the container has joined is not its own to be written.
    fn external_namespaces(&self, mut message: Message) -> Result<Message> {
        for namespace in self.namespaces() {
            let joined = namespace
                .path()
                .as_ref()
                .is_some_and(|path| !path.as_os_str().is_empty());
            let kind = match namespace.typ() {
                LinuxNamespaceType::Network => "net",
                LinuxNamespaceType::Pid => "pid",
                _ => continue,
            };
            if joined {
                // By the process: the path may be another's by now.
                let path = format!("/proc/{}/ns/{kind}", self.record.pid);
                let inode = nix::sys::stat::stat(path.as_str())
                    .call(|| format!("stat({path:?})"))?
                    .st_ino;
                message = message.text(
                    option::EXTERNAL,
                    format!("{kind}[{inode}]:{}", external_key(kind)),
                );
            }
        }
        Ok(message)
    }

    fn external_mounts(&self, mut message: Message) -> Result<Message> {
        let path = CString::new(format!("/proc/{}/root", self.record.pid))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path.as_c_str(), flags, Mode::empty()).call(|| format!("open({path:?})"))?;
        let mounted = Mounted::new(root);
        let cgroups = cgroup_view(&Layout::detect()?, &self.record.cgroup);
        for mount in outside(&self.spec, &self.record.bundle, &cgroups)? {
            if let Some(point) = mounted.point(&mount.destination)? {
                message = message.pair(option::EXT_MNT, point, mount.destination);
            }
        }
        if self.directory.path().join(notify::DIRECTORY).is_dir() {
            message = message.pair(option::EXT_MNT, notify::MOUNTED_AT, notify::MOUNTED_AT);
        }
        let linux = self.spec.linux().as_ref();
        for path in linux
            .and_then(|linux| linux.masked_paths().as_ref())
            .into_iter()
            .flatten()
        {
            if let Some(point) = mounted.masked_file(path)? {
                message = message.pair(option::EXT_MNT, point, NULL);
            }
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        let server = |text: &str| {
            let PageServer { address, port } = text.parse().unwrap();
            (address, port)
        };
        assert_eq!(server("127.0.0.1:27277"), ("127.0.0.1".into(), 27277));
        assert_eq!(server("[::1]:1"), ("::1".into(), 1));
        for text in ["", "a", ":1", "a:", "a:0", "a:70000", "::1:1", "[]:1"] {
            let error = text.parse::<PageServer>().unwrap_err().to_string();
            assert!(error.contains("must be ADDRESS:PORT"), "{error}");
        }
    }

    #[test]
    fn a_parent_is_relative_and_there() {
        let path = std::env::temp_dir().join(format!("rtc-parent-{}", std::process::id()));
        let image = Directory::make(&path.join("image"), "--image-path").unwrap();
        std::fs::create_dir(path.join("earlier")).unwrap();
        let check = |parent: &str| {
            let options = DumpOptions {
                parent_path: Some(parent.into()),
                ..DumpOptions::default()
            };
            check_parent(&options, &image)
        };
        check("../earlier").unwrap();
        for parent in ["../missing", "/earlier", "inventory.img"] {
            let error = format!("{:#}", check(parent).unwrap_err());
            assert!(error.contains("--parent-path"), "{error}");
        }
        std::fs::remove_dir_all(path).unwrap();
    }
}
