//! What a container gets of the machine: network devices, a memory policy, a share of caches and memory bandwidth.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::resctrl::Resctrl;
use crate::test;
use crate::test::Test;

/// Runs busybox's ip(8) in the namespace of the test.
fn ip(words: &str) -> Result<String> {
    let output = Command::new("/bin/busybox")
        .arg("ip")
        .args(words.split_whitespace())
        .output()
        .context("busybox ip")?;
    ensure!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// A network namespace of the test's own, which is "the host's" to the runtime, with these devices: dummies, or where the
/// kernel has none, ends of veth pairs.
fn with_devices(t: &Test, names: &[&str]) -> Result {
    unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
    for name in names {
        if ip(&format!("link add {name} type dummy")).is_err()
            && ip(&format!("link add {name} type veth peer name p-{name}")).is_err()
        {
            t.skip("no virtual network devices")?;
        }
    }
    Ok(())
}

fn has_device(name: &str) -> bool {
    std::path::Path::new("/sys/class/net").exists() && ip(&format!("link show dev {name}")).is_ok()
}

test!(
    fn a_network_device_moves_with_its_addresses_and_attributes(t: &Test) -> Result {
        with_devices(t, &["dev0"])?;
        ip("link set dev0 mtu 1789 address 00:11:22:33:44:55")?;
        ip("addr add 169.254.169.77/32 dev dev0")?;
        ip("addr add 10.9.8.7/24 broadcast 10.9.8.255 dev dev0")?;
        ip("addr add 127.0.0.33/32 scope host dev dev0")?;
        ip("link set dev0 up")?;
        // Before, since without IPv6 in the kernel there is none.
        let six = ip("-6 addr add fd00:1:2::3/64 dev dev0").is_ok();
        let bundle = t.bundle().set("/linux/netDevices", json!({"dev0": {}}));
        let container = bundle.sleeper().create()?;
        ensure!(!has_device("dev0"), "it is still here");
        let output = container.exec(&["ip", "addr", "show", "dev", "dev0"])?.ok()?;
        for text in [
            "mtu 1789",
            "00:11:22:33:44:55",
            "169.254.169.77/32",
            "10.9.8.7/24 brd 10.9.8.255",
            "UP",
        ] {
            ensure!(output.stdout.contains(text), "{text}: {output}");
        }
        ensure!(!output.stdout.contains("127.0.0.33"), "{output}");
        ensure!(!six || output.stdout.contains("fd00:1:2::3/64"), "{output}");
        Ok(())
    }
);

test!(
    fn a_network_device_gets_the_name_it_is_given_or_the_first_free_number(t: &Test) -> Result {
        with_devices(t, &["dev0", "dev1", "dev2"])?;
        let devices =
            json!({"dev0": {"name": "ctr-dev"}, "dev1": {"name": "net%d"}, "dev2": {"name": "net%d"}});
        let bundle = t.bundle().set("/linux/netDevices", devices);
        bundle
            .sh("for d in ctr-dev net0 net1; do ip -o link show dev $d up | cut -d: -f2 | cut -d@ -f1; done")
            .run()?
            .prints(" ctr-dev\n net0\n net1")?;
        Ok(())
    }
);

test!(
    fn a_network_device_stays_in_a_namespace_that_was_joined(t: &Test) -> Result {
        with_devices(t, &["dev0"])?;
        let owner = t.bundle().sleeper().start()?;
        let bundle = t
            .bundle()
            .namespace(json!({"type": "network", "path": format!("/proc/{}/ns/net", owner.pid()?)}))
            .set("/linux/netDevices", json!({"dev0": {"name": "moved"}}));
        bundle.args(&["ip", "link", "show", "dev", "moved"]).run()?.ok()?;
        owner.exec(&["ip", "link", "show", "dev", "moved"])?.ok()?;
        Ok(())
    }
);

test!(
    fn a_network_device_that_cannot_be_moved_fails_the_create_and_all_are_back(t: &Test) -> Result {
        with_devices(t, &["dev0", "dev1"])?;
        ip("addr add 10.9.8.7/24 dev dev0")?;
        ip("link set dev0 up")?;
        let create = |devices: Value| -> Result<crate::output::Output> {
            t.bundle()
                .sleeper()
                .set("/linux/netDevices", devices)
                .command("create", &[])?
                .run()
        };
        // The last one in order is not there, has a name that is taken, or can't be moved at all.
        create(json!({"dev0": {"name": "x"}, "gone0": {}}))?.fails_naming(&["gone0", "No such device"])?;
        create(json!({"dev0": {"name": "x"}, "dev1": {"name": "lo"}}))?.fails_naming(&["dev1", "lo"])?;
        create(json!({"dev0": {"name": "x"}, "lo": {"name": "y"}}))?.fails_naming(&["lo"])?;
        let dev0 = ip("addr show dev dev0")?;
        ensure!(dev0.contains("10.9.8.7/24") && dev0.contains("UP"), "{dev0}");
        ensure!(!ip("link show dev dev1")?.contains("UP"), "dev1 is up");
        // What fails later brings them back as well.
        let bundle = t
            .bundle()
            .set("/linux/netDevices", json!({"dev0": {"name": "x"}}))
            .args(&["/no/such/program"]);
        bundle
            .command("create", &[])?
            .run()?
            .fails_naming(&["/no/such/program"])?;
        let dev0 = ip("addr show dev dev0")?;
        ensure!(dev0.contains("10.9.8.7/24") && dev0.contains("UP"), "{dev0}");
        Ok(())
    }
);

test!(
    fn network_devices_without_a_namespace_of_their_own_are_refused(t: &Test) -> Result {
        with_devices(t, &["dev0"])?;
        let devices = json!({"dev0": {}});
        for bundle in [
            t.bundle().without_namespace("network"),
            t.bundle()
                .namespace(json!({"type": "network", "path": "/proc/self/ns/net"})),
            t.bundle().namespace(
                json!({"type": "network", "path": format!("/proc/{}/ns/net", std::process::id())}),
            ),
        ] {
            bundle
                .sleeper()
                .set("/linux/netDevices", devices.clone())
                .command("create", &[])?
                .run()?
                .fails_naming(&["netDevices"])?;
        }
        ensure!(has_device("dev0"), "it is gone");
        Ok(())
    }
);

/// The policy of the heap of the process that reads it (proc_pid_numa_maps(5)).
const POLICY: [&str; 3] = ["sh", "-c", "grep heap /proc/self/numa_maps | cut -d' ' -f2"];

/// Skips where the kernel has no memory nodes.
fn needs_numa(t: &Test) -> Result {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        t.skip("no memory nodes (CONFIG_NUMA)")?;
    }
    Ok(())
}

