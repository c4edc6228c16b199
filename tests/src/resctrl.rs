//! A resctrl file system in user space (FUSE), for machines whose processors have none: groups with the files the kernel
//! makes in them, its checks of schemata, and its word for what went wrong last. It is mounted under the name `resctrl`,
//! in a mount namespace of the test's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::fuse::{REQUEST_HEADER, init, reply, serve};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const MKDIR: u32 = 9;
const RMDIR: u32 = 11;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// How many groups there can be, the default one among them.
const GROUPS: usize = 4;

/// Mounted.
pub(crate) struct Resctrl {
    /// Where.
    pub(crate) path: PathBuf,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Resctrl {
    /// Mounts one at this path, which is made, for this process and its children alone. `None` where the kernel has no
    /// FUSE.
    pub(crate) fn mount(path: PathBuf) -> Result<Option<Self>> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            return Ok(None);
        };
        unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        let nothing: Option<&str> = None;
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(nothing, "/", nothing, private, nothing).context("make all mounts private")?;
        std::fs::create_dir(&path)?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("resctrl"),
            &path,
            Some("fuse"),
            flags,
            Some(options.as_str()),
        )
        .with_context(|| format!("mount fuse at {}", path.display()))?;
        let ended = Arc::<AtomicBool>::default();
        let has_ended = Arc::clone(&ended);
        let mut tree = Tree::new();
        let server = thread::spawn(move || serve(device, &has_ended, |request| tree.answer(request)));
        Ok(Some(Self {
            path,
            ended,
            server: Some(server),
        }))
    }

    /// A file, trimmed.
    pub(crate) fn read(&self, path: &str) -> Result<String> {
        let path = self.path.join(path);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().to_owned())
    }
}

impl Drop for Resctrl {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        self.ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

enum Node {
    Directory,
    File(String),
}

/// Nodes by their number, and by path from the root, which is "".
struct Tree {
    numbers: BTreeMap<String, u64>,
    nodes: BTreeMap<u64, (String, Node)>,
    next: u64,
}

type Answer = Result<Vec<u8>, i32>;

impl Tree {
    fn new() -> Tree {
        let mut tree = Tree {
            numbers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next: 1,
        };
        tree.add("", Node::Directory);
        for directory in ["/info", "/info/L3", "/info/MB", "/info/L3_MON", "/mon_groups"] {
            tree.add(directory, Node::Directory);
        }
        for (path, text) in [
            ("/info/last_cmd_status", "ok\n"),
            ("/info/L3/cbm_mask", "fffff\n"),
            ("/info/L3/min_cbm_bits", "1\n"),
            ("/info/L3/num_closids", "4\n"),
            ("/info/MB/bandwidth_gran", "10\n"),
            ("/info/MB/delay_linear", "1\n"),
            ("/info/MB/min_bandwidth", "10\n"),
            ("/info/MB/num_closids", "4\n"),
            (
                "/info/L3_MON/mon_features",
                "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n",
            ),
        ] {
            tree.add(path, Node::File(text.to_owned()));
        }
        tree.fill("", true);
        tree
    }

    fn add(&mut self, path: &str, node: Node) {
        self.numbers.insert(path.to_owned(), self.next);
        self.nodes.insert(self.next, (path.to_owned(), node));
        self.next += 1;
    }

    /// The files of a group.
    fn fill(&mut self, path: &str, gives: bool) {
        self.add(&format!("{path}/tasks"), Node::File(String::new()));
        if gives {
            let all = "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n";
            self.add(&format!("{path}/schemata"), Node::File(all.to_owned()));
        }
        self.add(&format!("{path}/mon_data"), Node::Directory);
        for cache in 0..2 {
            let domain = format!("{path}/mon_data/mon_L3_0{cache}");
            self.add(&domain, Node::Directory);
            for (name, text) in [
                ("llc_occupancy", "65536\n"),
                ("mbm_total_bytes", "2000\n"),
                ("mbm_local_bytes", "1000\n"),
            ] {
                self.add(&format!("{domain}/{name}"), Node::File(text.to_owned()));
            }
        }
    }

