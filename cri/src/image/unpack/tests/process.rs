//! The unpacker as a process of its own, and the whole way of an image.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use rtc_runtime::sys::xattr;

use super::archive::{Archive, Header};
use super::{Place, is_root, metadata};
use crate::config::Config;
use crate::error::Result;
use crate::image::{Image, Images, Pulled, Users};

/// What `layer.rs` starts instead of `rtc-cri` in tests.
#[test]
#[ignore = "it is the unpacker of other tests"]
fn the_unpacker() {
    let Ok(arguments) = std::env::var("LAYER") else {
        return;
    };
    let arguments: Vec<std::ffi::OsString> = arguments.split(' ').map(Into::into).collect();
    let _ = super::super::main(arguments.into_iter());
    std::process::exit(0);
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn open(place: &Place) -> Images {
    Images::open(&config(place)).unwrap()
}

fn config(place: &Place) -> Config {
    Config {
        root: place.beside("root"),
        ..Config::default()
    }
}

/// As a pull does it; the uppermost layer is finished first, and waits for those below.
async fn pull(images: &Images, name: &str, layers: &[Archive]) -> Result<Arc<Image>> {
    let diff_ids: Vec<String> = layers.iter().map(Archive::diff_id).collect();
    pull_as(images, name, layers, &diff_ids).await
}

async fn pull_as(images: &Images, name: &str, layers: &[Archive], diff_ids: &[String]) -> Result<Arc<Image>> {
    let wanted = images.layers(diff_ids)?;
    let mut writers = Vec::new();
    for wanted in &wanted {
        writers.push(wanted.begin(GZIP).await?);
    }
    let mut bringing = tokio::task::JoinSet::new();
    for (layer, writer) in layers.iter().zip(writers).rev() {
        let bytes = layer.gzip();
        bringing.spawn(async move {
            let Some(mut writer) = writer else {
                return Ok(());
            };
            for piece in bytes.chunks(1000) {
                writer.write(piece).await?;
            }
            writer.finish().await
        });
    }
    for result in bringing.join_all().await {
        result?;
    }
    let json = serde_json::json!({"rootfs": {"diff_ids": diff_ids}, "config": {"User": name}});
    let json = json.to_string().into_bytes();
    let pulled = Pulled {
        id: format!("sha256:{:x}", <sha2::Sha256 as sha2::Digest>::digest(&json)),
        size: json.len() as u64,
        json,
        tag: Some(format!("registry.example/{name}:1")),
        digest: None,
    };
    images.commit(pulled, wanted).await
}

fn layers_on_disk(place: &Place) -> usize {
    std::fs::read_dir(place.beside("root").join("layers"))
        .unwrap()
        .count()
}

/// What is removed goes in the background.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_mended_by_what_is_below_it() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let base = Archive::new()
        .entry(
            Header {
                mode: 0o711,
                uid: 5,
                ..Header::new(b'5', "./")
            },
            b"",
        )
        .entry(
            Header {
                mode: 0o1777,
                uid: 7,
                ..Header::new(b'5', "tmp")
            },
            b"",
        )
        .records(&[("SCHILY.xattr.user.note", b"kept")])
        .directory("etc", 0o700)
        .file("etc/passwd", "root:x:0:0\n")
        .file("etc/group", "root:x:0:\n")
        .symlink("etc/alias", "passwd")
        .file("gone/a", "a")
        .file("opaque/a", "a")
        .entry(
            Header {
                mode: 0o4755,
                ..Header::new(b'0', "bin/tool")
            },
            b"tool",
        );
    let top = Archive::new()
        .file("tmp/new", "new")
        .file("etc/group", "changed")
        .file(".wh.gone", "")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/b", "b")
        .link("bin/same", "bin/none")
        .link("bin/same", "bin/tool")
        .link("bin/other", "bin/tool")
        .link("bin/third", "bin/other")
        .link("etc/link", "etc/alias")
        .symlink("passwd", "/etc/../../etc/passwd")
        .symlink("secret", "../../../../../../secret");
    let image = pull(&images, "a", &[base, top]).await.unwrap();
    let upper = image.layers[1].clone();
    let at = |name: &str| metadata(&upper.join(name));
    assert_eq!((at("tmp").mode() & 0o7777, at("tmp").uid()), (0o1777, 7));
    assert_eq!(
        (metadata(&upper).mode() & 0o7777, metadata(&upper).uid()),
        (0o711, 5)
    );
    assert_eq!(at("etc").mode() & 0o7777, 0o700);
    let etc = std::fs::File::open(upper.join("etc")).unwrap();
    assert_eq!(xattr::get(&etc, c"user.note").unwrap().unwrap(), b"kept");
    let opaque = std::fs::File::open(upper.join("opaque")).unwrap();
    assert_eq!(
        xattr::get(&opaque, c"trusted.overlay.opaque").unwrap().unwrap(),
        b"y"
    );
    assert_eq!(at("bin/same").mode() & 0o7777, 0o4755);
    // One file, and nothing was copied.
    let tool = metadata(&image.layers[0].join("bin/tool"));
    assert_eq!((tool.ino(), tool.nlink()), (at("bin/same").ino(), 4));
    assert_eq!(at("bin/other").ino(), tool.ino());
    assert_eq!(
        std::fs::read_link(upper.join("etc/link")).unwrap(),
        Path::new("passwd")
    );
    let read = async |path: &str| images.read_file(&image, Path::new(path), 100).await.unwrap();
    assert_eq!(read("/etc/passwd").await.unwrap(), b"root:x:0:0\n");
    assert_eq!(read("passwd").await.unwrap(), b"root:x:0:0\n");
    assert_eq!(read("/etc/group").await.unwrap(), b"changed");
    assert_eq!(read("/bin/same").await.unwrap(), b"tool");
    for nothing in [
        "/gone/a",
        "/opaque/a",
        "/etc",
        "/secret",
        "/etc/passwd/x",
        "/none",
    ] {
        assert_eq!(read(nothing).await, None, "{nothing}");
    }
    assert!(
        images
            .read_file(&image, Path::new("/etc/passwd"), 3)
            .await
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_below_a_link_of_a_lower_layer_comes_to_where_it_leads() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let base = Archive::new()
        .directory("usr/lib", 0o711)
        .file("usr/lib/old", "old")
        .directory("usr/lib/sub", 0o700)
        .file("usr/lib/hidden/a", "a")
        .symlink("lib", "usr/lib")
        .symlink("usr/lib64", "../../../lib")
        .symlink("usr/lib/round", "round")
        .symlink("out", "../../../../..")
        .symlink("replaced", "usr")
        .symlink("usr/itself", ".")
        .file("some/x", "x");
    let top = Archive::new()
        .file("lib/new", "new")
        .file("lib/sub/new", "new")
        .file("lib/.wh.old", "")
        .file("lib/hidden/.wh..wh..opq", "")
        .link("lib/linked", "some/x")
        .file("usr/lib64/other", "other")
        .file("usr/lib/round/a", "a")
        .file("out/secret", "inside")
        .file("usr/itself/itself/deep", "deep")
        .directory("replaced", 0o755)
        .file("replaced/lib/a", "a");
    let image = pull(&images, "a", &[base, top]).await.unwrap();
    let upper = &image.layers[1];
    for moved in ["lib", "usr/lib64", "out", "usr/itself", ".rtc-0"] {
        assert!(!upper.join(moved).exists(), "{moved}");
    }
    let read = async |path: &str| images.read_file(&image, Path::new(path), 100).await.unwrap();
    for (path, expected) in [
        ("usr/lib/new", "new"),
        ("lib/sub/new", "new"),
        ("usr/lib/linked", "x"),
        ("lib/other", "other"),
        ("usr/lib/round/a", "a"),
        ("secret", "inside"),
        ("usr/deep", "deep"),
        ("replaced/lib/a", "a"),
    ] {
        assert_eq!(read(path).await.as_deref(), Some(expected.as_bytes()), "{path}");
    }
    for gone in ["lib/old", "lib/hidden/a", "replaced/lib/new"] {
        assert_eq!(read(gone).await, None, "{gone}");
    }
    assert_eq!(metadata(&upper.join("usr/lib")).mode() & 0o7777, 0o711);
    assert_eq!(metadata(&upper.join("usr/lib/sub")).mode() & 0o7777, 0o700);
    assert_eq!(
        std::fs::read(place.layer().join("../secret")).unwrap(),
        b"untouched"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_shared_and_go_with_the_last_who_uses_them() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = Arc::new(open(&place));
    let base = Archive::new().file("a", "base");
    let second = |text| [base.clone(), Archive::new().file("b", text)];
    let (one, two) = (second("1"), second("2"));
    let (first, other) = tokio::join!(pull(&images, "one", &one), pull(&images, "two", &two));
    let (first, other) = (first.unwrap(), other.unwrap());
    assert_eq!(first.layers[0], other.layers[0]);
    assert_eq!(layers_on_disk(&place), 3);
    let mounts = images.prepare("c1", &first, None).await.unwrap();
    assert!(
        mounts[0]
            .options
            .iter()
            .any(|option| option.starts_with("lowerdir="))
    );
    images.forget("registry.example/one:1").await.unwrap();
    images.forget("registry.example/one:1").await.unwrap();
    assert!(images.find("registry.example/one:1").is_none());
    assert!(first.layers[1].is_dir(), "a container runs from it");
    // Another server finds the same.
    drop(images);
    let images = open(&place);
    assert_eq!(images.find(&other.id).unwrap().tags, ["registry.example/two:1"]);
    assert!(first.layers[1].is_dir());
    images.keep_only(&[]).await;
    eventually("the layer goes with its container", || !first.layers[1].exists()).await;
    assert!(first.layers[0].is_dir(), "another image has it");
    images.forget(&other.id).await.unwrap();
    eventually("nothing is left", || layers_on_disk(&place) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_all_its_layers_after_a_restart_when_one_is_in_no_image_any_more() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let base = Archive::new().file("a", "base");
    let second = |text| [base.clone(), Archive::new().file("b", text)];
    let first = pull(&images, "one", &second("1")).await.unwrap();
    let other = pull(&images, "two", &second("2")).await.unwrap();
    images.prepare("c1", &first, None).await.unwrap();
    images.forget(&first.id).await.unwrap();
    drop(images);
    let images = open(&place);
    images.forget(&other.id).await.unwrap();
    eventually("the other image's own layer goes", || !other.layers[1].exists()).await;
    // Whatever else was to be removed came first.
    images.keep_only(&["c1".to_owned()]).await;
    assert!(first.layers.iter().all(|layer| layer.is_dir()), "c1 runs on them");
    // Nobody knows any more what is in that layer.
    let again = pull(&images, "one", &second("1")).await.unwrap();
    assert_ne!(again.layers[1], first.layers[1]);
    images.discard("c1").await.unwrap();
    eventually("its layer goes with c1", || !first.layers[1].exists()).await;
    assert!(again.layers.iter().all(|layer| layer.is_dir()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_a_layer_that_was_lost_is_not_given_to_another() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let lost = pull(&images, "a", &[Archive::new().file("a", "a")])
        .await
        .unwrap();
    drop(images);
    std::fs::remove_dir_all(lost.layers[0].parent().unwrap()).unwrap();
    let images = open(&place);
    assert!(images.all().is_empty());
    let other = pull(&images, "b", &[Archive::new().file("b", "b")])
        .await
        .unwrap();
    assert_ne!(other.layers, lost.layers);
    drop(images);
    let ids: Vec<String> = open(&place).all().iter().map(|image| image.id.clone()).collect();
    assert_eq!(ids, std::slice::from_ref(&other.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_stands_still_does_not_stop_another_one() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let layers: Vec<Archive> = ["a", "b", "c"].map(|name| Archive::new().file(name, name)).into();
    let diff_ids: Vec<String> = layers.iter().map(Archive::diff_id).collect();
    // It has begun with all; the second layer it has whole.
    let hostile = images.layers(&diff_ids).unwrap();
    let mut writers = Vec::new();
    for (wanted, layer) in hostile.iter().zip(&layers) {
        let mut writer = wanted.begin(GZIP).await.unwrap().unwrap();
        writer.write(&layer.gzip()[..20]).await.unwrap();
        writers.push(writer);
    }
    let mut second = writers.remove(1);
    second.write(&layers[1].gzip()[20..]).await.unwrap();
    let second = tokio::spawn(second.finish());
    let begun = std::time::Instant::now();
    let image = pull(&images, "a", &layers).await.unwrap();
    assert!(
        begun.elapsed().as_secs() < 5,
        "one wait for all: {:?}",
        begun.elapsed()
    );
    // It comes to its end all the same, and has the layers of who was first.
    writers[0].write(&layers[0].gzip()[20..]).await.unwrap();
    writers.remove(0).finish().await.unwrap();
    second.await.unwrap().unwrap();
    let number = |at: usize| super::super::super::layers::Layers::number(&image.layers[at]);
    assert_eq!((hostile[0].number(), hostile[1].number()), (number(0), number(1)));
    drop((writers, hostile));
    eventually("nothing else is left", || layers_on_disk(&place) == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_where_another_one_was_given_up() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let layers = [Archive::new().file("a", "a"), Archive::new().file("b", "b")];
    let diff_ids: Vec<String> = layers.iter().map(Archive::diff_id).collect();
    let other = images.layers(&diff_ids).unwrap();
    let mut lower = other[0].begin(GZIP).await.unwrap().unwrap();
    lower.write(&layers[0].gzip()[..20]).await.unwrap();
    let wanted = images.layers(&diff_ids).unwrap();
    let mut upper = wanted[1].begin(GZIP).await.unwrap().unwrap();
    upper.write(&layers[1].gzip()).await.unwrap();
    let upper = tokio::spawn(upper.finish());
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    // The upper one waits for this pull's own.
    drop((lower, other));
    let mut lower = wanted[0].begin(GZIP).await.unwrap().unwrap();
    lower.write(&layers[0].gzip()).await.unwrap();
    lower.finish().await.unwrap();
    upper.await.unwrap().unwrap();
    assert!(wanted.iter().all(|wanted| wanted.number().is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_goes_with_its_image() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let kept = pull(&images, "a", &[]).await.unwrap();
    let removed = pull(&images, "b", &[]).await.unwrap();
    images.forget(&removed.id).await.unwrap();
    let names = || {
        let entries = std::fs::read_dir(place.beside("root").join("configurations")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<Vec<String>>()
    };
    let expected = [kept.id.strip_prefix("sha256:").unwrap()];
    assert_eq!(names(), expected);
    // Of a pull that a server did not end.
    std::fs::write(place.beside("root").join("configurations/12ab"), "{}").unwrap();
    drop(images);
    let images = open(&place);
    assert_eq!(names(), expected);
    assert!(images.find(&kept.id).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_layer_is_an_error_and_nothing_is_left() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let good = Archive::new().file("a", "a");
    let bad = Archive::new().file("x/.wh.", "");
    let error = pull(&images, "a", &[good.clone(), bad.clone()])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("whiteout of nothing"), "{error}");
    // What was downloaded is not what the configuration says.
    let wrong = [bad.diff_id()];
    let error = pull_as(&images, "a", std::slice::from_ref(&good), &wrong)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("do not belong together"), "{error}");
    // A pull that is given up.
    let wanted = images.layers(&[good.diff_id()]).unwrap();
    let mut writer = wanted[0].begin(GZIP).await.unwrap().unwrap();
    writer.write(&good.gzip()[..20]).await.unwrap();
    drop((writer, wanted));
    eventually("nothing is left", || layers_on_disk(&place) == 0).await;
    assert!(images.all().is_empty());
    // And then it works.
    pull(&images, "a", &[good]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_layer_is_its_containers_and_is_owned_as_its_users_are_mapped() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let layer = Archive::new().entry(
        Header {
            mode: 0o750,
            uid: 3,
            ..Header::new(b'5', "./")
        },
        b"",
    );
    let image = pull(&images, "a", &[layer]).await.unwrap();
    let users = Users {
        uids: vec![(0, 100_000, 65536)],
        gids: vec![(0, 200_000, 65536)],
    };
    let mounts = images.prepare("c1", &image, Some(&users)).await.unwrap();
    assert!(mounts[0].options.contains(&"uidmap=0:100000:65536".to_owned()));
    let upper = place.beside("root").join("containers/c1/fs");
    let stat = metadata(&upper);
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode() & 0o7777),
        (100_003, 200_000, 0o750)
    );
    std::fs::write(upper.join("data"), vec![1; 100_000]).unwrap();
    let usage = images.usage("c1").await.unwrap();
    assert!(usage.bytes >= 100_000 && usage.inodes == 2, "{usage:?}");
    images.discard("c1").await.unwrap();
    images.discard("c1").await.unwrap();
    assert!(!upper.exists() && images.usage("c1").await.is_none());
    for hostile in ["", "..", "a/b", "gone-1"] {
        assert!(
            images.prepare(hostile, &image, None).await.is_err(),
            "{hostile:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_a_volume_until_its_container_goes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let base = Archive::new()
        .file("d/a", "a")
        .symlink("out", "../../../../secret")
        .symlink("in", "/d");
    let image = pull(&images, "a", &[base.clone(), Archive::new().file("d/b", "b")])
        .await
        .unwrap();
    let single = pull(&images, "b", &[base]).await.unwrap();
    let volume = images.mount_volume("c1", &image, "", None).await.unwrap().path;
    assert_eq!(std::fs::read(volume.join("d/a")).unwrap(), b"a");
    assert_eq!(std::fs::read(volume.join("d/b")).unwrap(), b"b");
    assert!(
        std::fs::write(volume.join("d/c"), "c").is_err(),
        "it is read-only"
    );
    let one = images
        .mount_volume("c1", &single, "in/a", None)
        .await
        .unwrap()
        .path;
    assert_eq!(std::fs::read(&one).unwrap(), b"a");
    assert!(std::fs::write(&one, "c").is_err(), "it is read-only");
    for wrong in ["none", "out", "d/../../x"] {
        let error = images.mount_volume("c1", &single, wrong, None).await.unwrap_err();
        assert!(error.to_string().contains(wrong), "{error}");
    }
    images.forget(&image.id).await.unwrap();
    assert_eq!(std::fs::read(volume.join("d/b")).unwrap(), b"b");
    images.discard("c1").await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(place.beside("root").to_str().unwrap()),
        "{mounts}"
    );
    eventually("its layers went", || layers_on_disk(&place) == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_has_one_image() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let images = open(&place);
    let old = pull(&images, "a", &[Archive::new().file("a", "1")])
        .await
        .unwrap();
    let new = pull(&images, "a", &[Archive::new().file("a", "2")])
        .await
        .unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(images.find("registry.example/a:1").unwrap().id, new.id);
    assert!(images.find(&old.id).unwrap().tags.is_empty());
    let digits = new.id.strip_prefix("sha256:").unwrap();
    for name in [new.id.as_str(), digits, &digits[..12]] {
        assert_eq!(images.find(name).unwrap().id, new.id, "{name}");
    }
    assert!(images.find("").is_none() && images.find("registry.example/a:2").is_none());
}
