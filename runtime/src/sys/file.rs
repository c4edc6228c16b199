//! Files, read with as few calls as possible: `list` and `state` are made of little else.

use std::os::fd::AsFd;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::{Errno, Named, Result};

/// Reads a descriptor to its end, without asking for the size first: small files take two calls, and those of procfs,
/// which have no size, are not read in pieces.
pub fn read_all(fd: impl AsFd) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut length = 0;
    loop {
        match nix::unistd::read(&fd, &mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).call(|| "read".into()),
        }
        if length == bytes.len() {
            bytes.resize(2 * length, 0);
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads a whole file by its path.
pub fn read(path: &str) -> Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    read_all(open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_size_is_read_whole() {
        let path = std::env::temp_dir().join(format!("rtc-file-{}", std::process::id()));
        for size in [0, 1, 4095, 4096, 4097, 100_000] {
            std::fs::write(&path, vec![b'x'; size]).unwrap();
            assert_eq!(read(path.to_str().unwrap()).unwrap().len(), size);
        }
        std::fs::remove_file(path).unwrap();
        assert_eq!(read("/nonexistent").unwrap_err().errno, Errno::ENOENT);
    }
}
