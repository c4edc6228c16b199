//! Other containers that share a volume, and images: they exchange directories for symbolic links while a container is made.
//! It may fail or run, but nothing on the host is touched, round after round.
//!
//! `RTC_RACE_ROUNDS` says how often each test tries: some seconds' worth by default, hours' in `hack/nightly`.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::test;
use crate::test::Test;

/// How often each race is run where nothing else is said.
const ROUNDS: u32 = 40;

/// What is on the host and must stay as it is.
struct Outside {
    path: PathBuf,
    /// Where hooks write what they found mounted there.
    found: PathBuf,
    before: Vec<String>,
}

impl Outside {
    fn new(t: &Test) -> Result<Self> {
        let path = t.path("outside");
        fs::create_dir_all(path.join("kept"))?;
        for file in ["null", "secret", "kept/file"] {
            fs::write(path.join(file), "of the host")?;
        }
        let found = t.path("found");
        fs::write(&found, "")?;
        let before = listed(&path)?;
        Ok(Self { path, found, before })
    }

    /// Has the runtime run a hook that sees the container's mounts while the host's tree is still there.
    fn watched<'t>(&self, bundle: Bundle<'t>) -> Bundle<'t> {
        let (path, found) = (self.path.display(), self.found.display());
        let script = format!("grep -F ' {path}' /proc/self/mountinfo >>{found}; true");
        bundle.push(
            "/hooks/createContainer",
            json!({"path": "/bin/sh", "args": ["sh", "-c", script]}),
        )
    }

    fn is_untouched(&self) -> Result {
        let after = listed(&self.path)?;
        ensure!(
            after == self.before,
            "the host's files were changed: {after:#?}, before {:#?}",
            self.before
        );
        let found = fs::read_to_string(&self.found)?;
        ensure!(found.is_empty(), "mounted on the host's directory: {found}");
        Ok(())
    }
}

/// All below a directory: name, mode, owner, content.
fn listed(directory: &Path) -> Result<Vec<String>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let data = fs::symlink_metadata(&path)?;
        let content = if data.is_file() {
            fs::read_to_string(&path)?
        } else {
            String::new()
        };
        list.push(format!(
            "{} {:o} {}:{} {content}",
            path.display(),
            data.mode(),
            data.uid(),
            data.gid()
        ));
        if data.is_dir() {
            list.extend(listed(&path)?);
        }
    }
    list.sort();
    Ok(list)
}

/// Runs the container again and again while two names of the host's are exchanged. Each round ends well, or with an error
/// of the runtime's own.
fn race(t: &Test, one: &Path, other: &Path, bundle: &Bundle<'_>, redirect: &str) -> Result {
    let rounds = match std::env::var("RTC_RACE_ROUNDS") {
        Ok(rounds) => rounds.parse().context("RTC_RACE_ROUNDS")?,
        Err(_) => ROUNDS,
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
                std::thread::yield_now();
            }
        });
        let result = (0..rounds).try_for_each(|round| {
            let mut command = bundle.command("run", &[])?;
            if !redirect.is_empty() {
                command = command.redirect(redirect);
            }
            let output = command.run()?;
            let clean = output.code == 0 || !output.stderr.is_empty() && !output.stderr.contains("panicked");
            ensure!(
                clean && (0..128).contains(&output.code),
                "round {round}: {output}"
            );
            ensure!(
                !t.root.join(&bundle.id).exists(),
                "round {round}: the state is left"
            );
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// A volume with a directory `inner`, and a symlink `exchanged` to somewhere else.
fn volume(t: &Test, target: impl AsRef<Path>) -> Result<PathBuf> {
    let volume = t.path("volume");
    fs::create_dir_all(volume.join("inner"))?;
    symlink(target, volume.join("exchanged"))?;
    Ok(volume)
}

fn with_volume<'t>(t: &'t Test, volume: &Path) -> Bundle<'t> {
    t.bundle()
        .mount("/vol", "bind", &volume.to_string_lossy(), &["bind"])
}