test!(
    fn the_memory_policy_is_the_configured_one_in_run_and_exec(t: &Test) -> Result {
        needs_numa(t)?;
        for (policy, shown) in [
            (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
                "bind=static:0",
            ),
            (
                json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}),
                "interleave=relative:0",
            ),
            (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
            (json!({"mode": "MPOL_LOCAL"}), "local"),
            (json!({"mode": "MPOL_DEFAULT"}), "default"),
        ] {
            let bundle = t.bundle().set("/linux/memoryPolicy", policy.clone());
            bundle
                .args(&POLICY)
                .run()?
                .prints(shown)
                .with_context(|| policy.to_string())?;
            let bundle = t.bundle().set("/linux/memoryPolicy", policy);
            bundle.sleeper().start()?.exec(&POLICY)?.prints(shown)?;
        }
        Ok(())
    }
);

test!(
    fn a_memory_policy_that_cannot_be_is_refused_by_name(t: &Test) -> Result {
        for (policy, named) in [
            (json!({"mode": "MPOL_NOWHERE"}), "MPOL_NOWHERE"),
            (json!({"mode": "MPOL_BIND"}), "nodes"),
            (json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}), "0-7"),
            (json!({"mode": "MPOL_BIND", "nodes": "zero"}), "zero"),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_OTHER"]}),
                "MPOL_F_OTHER",
            ),
            // No machine of these tests has so many.
            (json!({"mode": "MPOL_BIND", "nodes": "511"}), "memoryPolicy"),
        ] {
            let bundle = t.bundle().set("/linux/memoryPolicy", policy);
            bundle.run()?.fails_naming(&[named])?;
        }
        Ok(())
    }
);

