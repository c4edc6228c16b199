//! Layers that mean harm. Each is either refused, or harmless; never does anything happen outside of the layer.

use std::os::unix::fs::MetadataExt as _;

use super::archive::{Header, sum};
use super::*;

fn error(archive: &Archive) -> String {
    format!("{:#}", Place::new().unpack(archive).unwrap_err())
}

#[test]
fn names_with_two_dots_and_absolute_names_stay_inside() {
    let place = Place::new();
    let archive = Archive::new()
        .file("../../secret", "a")
        .file("/secret2", "b")
        .file("d/../../../secret3", "c")
        .file("../secret/../x", "d")
        .directory("..", 0o755)
        .directory("/", 0o755)
        .file("a/./../a//b", "e");
    place.unpack(&archive).unwrap();
    for (name, content) in [
        ("secret", "a"),
        ("secret2", "b"),
        ("secret3", "c"),
        ("x", "d"),
        ("a/b", "e"),
    ] {
        assert_eq!(place.read(name), content);
    }
}

#[test]
fn a_symlink_in_the_path_of_a_later_entry_leads_nowhere_but_into_the_layer() {
    let place = Place::new();
    let outside = place.layer().parent().unwrap().display().to_string();
    let archive = Archive::new()
        .symlink("up", "..")
        .file("up/secret", "1")
        .symlink("far", "../../../../../../../../..")
        .file("far/etc/rtc-hostile", "2")
        .symlink("abs", &outside)
        .file("abs/secret", "3")
        .symlink("one", "two")
        .symlink("two", "real/dir")
        .file("one/file", "4")
        .symlink("last", "../secret")
        .file("last", "5");
    place.unpack(&archive).unwrap();
    assert_eq!(place.read("secret"), "1");
    assert_eq!(place.read("etc/rtc-hostile"), "2");
    assert_eq!(
        place.read(&format!("{}/secret", outside.trim_start_matches('/'))),
        "3"
    );
    assert_eq!(place.read("real/dir/file"), "4");
    assert_eq!(place.read("last"), "5");
    assert!(!Path::new("/etc/rtc-hostile").exists());
}

#[test]
fn symlinks_that_go_round_are_refused() {
    let archive = Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", "");
    assert!(error(&archive).contains("symbolic links"), "{}", error(&archive));
}

