//! Images that try to reach what is outside: each published way has a test with its number.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};

use super::{Bundle, at, bind, config, proc_and};

#[test]
fn cve_2021_30465_a_destination_that_is_a_link_stays_inside() {
    let bundle = Bundle::new();
    symlink(bundle.path("outside"), bundle.path("rootfs/vol")).unwrap();
    symlink("../../../../../../up", bundle.path("rootfs/climb")).unwrap();
    fs::create_dir(bundle.path("rootfs/up")).unwrap();
    let config = proc_and(&[
        json!({"destination": "/vol/data", "type": "tmpfs", "source": "one"}),
        json!({"destination": "/climb", "type": "tmpfs", "source": "two"}),
    ]);
    bundle
        .run(&config, |_| {
            let inside = format!("{}/data", fs::read_link("/vol").unwrap().display());
            assert_eq!(at(&inside).source, "one");
            assert_eq!(at("/up").source, "two");
        })
        .unwrap();
    assert_eq!(fs::read_dir(bundle.path("outside")).unwrap().count(), 0);
}

#[test]
fn cve_2023_27561_and_2025_54867_linked_proc_and_sys_are_refused() {
    for name in ["proc", "sys"] {
        let bundle = Bundle::new();
        let path = bundle.path("rootfs").join(name);
        fs::remove_dir(&path).unwrap();
        symlink("/tmp", &path).unwrap();
        let error = bundle.error(&config(&json!([])));
        assert!(
            error.contains(&format!("/{name} must be mounted on ordinary directory")),
            "{error}"
        );
    }
}

#[test]
fn cve_2019_16884_nothing_covers_the_inside_of_proc() {
    let bundle = Bundle::new();
    symlink("/proc/self/attr", bundle.path("rootfs/data")).unwrap();
    fs::write(bundle.path("outside/stat"), "lxcfs").unwrap();
    let inside = |mount: Value| bundle.error(&proc_and(&[mount]));
    let error = inside(bind(&bundle.source("outside"), "/data", &["rbind"]));
    assert!(
        error.contains("/data cannot be mounted because it is inside /proc"),
        "{error}"
    );
    let error = inside(json!({"destination": "/proc/sys", "type": "tmpfs"}));
    assert!(
        error.contains("/proc/sys cannot be mounted because it is inside /proc"),
        "{error}"
    );
    let error = inside(bind(&bundle.source("outside"), "/proc", &["rbind"]));
    assert!(
        error.contains("/proc cannot be mounted because it is not of type proc"),
        "{error}"
    );
    let lxcfs = bind(&bundle.source("outside/stat"), "/proc/stat", &["bind"]);
    bundle
        .run(&proc_and(&[lxcfs]), |_| {
            assert_eq!(fs::read_to_string("/proc/stat").unwrap(), "lxcfs");
        })
        .unwrap();
}

#[test]
fn cve_2025_31133_a_false_null_device_masks_nothing() {
    let bundle = Bundle::new();
    symlink("/proc/kcore", bundle.path("outside/null")).unwrap();
    let mut config = proc_and(&[bind(&bundle.source("outside"), "/dev", &["rbind"])]);
    config["linux"]["maskedPaths"] = json!(["/proc/stat"]);
    let error = bundle.error(&config);
    assert!(
        error.contains("mask /proc/stat: /dev/null is not the null device"),
        "{error}"
    );
    fs::remove_file(bundle.path("outside/null")).unwrap();
    fs::write(bundle.path("outside/null"), "").unwrap();
    assert!(bundle.error(&config).contains("is not the null device"));
    // The same in the image's own /dev, where the runtime makes the devices.
    symlink("/proc/kcore", bundle.path("rootfs/dev/null")).unwrap();
    config["mounts"].as_array_mut().unwrap().pop();
    let error = bundle.error(&config);
    assert!(
        error.contains("device /dev/null: the image has something else there"),
        "{error}"
    );
}

#[test]
fn cve_2025_52565_a_linked_console_is_covered_not_followed() {
    let bundle = Bundle::new();
    fs::write(bundle.path("rootfs/etc/target"), "safe").unwrap();
    symlink("/etc/target", bundle.path("rootfs/dev/console")).unwrap();
    let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                     "options": ["newinstance", "ptmxmode=0666"]});
    bundle
        .run(&proc_and(&[pts]), |plan| {
            let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY;
            let master = nix::pty::posix_openpt(flags).unwrap();
            nix::pty::unlockpt(&master).unwrap();
            let slave = crate::sys::tty::open_peer(&master).unwrap();
            plan.console(slave.as_fd()).unwrap();
            // First: a terminal would be waited for.
            assert_eq!(at("/dev/console").fs_type, "devpts");
            assert_eq!(fs::read_to_string("/etc/target").unwrap(), "safe");
        })
        .unwrap();
}

#[test]
fn cve_2026_41579_a_linked_dev_is_refused_and_nothing_is_written_through_it() {
    let bundle = Bundle::new();
    fs::remove_dir(bundle.path("rootfs/dev")).unwrap();
    symlink("/vol", bundle.path("rootfs/dev")).unwrap();
    let error = bundle.error(&proc_and(&[bind(&bundle.source("outside"), "/vol", &["rbind"])]));
    assert!(error.contains("/dev must be an ordinary directory"), "{error}");
    assert_eq!(fs::read_dir(bundle.path("outside")).unwrap().count(), 0);
}

#[test]
fn cve_2024_45310_nothing_is_made_outside_for_a_mount() {
    let bundle = Bundle::new();
    symlink(bundle.path("outside"), bundle.path("rootfs/vol")).unwrap();
    fs::write(bundle.path("file"), "").unwrap();
    let config = proc_and(&[
        bind(&bundle.source("file"), "/vol/a/b/file", &["bind"]),
        json!({"destination": "/vol/c/d", "type": "tmpfs"}),
    ]);
    bundle.run(&config, |_| ()).unwrap();
    assert_eq!(fs::read_dir(bundle.path("outside")).unwrap().count(), 0);
}

/// How often a race is run: `RTC_RACE_ROUNDS` of what is usual.
fn rounds() -> u32 {
    std::env::var("RTC_RACE_ROUNDS").map_or(200, |rounds| rounds.parse().unwrap())
}

#[test]
fn cve_2021_30465_no_race_leads_outside() {
    let bundle = Bundle::new();
    let (directory, link) = (bundle.path("rootfs/vol"), bundle.path("rootfs/link"));
    fs::create_dir(&directory).unwrap();
    symlink(bundle.path("outside"), &link).unwrap();
    fs::write(bundle.path("file"), "").unwrap();
    let config = proc_and(&[
        json!({"destination": "/vol/a/b", "type": "tmpfs", "source": "t"}),
        bind(&bundle.source("file"), "/vol/a/c/file", &["bind"]),
    ]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat2(
                    AT_FDCWD,
                    &directory,
                    AT_FDCWD,
                    &link,
                    RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
            }
        });
        for _ in 0..rounds() {
            // It may fail, as long as it stays inside.
            drop(bundle.run(&config, |_| ()));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(bundle.path("outside")).unwrap().count(), 0);
}
