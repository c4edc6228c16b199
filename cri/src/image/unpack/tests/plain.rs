//! What layers are made of.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use rtc_runtime::sys::xattr;

use super::archive::{Header, sum};
use super::*;

#[test]
fn files_directories_and_links_have_what_their_headers_say() {
    let place = Place::new();
    let archive = Archive::new()
        .directory("etc/", 0o750)
        .file("etc/hosts", "127.0.0.1\n")
        .symlink("etc/link", "../nowhere")
        .link("etc/same", "etc/hosts")
        .entry(
            Header {
                mode: 0o4755,
                ..Header::new(b'0', "./bin/su")
            },
            b"#!",
        )
        .entry(Header::new(b'6', "fifo"), b"");
    let summary = place.unpack(&archive).unwrap();
    assert_eq!(summary.diff_id, archive.diff_id());
    assert_eq!(place.read("etc/hosts"), "127.0.0.1\n");
    assert_eq!(
        std::fs::read_link(place.layer().join("etc/link")).unwrap(),
        Path::new("../nowhere")
    );
    let (hosts, same) = (place.layer().join("etc/hosts"), place.layer().join("etc/same"));
    assert_eq!(metadata(&hosts).ino(), metadata(&same).ino());
    assert_eq!(metadata(&hosts).mtime(), 1_700_000_000);
    assert_eq!(metadata(&place.layer().join("etc")).mtime(), 1_700_000_000);
    assert_eq!(metadata(&place.layer().join("etc")).mode() & 0o7777, 0o750);
    assert_eq!(metadata(&place.layer().join("bin/su")).mode() & 0o7777, 0o4755);
    assert!(metadata(&place.layer().join("fifo")).file_type().is_fifo());
    assert_eq!(summary.implicit, [b"bin".to_vec()]);
    assert!(!summary.root_is_named && summary.links.is_empty() && summary.opaque.is_empty());
}

#[test]
fn owners_and_devices_are_made_where_root_unpacks() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let archive = Archive::new()
        .entry(
            Header {
                uid: 1000,
                gid: 0o7777777,
                ..Header::new(b'0', "a")
            },
            b"",
        )
        .entry(
            Header {
                device: (1, 3),
                mode: 0o666,
                ..Header::new(b'3', "null")
            },
            b"",
        )
        .entry(
            Header {
                uid: 7,
                target: b"a".to_vec(),
                ..Header::new(b'2', "l")
            },
            b"",
        )
        .records(&[("uid", b"4000000000"), ("gid", b"4000000001")])
        .file("large", "");
    place.unpack(&archive).unwrap();
    let at = |name| metadata(&place.layer().join(name));
    assert_eq!((at("a").uid(), at("a").gid()), (1000, 0o7777777));
    assert!(at("null").file_type().is_char_device());
    assert_eq!((at("null").rdev(), at("null").mode() & 0o7777), (0x103, 0o666));
    assert_eq!(at("l").uid(), 7);
    assert_eq!(
        (at("large").uid(), at("large").gid()),
        (4_000_000_000, 4_000_000_001)
    );
}

#[test]
fn long_names_come_in_three_ways() {
    let place = Place::new();
    let long = |end: &str| format!("{}/{end}", ["d".repeat(60), "e".repeat(60)].join("/"));
    let gnu = [long("gnu").as_bytes(), b"\0"].concat();
    let mut prefixed = Header::new(b'0', "f/ustar").block();
    prefixed[345..345 + 60].fill(b'p');
    sum(&mut prefixed);
    let archive = Archive::new()
        .records(&[("path", long("pax").as_bytes())])
        .file("short", "pax")
        .entry(Header::new(b'L', "././@LongLink"), &gnu)
        .file("short", "gnu")
        .entry(Header::new(b'K', "././@LongLink"), &gnu)
        .link("linked", "short")
        .raw(prefixed, b"");
    place.unpack(&archive).unwrap();
    assert_eq!(place.read(&long("pax")), "pax");
    assert_eq!(place.read(&long("gnu")), "gnu");
    assert_eq!(place.read("linked"), "gnu");
    assert!(place.exists(&format!("{}/f/ustar", "p".repeat(60))));
    assert!(!place.exists("short"));
}

