//! A registry of images on loopback, of a test's own: it serves what the test makes, and misbehaves as the test says.
//!
//! ```text
//! let registry = ImageRegistry::start()?;
//! let image = registry.push("app", "1", &[&[("hello", b"world")]]);
//! registry.misbehave(|request, reply| if request.is_blob() { reply.cut_after(10) });
//! cri.pull_image(registry.name("app:1"))
//! registry.requests()                          // what was asked, with its headers
//! ```
//!
//! Plain HTTP/1.1 by threads: a thread for each connection.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::registry::Result;

/// OCI's media types (image-spec, `media-types.md`).
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The registry; its threads end with it or with the test's process.
pub(crate) struct ImageRegistry {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    /// By `manifests/app/1` or `blobs/sha256:...`: media type and bytes.
    contents: Mutex<HashMap<String, (String, Vec<u8>)>>,
    requests: Mutex<Vec<Request>>,
    #[expect(clippy::type_complexity, reason = "said once")]
    misbehaviour: Mutex<Option<Box<dyn FnMut(&Request, &mut Reply) + Send>>>,
}

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Closes the connection after so many bytes of the body.
    cut: Option<usize>,
    /// Waits before the body's byte of this number.
    stall: Option<(usize, Duration)>,
    /// Answers with the whole, whatever part is asked for.
    whole: bool,
}

/// An image that was pushed, by digests.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub(crate) manifest: String,
    /// Bytes of the manifest.
    pub(crate) size: usize,
    pub(crate) config: String,
    pub(crate) layers: Vec<String>,
}

impl Request {
    /// A layer or a configuration is asked for.
    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// A header's value, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn read(stream: &mut BufReader<TcpStream>) -> Result<Option<Self>> {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, path) = (words.next().context("method")?, words.next().context("path")?);
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers
            .get("content-length")
            .and_then(|length| length.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Ok(Some(Self {
            method,
            path,
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        }))
    }
}

impl Reply {
    /// Another one.
    pub(crate) fn become_status(&mut self, status: u16) {
        *self = Self {
            status,
            ..Self::default()
        };
    }

    /// Leads elsewhere.
    pub(crate) fn redirect(&mut self, to: &str) {
        self.become_status(307);
        self.header("location", to);
    }

    pub(crate) fn header(&mut self, name: &str, value: &str) {
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// The connection ends in the middle of the body.
    pub(crate) fn cut_after(&mut self, bytes: usize) {
        self.cut = Some(bytes);
    }

    /// Nothing comes for this long in the middle of the body.
    pub(crate) fn stall_after(&mut self, bytes: usize, time: Duration) {
        self.stall = Some((bytes, time));
    }

    /// Knows no ranges.
    pub(crate) fn ignore_range(&mut self) {
        self.whole = true;
    }

    /// `Range: bytes=N-`, as registries serve it.
    fn range(&mut self, request: &Request) {
        let from = request
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.strip_suffix('-'));
        let Some(from) = from.and_then(|from| from.parse::<usize>().ok()) else {
            return;
        };
        let all = self.body.len();
        if from >= all {
            self.become_status(416);
            return;
        }
        self.status = 206;
        self.body.drain(..from);
        self.header("content-range", &format!("bytes {from}-{}/{all}", all - 1));
    }

    fn write(&self, stream: &mut TcpStream, head_only: bool) -> std::io::Result<bool> {
        let mut head = format!(
            "HTTP/1.1 {} x\r\ncontent-length: {}\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        if head_only {
            return Ok(true);
        }
        let end = self.cut.unwrap_or(self.body.len()).min(self.body.len());
        if let Some((at, time)) = self.stall {
            let at = at.min(end);
            stream.write_all(&self.body[..at])?;
            std::thread::sleep(time);
            stream.write_all(&self.body[at..end])?;
        } else {
            stream.write_all(&self.body[..end])?;
        }
        Ok(self.cut.is_none())
    }
}

