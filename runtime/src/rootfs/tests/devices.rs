//! Device nodes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::json;

use super::{Bundle, config, proc_and};

#[test]
fn devices_have_the_number_mode_and_owner_given() {
    let bundle = Bundle::new();
    let mut config = config(&json!([]));
    config["linux"]["devices"] = json!([
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o620, "uid": 7, "gid": 8},
        {"path": "/dev/disk/", "type": "b", "major": 7, "minor": 3},
        {"path": "/opt/pipe", "type": "p", "fileMode": 0o600},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o444},
        {"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2},
    ]);
    bundle
        .run(&config, |_| {
            let tun = fs::metadata("/dev/net/tun").unwrap();
            assert!(tun.file_type().is_char_device());
            assert_eq!((tun.rdev(), tun.mode() & 0o7777), (makedev(10, 200), 0o620));
            assert_eq!((tun.uid(), tun.gid()), (7, 8));
            let disk = fs::metadata("/dev/disk").unwrap();
            assert!(disk.file_type().is_block_device() && disk.rdev() == makedev(7, 3));
            assert!(fs::metadata("/opt/pipe").unwrap().file_type().is_fifo());
            assert_eq!(fs::metadata("/dev/null").unwrap().mode() & 0o777, 0o444);
            assert_eq!(fs::read_link("/dev/ptmx").unwrap(), Path::new("pts/ptmx"));
        })
        .unwrap();
}

#[test]
fn a_device_of_the_image_is_taken_if_it_is_the_one() {
    let bundle = Bundle::new();
    let node = bundle.path("rootfs/dev/zero");
    mknod(
        &node,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        makedev(1, 5),
    )
    .unwrap();
    bundle.run(&proc_and(&[]), |_| ()).unwrap();
    fs::remove_file(&node).unwrap();
    mknod(
        &node,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        makedev(1, 1),
    )
    .unwrap();
    let error = bundle.error(&proc_and(&[]));
    assert!(
        error.contains("device /dev/zero") && error.contains("must be c 1:5 or nothing"),
        "{error}"
    );
}