#[test]
fn sparse_files_of_all_four_forms_have_holes() {
    let place = Place::new();
    let size = 1_000_000u64;
    let mut old = Header {
        size: 1024,
        ..Header::new(b'S', "old")
    }
    .block();
    old[257..265].copy_from_slice(b"ustar  \0");
    for (at, text) in [
        (386, "00000001000"),
        (398, "00000001000"),
        (410, "00000100000"),
        (422, "00000001000"),
    ] {
        old[at..at + 11].copy_from_slice(text.as_bytes());
    }
    old[483..494].copy_from_slice(format!("{size:011o}").as_bytes());
    sum(&mut old);
    let data = [[b'a'; 512], [b'b'; 512]].concat();
    let real = size.to_string();
    let map = format!("{:\0<512}", "2\n512\n512\n32768\n512\n");
    let with_map = [map.as_bytes(), &data].concat();
    let archive = Archive::new()
        .raw(old, &data)
        .records(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.numblocks", b"2"),
            ("GNU.sparse.offset", b"512"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", b"32768"),
            ("GNU.sparse.numbytes", b"512"),
        ])
        .entry(Header::new(b'0', "0.0"), &data)
        .records(&[
            ("GNU.sparse.size", real.as_bytes()),
            ("GNU.sparse.map", b"512,512,32768,512"),
            ("GNU.sparse.name", b"0.1"),
        ])
        .entry(Header::new(b'0', "GNUSparseFile.0/0.1"), &data)
        .records(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"1.0"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ])
        .entry(Header::new(b'0', "GNUSparseFile.0/1.0"), &with_map)
        .file("after", "as it is");
    place.unpack(&archive).unwrap();
    for name in ["old", "0.0", "0.1", "1.0"] {
        let content = std::fs::read(place.layer().join(name)).unwrap();
        assert_eq!(content.len() as u64, size, "{name}");
        let a = content.iter().filter(|byte| **byte == b'a').count();
        assert_eq!((content[512], content[32768], a), (b'a', b'b', 512), "{name}");
        assert!(
            metadata(&place.layer().join(name)).blocks() < 100,
            "{name}: no holes"
        );
    }
    assert_eq!(place.read("after"), "as it is");
}

#[test]
fn attributes_are_set_but_for_those_of_the_node() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // VFS_CAP_REVISION_2 | EFFECTIVE, CAP_NET_RAW
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let archive = Archive::new()
        .records(&[
            ("SCHILY.xattr.user.note", b"one"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"system_u:object_r:admin_t:s0"),
        ])
        .entry(
            Header {
                uid: 1000,
                ..Header::new(b'0', "ping")
            },
            b"x",
        )
        .records(&[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.note", b"two"),
        ])
        .directory("d", 0o755);
    place.unpack(&archive).unwrap();
    let file = std::fs::File::open(place.layer().join("ping")).unwrap();
    assert_eq!(xattr::get(&file, c"user.note").unwrap().unwrap(), b"one");
    assert_eq!(
        xattr::get(&file, c"security.capability").unwrap().unwrap(),
        capability
    );
    assert_eq!(xattr::list(&file).unwrap().len(), 2);
    let directory = std::fs::File::open(place.layer().join("d")).unwrap();
    assert_eq!(xattr::list(&directory).unwrap(), [c"user.note".to_owned()]);
}