/// A value that threads share.
fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `sha256:...`
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A tar of files (ustar, POSIX.1-1988). What is in `bin/` can be run, a name that ends in `/` is a directory, and
/// `name -> target` a symbolic link.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, content) in files {
        let mut header = [0_u8; 512];
        let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        let (name, target) = name.split_once(" -> ").unwrap_or((name, ""));
        let kind = match (target.is_empty(), name.ends_with('/')) {
            (false, _) => "2",
            (_, true) => "5",
            _ => "0",
        };
        field(0, name);
        field(157, target);
        let mode = if kind == "5" || name.starts_with("bin/") {
            "0000755\0"
        } else {
            "0000644\0"
        };
        field(100, mode);
        field(108, "0000000\0");
        field(116, "0000000\0");
        field(124, &format!("{:011o}\0", content.len()));
        field(136, "14371170000\0");
        field(148, "        ");
        field(156, kind);
        field(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

impl ImageRegistry {
    /// Listens on a port of loopback that is free.
    pub(crate) fn start() -> Result<Self> {
        Self::start_on(0)
    }

    /// Listens on this port of loopback.
    pub(crate) fn start_on(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).context("a registry on loopback")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            contents: Mutex::default(),
            requests: Mutex::default(),
            misbehaviour: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    break;
                }
                let (serving, Ok(stream)) = (Arc::clone(&serving), stream) else {
                    continue;
                };
                // Clients close connections when they like.
                std::thread::spawn(move || drop(serving.serve(stream)));
            }
        });
        Ok(Self { address, shared })
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:PORT/IMAGE`
    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    /// Serves a blob.
    pub(crate) fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let content = ("application/octet-stream".to_owned(), bytes.to_vec());
        locked(&self.shared.contents).insert(format!("blobs/{digest}"), content);
        digest
    }

    /// Serves a manifest or an index by its digest and by a tag.
    pub(crate) fn manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        for object in [tag, &digest] {
            let content = (kind.to_owned(), bytes.to_vec());
            locked(&self.shared.contents).insert(format!("manifests/{repository}/{object}"), content);
        }
        digest
    }

    /// Serves an image of such layers, each of files with their contents.
    pub(crate) fn push(&self, repository: &str, tag: &str, layers: &[&[(&str, &[u8])]]) -> Pushed {
        self.push_with(repository, tag, layers, &json!({"Cmd": ["/none"]}))
    }

    /// Serves an image that says this of its containers (image-spec, `config.md`, `config`).
    pub(crate) fn push_with(
        &self,
        repository: &str,
        tag: &str,
        layers: &[&[(&str, &[u8])]],
        config: &serde_json::Value,
    ) -> Pushed {
        let tars: Vec<Vec<u8>> = layers.iter().map(|files| tar(files)).collect();
        let digests: Vec<String> = tars.iter().map(|tar| self.blob(tar)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": digests},
        });
        let config = config.to_string().into_bytes();
        let described: Vec<_> = tars
            .iter()
            .zip(&digests)
            .map(|(tar, digest)| json!({"mediaType": LAYER, "digest": digest, "size": tar.len()}))
            .collect();
        let config_digest = self.blob(&config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": described,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
        });
        let manifest = manifest.to_string();
        Pushed {
            manifest: self.manifest(repository, tag, MANIFEST, manifest.as_bytes()),
            size: manifest.len(),
            config: config_digest,
            layers: digests,
        }
    }

    /// Changes each answer from now on; a second one takes the place of the first.
    pub(crate) fn misbehave(&self, misbehaviour: impl FnMut(&Request, &mut Reply) + Send + 'static) {
        *locked(&self.shared.misbehaviour) = Some(Box::new(misbehaviour));
    }

    /// Answers as registries do again.
    pub(crate) fn behave(&self) {
        *locked(&self.shared.misbehaviour) = None;
    }

    /// What was asked since the last call of this.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut locked(&self.shared.requests))
    }
}

impl Drop for ImageRegistry {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the one that listens.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> Result {
        let mut reader = BufReader::new(stream.try_clone()?);
        if reader.fill_buf()?.first() == Some(&0x16) {
            // A client tries TLS first.
            return Ok(stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n")?);
        }
        while let Some(request) = Request::read(&mut reader)? {
            let mut reply = self.answer(&request);
            if let Some(misbehave) = &mut *locked(&self.misbehaviour) {
                misbehave(&request, &mut reply);
            }
            if request.is_blob() && reply.status == 200 && !reply.whole {
                reply.range(&request);
            }
            let head_only = request.method == "HEAD";
            locked(&self.requests).push(request);
            if !reply.write(&mut stream, head_only)? {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let key = if let Some((repository, object)) = path.split_once("/manifests/") {
            // A proxy is asked with the whole address.
            let repository = repository
                .split_once("/v2/")
                .map_or(repository, |(_, repository)| repository);
            format!("manifests/{repository}/{object}")
        } else if let Some((_, digest)) = path.split_once("/blobs/") {
            format!("blobs/{digest}")
        } else {
            String::new()
        };
        let mut reply = Reply::default();
        match locked(&self.contents).get(&key) {
            Some((kind, bytes)) => {
                reply.status = 200;
                reply.header("content-type", kind);
                reply.header("docker-content-digest", &digest(bytes));
                reply.body.clone_from(bytes);
            }
            None => {
                reply.status = 404;
                reply.body = json!({"errors": [{"code": "NOT_THERE", "message": "no such thing"}]})
                    .to_string()
                    .into_bytes();
            }
        }
        reply
    }
}