test!(
    fn cve_2024_45310_mount_points_are_not_made_outside_while_a_directory_is_exchanged_for_a_symlink(
        t: &Test,
    ) -> Result {
        let outside = Outside::new(t)?;
        let volume = volume(t, &outside.path)?;
        let (one, other) = (volume.join("inner"), volume.join("exchanged"));
        let file = t.path("file");
        fs::write(&file, "")?;
        let bundle = with_volume(t, &volume)
            .mount("/vol/inner/made/deep", "tmpfs", "tmpfs", &[])
            .mount("/vol/inner/a/file", "bind", &file.to_string_lossy(), &["bind"]);
        race(t, &one, &other, &bundle, "")?;
        outside.is_untouched()
    }
);

test!(
    fn cve_2021_30465_a_mount_does_not_land_outside_while_its_target_is_exchanged_for_a_symlink(
        t: &Test,
    ) -> Result {
        let outside = Outside::new(t)?;
        let volume = volume(t, &outside.path)?;
        let (one, other) = (volume.join("inner"), volume.join("exchanged"));
        let inner = t.path("inner");
        fs::create_dir(&inner)?;
        let bundle = with_volume(t, &volume)
            .mount("/vol/inner", "tmpfs", "tmpfs", &[])
            .mount("/vol/inner", "bind", &inner.to_string_lossy(), &["rbind"]);
        let bundle = outside.watched(bundle);
        race(t, &one, &other, &bundle, "")?;
        outside.is_untouched()
    }
);

test!(
    fn cve_2026_41579_devices_are_not_made_outside_while_dev_is_exchanged_for_a_symlink(t: &Test) -> Result {
        let outside = Outside::new(t)?;
        let image = t.bundle().writable();
        let rootfs = image.rootfs();
        symlink(&outside.path, rootfs.join("exchanged"))?;
        let bundle = outside.watched(super::security::without_mount(image, "/dev"));
        race(t, &rootfs.join("dev"), &rootfs.join("exchanged"), &bundle, "")?;
        outside.is_untouched()
    }
);

test!(
    fn cve_2024_21626_no_working_directory_is_made_outside_while_it_is_exchanged_for_a_descriptor(
        t: &Test,
    ) -> Result {
        let outside = Outside::new(t)?;
        // What the runtime's caller left open, and what the runtime itself may hold at that time.
        let volume = volume(t, "/proc/self/fd/6")?;
        let (one, other) = (volume.join("inner"), volume.join("exchanged"));
        let bundle = with_volume(t, &volume).set("/process/cwd", json!("/vol/inner/made/here"));
        race(t, &one, &other, &bundle, &format!("6<{}", outside.path.display()))?;
        outside.is_untouched()
    }
);

test!(
    fn cve_2025_31133_masks_do_not_land_outside_while_their_paths_are_exchanged(t: &Test) -> Result {
        let outside = Outside::new(t)?;
        let volume = volume(t, &outside.path)?;
        let (one, other) = (volume.join("inner"), volume.join("exchanged"));
        fs::write(one.join("secret"), "")?;
        fs::create_dir(one.join("kept"))?;
        let bundle = outside
            .watched(with_volume(t, &volume))
            .set(
                "/linux/maskedPaths",
                json!(["/vol/inner/secret", "/vol/inner/kept"]),
            )
            .set("/linux/readonlyPaths", json!(["/vol/inner"]));
        race(t, &one, &other, &bundle, "")?;
        outside.is_untouched()
    }
);

test!(
    fn a_null_device_that_comes_and_goes_masks_nothing_of_the_hosts(t: &Test) -> Result {
        let outside = Outside::new(t)?;
        let volume = volume(t, outside.path.join("null"))?;
        fs::remove_dir(volume.join("inner"))?;
        nix::sys::stat::mknod(
            &volume.join("null"),
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::from_bits_truncate(0o666),
            nix::sys::stat::makedev(1, 3),
        )?;
        // /dev is the volume: the runtime makes no devices there.
        let bundle = super::security::without_mount(t.bundle(), "/dev")
            .mount("/dev", "bind", &volume.to_string_lossy(), &["bind"])
            .set("/linux/maskedPaths", json!(["/etc/passwd"]))
            .sh("! [ -s /etc/passwd ] && [ -c /etc/passwd ]");
        race(t, &volume.join("null"), &volume.join("exchanged"), &bundle, "")?;
        outside.is_untouched()
    }
);