#[test]
fn whiteouts_are_marks_whatever_order_they_come_in() {
    if !is_root() {
        return;
    }
    let is_mark = |place: &Place, name: &str| {
        let stat = metadata(&place.layer().join(name));
        stat.file_type().is_char_device() && stat.rdev() == 0
    };
    for turned in [false, true] {
        let place = Place::new();
        let add =
            |archive: Archive, first: &dyn Fn(Archive) -> Archive, second: &dyn Fn(Archive) -> Archive| {
                if turned {
                    first(second(archive))
                } else {
                    second(first(archive))
                }
            };
        let archive = Archive::new().directory("d", 0o755).file("d/.wh.gone", "");
        // A name that is hidden, and is here too.
        let archive = add(archive, &|a| a.file("d/.wh.both", ""), &|a| {
            a.file("d/both", "new")
        });
        let archive = add(archive, &|a| a.file("d/.wh.sub", ""), &|a| {
            a.directory("d/sub", 0o700)
        });
        let archive = add(archive, &|a| a.file("o/.wh..wh..opq", ""), &|a| {
            a.file("o/new", "new")
        });
        // A directory that no entry names, where something is hidden.
        let archive = add(archive, &|a| a.file(".wh.deep", ""), &|a| {
            a.file("deep/in/it", "new")
        });
        let archive = archive
            .file(".wh..wh.plnk/1.2", "aufs")
            .file(".wh..wh.aufs", "aufs");
        let summary = place.unpack(&archive).unwrap();
        assert!(is_mark(&place, "d/gone"));
        assert_eq!(place.read("d/both"), "new");
        assert!(place.layer().join("d/sub").is_dir());
        assert_eq!(place.read("deep/in/it"), "new");
        assert_eq!(
            summary.opaque,
            [b"d/sub".to_vec(), b"deep".to_vec(), b"o".to_vec()],
            "{turned}"
        );
        assert!(!place.exists("o/.wh..wh..opq") && !place.exists(".wh..wh.aufs"));
        std::fs::set_permissions(place.layer(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_comes_later_replaces_what_is_there() {
    let place = Place::new();
    let archive = Archive::new()
        .file("a", "1")
        .file("a", "2")
        .directory("d", 0o700)
        .file("d/x/y", "in")
        .file("d", "a file now")
        .file("e", "a file")
        .directory("e", 0o700)
        .file("e/in", "in")
        .symlink("s", "a")
        .file("s", "no link")
        .directory("again", 0o700)
        .file("again/kept", "kept")
        .directory("again", 0o711);
    let summary = place.unpack(&archive).unwrap();
    assert_eq!(place.read("a"), "2");
    assert_eq!(place.read("d"), "a file now");
    assert_eq!(place.read("e/in"), "in");
    assert_eq!(place.read("s"), "no link");
    assert_eq!(place.read("again/kept"), "kept");
    assert_eq!(metadata(&place.layer().join("again")).mode() & 0o777, 0o711);
    // It was a file: what a layer below has of that name is not this directory.
    assert_eq!(summary.opaque, [b"e".to_vec()]);
}

#[test]
fn a_hard_link_may_come_before_its_file_and_may_be_a_layer_belows() {
    let place = Place::new();
    let archive = Archive::new()
        .link("early", "dir/late")
        .link("chained", "early")
        .link("below", "usr/bin/base")
        .file("dir/late", "late")
        .link("dir/late", "dir/late");
    let summary = place.unpack(&archive).unwrap();
    assert_eq!(place.read("early"), "late");
    assert_eq!(place.read("chained"), "late");
    assert_eq!(summary.links, [(b"below".to_vec(), b"usr/bin/base".to_vec())]);
}

#[test]
fn what_is_behind_the_end_belongs_to_the_digest() {
    use sha2::Digest as _;
    let place = Place::new();
    let bytes = [
        &Archive::new().file("a", "1").bytes()[..],
        &[0; 10 * 512],
        b"junk",
    ]
    .concat();
    let summary = place.unpack_bytes(&bytes).unwrap();
    assert_eq!(
        summary.diff_id,
        format!("sha256:{:x}", sha2::Sha256::digest(&bytes))
    );
    // As Go's: an end is not needed.
    place
        .unpack_bytes(&Archive::new().file("b", "1").open_bytes())
        .unwrap();
    place.unpack_bytes(b"").unwrap();
    assert!(place.exists("a") && place.exists("b"));
}