#[test]
fn a_hard_link_leads_nowhere_but_into_the_layer() {
    let place = Place::new();
    let archive = Archive::new()
        .link("a", "../secret")
        .link("b", "/etc/passwd")
        .symlink("up", "..")
        .link("c", "up/secret")
        .symlink("l", "/etc/passwd")
        .link("d", "l");
    let summary = place.unpack(&archive).unwrap();
    assert_eq!(
        summary.links.len(),
        3,
        "they are looked for in the layers below: {summary:?}"
    );
    // To a symbolic link: the link itself.
    assert_eq!(
        std::fs::read_link(place.layer().join("d")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        metadata(&place.layer().parent().unwrap().join("secret")).nlink(),
        1
    );
    let archive = Archive::new().directory("d", 0o755).link("x", "d");
    assert!(error(&archive).contains("link"));
    let archive = Archive::new().link("x", "/");
    assert!(error(&archive).contains("hard link to the root"));
}

#[test]
fn a_whiteout_of_what_no_name_can_be_is_refused() {
    for name in [".wh.", "d/.wh.", ".wh..", "d/.wh...", "d/../.wh.."] {
        let archive = Archive::new().directory("d", 0o755).file(name, "");
        assert!(error(&archive).contains("whiteout of nothing"), "{name}");
    }
    let place = Place::new();
    // Another's name of aufs: nothing is done.
    place
        .unpack(
            &Archive::new()
                .file(".wh..wh.x/../../secret2", "")
                .file(".wh..wh.", ""),
        )
        .unwrap();
    assert!(!place.exists("x"));
}

#[test]
fn a_whiteout_through_a_symlink_stays_inside() {
    let place = Place::new();
    let archive = Archive::new()
        .symlink("up", "..")
        .file("up/.wh.secret", "")
        .file("up/.wh..wh..opq", "");
    if is_root() {
        let summary = place.unpack(&archive).unwrap();
        assert!(place.exists("secret"));
        assert_eq!(summary.opaque, [b"".to_vec()]);
    }
}

#[test]
fn the_root_can_only_be_a_directory() {
    for archive in [
        Archive::new().file(".", "x"),
        Archive::new().symlink("/", "/etc"),
        Archive::new().link("a/..", "b"),
        Archive::new().file("", "x"),
    ] {
        assert!(error(&archive).contains("root of a layer"));
    }
}

#[test]
fn names_that_are_too_long_or_have_a_nul_are_refused() {
    let archive = Archive::new()
        .records(&[("path", "a/".repeat(3000).as_bytes())])
        .file("x", "");
    assert!(error(&archive).contains("6000 bytes"));
    let archive = Archive::new()
        .records(&[("path", "a".repeat(256).as_bytes())])
        .file("x", "");
    assert!(
        error(&archive).contains("File name too long"),
        "{}",
        error(&archive)
    );
    let archive = Archive::new().records(&[("path", b"a\0b")]).file("x", "");
    assert!(error(&archive).contains("NUL"));
    let header = Header {
        size: 1 << 30,
        ..Header::new(b'L', "x")
    };
    let archive = Archive::new().raw(header.block(), b"");
    assert!(error(&archive).contains("GNU long name"));
}

#[test]
fn directories_deeper_than_any_path_can_be_replaced_and_removed() {
    let place = Place::new();
    let deep = "d/".repeat(1000);
    let mut archive = Archive::new();
    let mut name = String::from("top");
    for number in 0..5 {
        archive = archive
            .records(&[("path", format!("{name}/{deep}x").as_bytes())])
            .file("f", "")
            .records(&[("linkpath", format!("{name}/{deep}").as_bytes())])
            .symlink(&format!("s{number}"), "t");
        name = format!("s{number}");
    }
    let error = format!(
        "{:#}",
        place
            .unpack(&archive)
            .err()
            .unwrap_or_else(|| anyhow::anyhow!(""))
    );
    assert!(
        error.is_empty() || error.contains("too long") || error.contains("remembered"),
        "{error}"
    );
    place.unpack(&Archive::new().file("top", "a file now")).unwrap();
    assert_eq!(place.read("top"), "a file now");
}

#[test]
fn a_file_in_the_way_of_a_directory_is_an_error() {
    let archive = Archive::new().file("a", "").file("a/b", "");
    assert!(
        error(&archive).contains("\"a\" is no directory"),
        "{}",
        error(&archive)
    );
}

#[test]
fn ids_that_mean_something_else_are_refused() {
    for uid in [&b"4294967295"[..], b"4294967296", b"-1", b"18446744073709551616"] {
        let archive = Archive::new().records(&[("uid", uid)]).file("a", "");
        assert!(error(&archive).contains("uid"), "{}", error(&archive));
    }
}

#[test]
fn a_bomb_is_refused_before_the_disk_is_full() {
    let place = Place::new();
    let limits = Limits {
        bytes: 10_000,
        entries: 5,
    };
    let large = Archive::new().file("a", &"x".repeat(20_000)).bytes();
    let error = unpack(&large[..], place.root(), limits).unwrap_err();
    assert!(super::super::is_full(&error), "{error:#}");
    let many = (0..10)
        .fold(Archive::new(), |archive, number| {
            archive.file(&number.to_string(), "")
        })
        .bytes();
    let error = unpack(&many[..], place.root(), limits).unwrap_err();
    assert!(super::super::is_full(&error), "{error:#}");
    assert!(format!("{error:#}").contains("more than 5 files"));
}

#[test]
fn what_is_no_file_has_a_limit() {
    let place = Place::new();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let large = vec![0; 20 << 20];
    let behind = [Archive::new().file("a", "").bytes(), large.clone()].concat();
    let label = Header {
        size: large.len() as u64,
        ..Header::new(b'V', "label")
    };
    let label = Archive::new().raw(label.block(), &large).bytes();
    let skipped = Archive::new().entry(Header::new(b'0', ".wh.a"), &large).bytes();
    for bytes in [behind, label, skipped] {
        let error = format!("{:#}", place.unpack_bytes(&zstd(&bytes)).unwrap_err());
        assert!(error.contains("are of no file"), "{error}");
    }
    // A file may be as large.
    let file = Archive::new().entry(Header::new(b'0', "file"), &large).bytes();
    place.unpack_bytes(&zstd(&file)).unwrap();
}

#[test]
fn a_sparse_file_that_is_none_is_refused() {
    for (map, size) in [
        ("512,512,0,512", "10000"),
        ("0,1024", "512"),
        ("0,512", "10000"),
        ("0,18446744073709551615,1,2", "10000"),
        ("0,512,9223372036854775807,512", "18446744073709551615"),
        ("0", "1"),
    ] {
        let archive = Archive::new()
            .records(&[
                ("GNU.sparse.map", map.as_bytes()),
                ("GNU.sparse.size", size.as_bytes()),
            ])
            .file("a", &"x".repeat(1024));
        error(&archive);
    }
    let archive = Archive::new()
        .records(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"10")])
        .file("a", &"9".repeat(512));
    error(&archive);
}

