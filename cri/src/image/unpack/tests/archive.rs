//! Makes tars, also such as no program would.

/// A tar in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

/// One entry's header, to be changed before it is added.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    pub(crate) size: u64,
}

impl Header {
    pub(crate) fn new(kind: u8, name: &str) -> Self {
        Self {
            name: name.into(),
            kind,
            target: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: nix::unistd::geteuid().as_raw().into(),
            gid: nix::unistd::getegid().as_raw().into(),
            mtime: 1_700_000_000,
            device: (0, 0),
            size: 0,
        }
    }

    pub(crate) fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.uid).as_bytes());
        put(116, format!("{:07o}", self.gid).as_bytes());
        put(124, format!("{:011o}", self.size).as_bytes());
        put(136, format!("{:011o}", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, &self.target);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", self.device.0).as_bytes());
        put(337, format!("{:07o}", self.device.1).as_bytes());
        sum(&mut block);
        block
    }
}

/// Puts the right checksum.
pub(crate) fn sum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A header and its data, as they are.
    pub(crate) fn raw(mut self, block: [u8; 512], data: &[u8]) -> Self {
        self.bytes.extend(block);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn entry(self, mut header: Header, data: &[u8]) -> Self {
        header.size = data.len() as u64;
        self.raw(header.block(), data)
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.entry(Header::new(b'0', name), data.as_bytes())
    }

    pub(crate) fn directory(self, name: &str, mode: u32) -> Self {
        let header = Header {
            mode,
            ..Header::new(b'5', name)
        };
        self.entry(header, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.with_target(b'2', name, target)
    }

    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        self.with_target(b'1', name, target)
    }

    fn with_target(self, kind: u8, name: &str, target: &str) -> Self {
        let header = Header {
            target: target.into(),
            ..Header::new(kind, name)
        };
        self.entry(header, b"")
    }

    /// PAX records in front of the next entry.
    pub(crate) fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let mut length = rest.len() + 1;
            while length != rest.len() + length.to_string().len() {
                length += 1;
            }
            data.extend(length.to_string().into_bytes());
            data.extend(rest);
        }
        self.entry(Header::new(b'x', "records"), &data)
    }

    /// With its end.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 1024]].concat()
    }

    /// Without its end.
    pub(crate) fn open_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// `sha256:...` of `bytes`.
    pub(crate) fn diff_id(&self) -> String {
        use sha2::Digest as _;
        format!("sha256:{:x}", sha2::Sha256::digest(self.bytes()))
    }

    pub(crate) fn gzip(&self) -> Vec<u8> {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&self.bytes()).unwrap();
        gzip.finish().unwrap()
    }
}