fn resctrl(t: &Test) -> Result<Resctrl> {
    match Resctrl::mount(t.path("resctrl"))? {
        Some(resctrl) => Ok(resctrl),
        None => Err(test::Skip::because("no FUSE")),
    }
}

fn with_rdt(t: &Test, rdt: Value) -> Bundle<'_> {
    t.bundle().sleeper().set("/linux/intelRdt", rdt)
}

test!(
    fn a_container_has_a_resctrl_group_of_its_own_that_ends_with_it(t: &Test) -> Result {
        let resctrl = resctrl(t)?;
        let bundle = with_rdt(
            t,
            json!({"l3CacheSchema": "L3:0=f;1=ff", "memBwSchema": "MB:0=20"}),
        );
        let container = bundle.create()?;
        let group = bundle.id.clone();
        ensure!(resctrl.read(&format!("{group}/tasks"))? == container.pid()?.to_string());
        let schemata = resctrl.read(&format!("{group}/schemata"))?;
        ensure!(
            schemata == "MB:0=00020;1=100\n    L3:0=0000f;1=000ff",
            "{schemata}"
        );
        let state = fs::read_to_string(t.root.join(&bundle.id).join("state.json"))?;
        let state: Value = serde_json::from_str(&state)?;
        ensure!(
            state["intelRdt"]["path"] == resctrl.path.join(&group).to_string_lossy().as_ref(),
            "{state}"
        );
        // What exec starts is in it, too.
        container
            .exec_command(&["--detach"], &["sleep", "1000000"])
            .run()?
            .ok()?;
        ensure!(resctrl.read(&format!("{group}/tasks"))?.lines().count() == 2);
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(!resctrl.path.join(&group).exists(), "the group is left");
        Ok(())
    }
);

test!(
    fn a_resctrl_group_that_is_named_stays_and_must_have_the_schemata_asked_for(t: &Test) -> Result {
        let resctrl = resctrl(t)?;
        // Not there, and nothing says what it should get.
        with_rdt(t, json!({"closID": "gold"}))
            .command("create", &[])?
            .run()?
            .fails_naming(&["gold"])?;
        ensure!(!resctrl.path.join("gold").exists());
        // A value that is refused leaves no group that would refuse the right one.
        with_rdt(t, json!({"closID": "gold", "schemata": ["L3:0=nonsense"]}))
            .command("create", &[])?
            .run()?
            .fails_naming(&["L3:0=nonsense"])?;
        ensure!(!resctrl.path.join("gold").exists());
        let first = with_rdt(t, json!({"closID": "gold", "schemata": ["L3:0=f0", "MB:1=30"]}));
        let first = first.start()?;
        let second = with_rdt(t, json!({"closID": "gold", "l3CacheSchema": "L3:0=0f0"})).start()?;
        let third = with_rdt(t, json!({"closID": "gold"})).start()?;
        let pids = format!("{}\n{}\n{}", first.pid()?, second.pid()?, third.pid()?);
        ensure!(resctrl.read("gold/tasks")? == pids);
        with_rdt(t, json!({"closID": "gold", "l3CacheSchema": "L3:0=ff"}))
            .command("create", &[])?
            .run()?
            .fails_naming(&["gold", "L3:0=ff"])?;
        for container in [first, second, third] {
            container.verb("delete", &["--force"])?.ok()?;
        }
        ensure!(resctrl.path.join("gold").exists(), "the group is gone");
        // The default group.
        let container = with_rdt(t, json!({"closID": "/"})).start()?;
        ensure!(resctrl.read("tasks")? == container.pid()?.to_string());
        container.verb("delete", &["--force"])?.ok()?;
        Ok(())
    }
);

