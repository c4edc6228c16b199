//! Made layers, friendly and hostile, unpacked in a directory of the test's own.

mod archive;
mod hostile;
mod plain;
mod process;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;

use super::{Limits, Summary, unpack};
pub(crate) use archive::Archive;

/// A directory with a layer's in it, and something beside that which no layer may touch.
pub(crate) struct Place {
    path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rtc-unpack-{}-{number}", std::process::id()));
        std::fs::create_dir_all(path.join("layer")).unwrap();
        std::fs::write(path.join("secret"), "untouched").unwrap();
        Self { path }
    }

    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.path.join("layer")
    }

    fn root(&self) -> OwnedFd {
        std::fs::File::open(self.layer()).unwrap().into()
    }

    fn unpack(&self, archive: &Archive) -> Result<Summary> {
        self.unpack_bytes(&archive.bytes())
    }

    fn unpack_bytes(&self, bytes: &[u8]) -> Result<Summary> {
        let limits = Limits {
            bytes: 64 << 20,
            entries: 100_000,
        };
        let summary = unpack(bytes, self.root(), limits);
        self.assert_nothing_outside();
        summary
    }

    fn assert_nothing_outside(&self) {
        let mut names: Vec<_> = std::fs::read_dir(&self.path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["layer", "secret"]);
        assert_eq!(std::fs::read(self.path.join("secret")).unwrap(), b"untouched");
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8(std::fs::read(self.layer().join(name)).unwrap()).unwrap()
    }

    fn exists(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.layer().join(name)).is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = crate::image::removal::remove(&self.path);
    }
}

/// Making devices and giving files away needs root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn metadata(path: &Path) -> std::fs::Metadata {
    std::fs::symlink_metadata(path).unwrap()
}
