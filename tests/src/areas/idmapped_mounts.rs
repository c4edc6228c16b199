//! Mounts with user and group mappings of their own (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::registry::Result;
use crate::test;
use crate::test::Test;

fn mapping(container: u32, host: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": 1000}])
}

/// A directory with a file that belongs to 7:8.
fn source(t: &Test) -> Result<PathBuf> {
    let source = t.path("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "x")?;
    chown(&source, Some(7), Some(8))?;
    chown(source.join("file"), Some(7), Some(8))?;
    Ok(source)
}

fn mount(source: &PathBuf, uids: &Value, gids: &Value) -> Value {
    json!({"destination": "/tmp", "source": source, "options": ["bind"], "uidMappings": uids, "gidMappings": gids})
}

test!(
    fn owners_on_an_idmapped_mount_are_the_mapped_ones(t: &Test) -> Result {
        let source = source(t)?;
        let bundle = t.bundle().push(
            "/mounts",
            mount(&source, &mapping(0, 100_000), &mapping(0, 200_000)),
        );
        bundle
            .args(&["stat", "-c", "%u:%g", "/tmp/file"])
            .run()?
            .prints("100007:200008")?;
        Ok(())
    }
);

test!(
    fn files_made_on_an_idmapped_mount_belong_to_the_unmapped_owner(t: &Test) -> Result {
        let source = source(t)?;
        let user = json!({"uid": 100_007, "gid": 200_008});
        let bundle = t.bundle().set("/process/user", user);
        let bundle = bundle.push(
            "/mounts",
            mount(&source, &mapping(0, 100_000), &mapping(0, 200_000)),
        );
        bundle.args(&["touch", "/tmp/new"]).run()?.ok()?;
        let made = fs::metadata(source.join("new"))?;
        ensure!(
            (made.uid(), made.gid()) == (7, 8),
            "{}:{}",
            made.uid(),
            made.gid()
        );
        Ok(())
    }
);

test!(
    fn an_idmapped_mount_with_a_user_namespace_shows_the_containers_ids(t: &Test) -> Result {
        let source = source(t)?;
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let bundle = t.bundle().namespace(json!({"type": "user"}));
        for name in ["", "tmp", "etc"] {
            chown(bundle.rootfs().join(name), Some(100_000), Some(100_000))?;
        }
        let bundle = bundle
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map.clone());
        let bundle = bundle.push("/mounts", mount(&source, &map, &map));
        bundle
            .args(&["stat", "-c", "%u:%g", "/tmp/file"])
            .run()?
            .prints("7:8")?;
        Ok(())
    }
);

test!(
    fn an_idmapped_mount_that_is_no_bind_is_refused(t: &Test) -> Result {
        let mount = json!({
            "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "uidMappings": mapping(0, 1000), "gidMappings": mapping(0, 1000),
        });
        t.bundle()
            .push("/mounts", mount)
            .run()?
            .fails_naming(&["mounts", "bind", "tmpfs"])?;
        Ok(())
    }
);

test!(
    fn an_idmapped_mount_with_half_its_mappings_is_refused(t: &Test) -> Result {
        let source = source(t)?;
        let mount = json!({"destination": "/tmp", "source": source, "options": ["bind"], "uidMappings": mapping(0, 1000)});
        t.bundle()
            .push("/mounts", mount)
            .run()?
            .fails_naming(&["gidMappings"])?;
        Ok(())
    }
);