#[test]
fn what_is_no_tar_is_refused() {
    for bytes in [
        &b"not a tar"[..],
        &[b'x'; 512],
        &[0xff; 1024],
        b"BZh91AY",
        b"\x1f\x8bxx",
    ] {
        assert!(Place::new().unpack_bytes(bytes).is_err());
    }
    let mut block = Header::new(b'0', "a").block();
    block[0] = b'b';
    assert!(error(&Archive::new().raw(block, b"")).contains("checksum"));
    let mut block = Header::new(b'0', "a").block();
    block[124] = b'9';
    sum(&mut block);
    assert!(error(&Archive::new().raw(block, b"")).contains("size"));
    assert!(error(&Archive::new().entry(Header::new(b'Z', "a"), b"")).contains("type 'Z'"));
    let cut = Archive::new().file("a", &"x".repeat(5000)).bytes();
    assert!(Place::new().unpack_bytes(&cut[..3000]).is_err());
}

/// xorshift: the same archives in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn path(&mut self) -> String {
        let names = [
            "a",
            "b",
            "c",
            "..",
            ".",
            "",
            "secret",
            ".wh.a",
            ".wh.b",
            ".wh..wh..opq",
            ".wh.",
            "etc",
        ];
        let count = 1 + self.below(5);
        let path: Vec<&str> = (0..count).map(|_| names[self.below(names.len())]).collect();
        let start = ["", "/", "../"][self.below(3)];
        format!("{start}{}", path.join("/"))
    }
}

#[test]
fn random_archives_touch_nothing_outside() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..300 {
        let place = Place::new();
        let limits = Limits {
            bytes: 1 << 20,
            entries: 1000,
        };
        for _ in 0..12 {
            let name = random.path();
            let target = random.path();
            let archive = match random.below(7) {
                0 => Archive::new().directory(&name, 0o755),
                1 | 2 => Archive::new().symlink(&name, &target),
                3 => Archive::new().link(&name, &target),
                _ => Archive::new().file(&name, "hostile"),
            };
            // Each for itself: one that is refused does not end the others.
            let _ = unpack(&archive.bytes()[..], place.root(), limits);
        }
        place.assert_nothing_outside();
    }
}

#[test]
fn random_bytes_do_no_harm() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let good = Archive::new()
        .records(&[("path", b"long"), ("SCHILY.xattr.user.a", b"b")])
        .file("a", "content")
        .symlink("s", "a")
        .link("l", "a")
        .records(&[("GNU.sparse.map", b"0,512"), ("GNU.sparse.size", b"4096")])
        .file("sparse", &"x".repeat(512))
        .bytes();
    for _ in 0..3000 {
        let place = Place::new();
        let mut bytes = good.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
            let header = at / 512 * 512;
            let mut block: [u8; 512] = bytes[header..header + 512].try_into().unwrap();
            sum(&mut block);
            bytes[header..header + 512].copy_from_slice(&block);
        }
        let _ = place.unpack_bytes(&bytes);
    }
}