test!(
    fn a_container_is_counted_apart_where_monitoring_is_enabled(t: &Test) -> Result {
        let resctrl = resctrl(t)?;
        fs::create_dir(resctrl.path.join("gold"))?;
        let bundle = with_rdt(t, json!({"closID": "gold", "enableMonitoring": true}));
        let container = bundle.start()?;
        let group = format!("gold/mon_groups/{}", bundle.id);
        ensure!(resctrl.read(&format!("{group}/tasks"))? == container.pid()?.to_string());
        let events = container.verb("events", &["--stats"])?.ok()?;
        let events: Value = serde_json::from_str(&events.stdout)?;
        let rdt = &events["data"]["intel_rdt"];
        ensure!(rdt["l3_cache_info"]["cbm_mask"] == "fffff", "{rdt}");
        ensure!(rdt["mem_bw_schema"] == "MB:0=100;1=100", "{rdt}");
        ensure!(
            rdt["cmt_stats"] == json!([{"llc_occupancy": 65536}, {"llc_occupancy": 65536}]),
            "{rdt}"
        );
        container.verb("delete", &["--force"])?.ok()?;
        ensure!(
            !resctrl.path.join(&group).exists(),
            "the monitoring group is left"
        );
        ensure!(resctrl.path.join("gold").exists(), "the group is gone");
        Ok(())
    }
);

test!(
    fn update_changes_the_share_of_caches_also_of_a_container_without_a_group(t: &Test) -> Result {
        let resctrl = resctrl(t)?;
        let with = with_rdt(t, json!({"l3CacheSchema": "L3:0=f;1=ff"}));
        let without = t.bundle().sh("sleep 1000000 & wait");
        for bundle in [with, without] {
            let container = bundle.start()?;
            let update = ["--l3-cache-schema", "L3:1=3", "--mem-bw-schema", "MB:0=50"];
            container.verb("update", &update)?.ok()?;
            let schemata = resctrl.read(&format!("{}/schemata", bundle.id))?;
            ensure!(
                schemata.contains("1=00003") && schemata.contains("MB:0=00050"),
                "{schemata}"
            );
            let tasks = resctrl.read(&format!("{}/tasks", bundle.id))?;
            ensure!(
                tasks
                    .lines()
                    .any(|task| task == container.pid().map_or(String::new(), |pid| pid.to_string()))
            );
            container
                .verb("update", &["--l3-cache-schema", "L3:0=zz"])?
                .fails_naming(&["L3:0=zz", "Parsing error"])?;
            ensure!(resctrl.read(&format!("{}/schemata", bundle.id))? == schemata);
            container.verb("delete", &["--force"])?.ok()?;
            ensure!(!resctrl.path.join(&bundle.id).exists(), "the group is left");
        }
        Ok(())
    }
);

test!(
    fn what_resctrl_refuses_is_told_and_leaves_no_group(t: &Test) -> Result {
        let resctrl = resctrl(t)?;
        let bundle = with_rdt(t, json!({"l3CacheSchema": "L3:0=zz"}));
        bundle
            .command("create", &[])?
            .run()?
            .fails_naming(&["intelRdt", "Parsing error 'L3:0=zz'"])?;
        ensure!(!resctrl.path.join(&bundle.id).exists(), "the group is left");
        // There are four in all.
        for name in ["a", "b", "c"] {
            fs::create_dir(resctrl.path.join(name))?;
        }
        let bundle = with_rdt(t, json!({"enableMonitoring": true}));
        bundle
            .command("create", &[])?
            .run()?
            .fails_naming(&["intelRdt", "Out of CLOSIDs"])?;
        ensure!(!resctrl.path.join(&bundle.id).exists(), "the group is left");
        // A later failure takes the group back.
        fs::remove_dir(resctrl.path.join("a"))?;
        let bundle = with_rdt(t, json!({})).args(&["/no/such/program"]);
        bundle
            .command("create", &[])?
            .run()?
            .fails_naming(&["/no/such/program"])?;
        ensure!(!resctrl.path.join(&bundle.id).exists(), "the group is left");
        Ok(())
    }
);

test!(
    fn without_resctrl_a_group_is_refused_and_what_to_do_is_told(t: &Test) -> Result {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        if mounts.contains(" - resctrl ") {
            t.skip("this machine has resctrl")?;
        }
        with_rdt(t, json!({"closID": "gold"}))
            .command("create", &[])?
            .run()?
            .fails_naming(&["intelRdt", "resctrl"])?;
        let container = t.bundle().sleeper().start()?;
        container
            .verb("update", &["--mem-bw-schema", "MB:0=10"])?
            .fails_naming(&["resctrl"])?;
        container
            .verb("update", &["--mem-bw-schema", "L3:0=10"])?
            .fails_naming(&["--mem-bw-schema", "MB"])?;
        Ok(())
    }
);