    fn answer(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap_or_default());
        let node = u64::from_le_bytes(request[16..24].try_into().unwrap_or_default());
        let body = &request[REQUEST_HEADER..];
        let answer = match word(4) {
            FORGET | BATCH_FORGET | INTERRUPT => return None,
            INIT => Ok(init()),
            LOOKUP => self.child(node, body).and_then(|path| self.entry(&path)),
            GETATTR | SETATTR => self
                .attributes(node)
                .map(|attributes| [vec![0; 16], attributes].concat()),
            MKDIR => self.child(node, &body[8..]).and_then(|path| self.make(&path)),
            RMDIR => self.child(node, body).and_then(|path| self.remove(&path)),
            // FOPEN_DIRECT_IO: the size is not known before.
            OPEN | OPENDIR => Ok([0_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat()),
            READ => self.read(node, body),
            READDIR => self.list(node, body),
            WRITE => self
                .write(node, &body[40..])
                .map(|length| (length as u64).to_le_bytes().to_vec()),
            RELEASE | RELEASEDIR | FLUSH => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        reply(request, answer)
    }

    fn path(&self, node: u64) -> Result<&str, i32> {
        self.nodes
            .get(&node)
            .map(|(path, _)| path.as_str())
            .ok_or(libc::ENOENT)
    }

    fn child(&self, node: u64, name: &[u8]) -> Result<String, i32> {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(format!("{}/{}", self.path(node)?, String::from_utf8_lossy(name)))
    }

    fn entry(&self, path: &str) -> Answer {
        let number = *self.numbers.get(path).ok_or(libc::ENOENT)?;
        let mut entry = vec![0; 40];
        entry[..8].copy_from_slice(&number.to_le_bytes());
        entry.extend(self.attributes(number)?);
        Ok(entry)
    }

    /// `struct fuse_attr`.
    fn attributes(&self, number: u64) -> Answer {
        let (_, node) = self.nodes.get(&number).ok_or(libc::ENOENT)?;
        let (mode, size) = match node {
            Node::Directory => (libc::S_IFDIR | 0o755, 0),
            Node::File(text) => (libc::S_IFREG | 0o644, text.len() as u64),
        };
        let mut attributes = vec![0; 88];
        attributes[..8].copy_from_slice(&number.to_le_bytes());
        attributes[8..16].copy_from_slice(&size.to_le_bytes());
        attributes[60..64].copy_from_slice(&mode.to_le_bytes());
        attributes[64] = 2;
        Ok(attributes)
    }

    fn read(&self, number: u64, body: &[u8]) -> Answer {
        let Some((_, Node::File(text))) = self.nodes.get(&number) else {
            return Err(libc::EISDIR);
        };
        let offset = u64::from_le_bytes(body[8..16].try_into().unwrap_or_default());
        let rest = text.as_bytes().get(offset as usize..).unwrap_or_default();
        Ok(rest.to_vec())
    }

    fn list(&self, number: u64, body: &[u8]) -> Answer {
        let prefix = format!("{}/", self.path(number)?);
        let mut entries = Vec::new();
        if body[8..16] != [0; 8] {
            return Ok(entries);
        }
        for (path, number) in &self.numbers {
            let Some(name) = path.strip_prefix(&prefix).filter(|name| !name.contains('/')) else {
                continue;
            };
            let directory = matches!(self.nodes.get(number), Some((_, Node::Directory)));
            entries.extend(number.to_le_bytes());
            entries.extend(1_u64.to_le_bytes());
            entries.extend((name.len() as u32).to_le_bytes());
            entries.extend(u32::from(if directory { libc::DT_DIR } else { libc::DT_REG }).to_le_bytes());
            entries.extend(name.as_bytes());
            entries.resize(entries.len().next_multiple_of(8), 0);
        }
        Ok(entries)
    }

    fn say(&mut self, status: &str) {
        self.set("/info/last_cmd_status", format!("{status}\n"));
    }

    fn set(&mut self, path: &str, text: String) {
        if let Some(number) = self.numbers.get(path) {
            self.nodes.insert(*number, (path.to_owned(), Node::File(text)));
        }
    }

    fn text(&self, path: &str) -> String {
        match self.numbers.get(path).and_then(|number| self.nodes.get(number)) {
            Some((_, Node::File(text))) => text.clone(),
            _ => String::new(),
        }
    }

    fn make(&mut self, path: &str) -> Answer {
        if self.numbers.contains_key(path) {
            return Err(libc::EEXIST);
        }
        let (parent, _) = path.rsplit_once('/').unwrap_or_default();
        let gives = parent.is_empty();
        if !gives && !parent.ends_with("/mon_groups") {
            return Err(libc::EPERM);
        }
        let groups = self
            .numbers
            .keys()
            .filter(|path| path.ends_with("/schemata"))
            .count();
        if gives && groups >= GROUPS {
            self.say("Out of CLOSIDs");
            return Err(libc::ENOSPC);
        }
        self.add(path, Node::Directory);
        self.fill(path, gives);
        if gives {
            self.add(&format!("{path}/mon_groups"), Node::Directory);
        }
        self.entry(path)
    }

    fn remove(&mut self, path: &str) -> Answer {
        if !self.numbers.contains_key(&format!("{path}/tasks")) {
            return Err(if self.numbers.contains_key(path) {
                libc::EPERM
            } else {
                libc::ENOENT
            });
        }
        let below = format!("{path}/");
        let gone = |known: &str| known == path || known.starts_with(&below);
        self.numbers.retain(|known, _| !gone(known));
        self.nodes.retain(|_, (known, _)| !gone(known));
        Ok(Vec::new())
    }

    fn write(&mut self, number: u64, data: &[u8]) -> Result<usize, i32> {
        let path = self.path(number)?.to_owned();
        let text = String::from_utf8_lossy(data).into_owned();
        if path.ends_with("/tasks") {
            let task: u32 = text.trim().parse().map_err(|_| libc::EINVAL)?;
            let all = self.text(&path) + &format!("{task}\n");
            self.set(&path, all);
        } else if path.ends_with("/schemata") {
            for line in text.lines() {
                self.change(&path, line)?;
            }
        } else {
            return Err(libc::EACCES);
        }
        self.say("ok");
        Ok(data.len())
    }

    /// Takes over the values of one line.
    fn change(&mut self, path: &str, line: &str) -> Result<(), i32> {
        let refused = |tree: &mut Tree| {
            tree.say(&format!("Parsing error '{line}'"));
            libc::EINVAL
        };
        let (resource, values) = line.split_once(':').ok_or_else(|| refused(self))?;
        let radix = if resource == "L3" { 16 } else { 10 };
        let mut now: BTreeMap<String, String> = BTreeMap::new();
        let text = self.text(path);
        let old = text
            .lines()
            .find(|old| old.trim().starts_with(&format!("{resource}:")));
        let old = old.ok_or_else(|| refused(self))?.to_owned();
        for pair in old.trim().split_once(':').unwrap_or_default().1.split(';') {
            let (id, value) = pair.split_once('=').unwrap_or_default();
            now.insert(id.to_owned(), value.to_owned());
        }
        for pair in values.split(';') {
            let (id, value) = pair.split_once('=').ok_or_else(|| refused(self))?;
            let good = u32::from_str_radix(value, radix).is_ok_and(|value| value > 0 && value <= 0xfffff);
            if !good || !now.contains_key(id) {
                return Err(refused(self));
            }
            now.insert(id.to_owned(), format!("{value:0>5}"));
        }
        let values: Vec<String> = now.iter().map(|(id, value)| format!("{id}={value}")).collect();
        let new = text.replace(&old, &format!("    {resource}:{}", values.join(";")));
        self.set(path, new);
        Ok(())
    }
}
