//! Time namespaces and their offsets (time_namespaces(7)).

use anyhow::ensure;
use serde_json::json;

use crate::bundle::Bundle;
use crate::host::process;
use crate::test;
use crate::test::Test;

const SECONDS: i64 = 5_000_000;

fn with_offsets(t: &Test) -> Bundle<'_> {
    let offsets = json!({"monotonic": {"secs": SECONDS, "nanosecs": 500}, "boottime": {"secs": SECONDS}});
    t.bundle()
        .namespace(json!({"type": "time"}))
        .set("/linux/timeOffsets", offsets)
}

test!(
    fn a_time_namespace_has_the_configured_offsets(t: &Test) -> Result {
        let output = with_offsets(t)
            .sh("cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime")
            .run()?
            .ok()?;
        let fields: Vec<Vec<&str>> = output
            .lines()
            .iter()
            .map(|line| line.split_whitespace().collect())
            .collect();
        ensure!(
            fields[0] == ["monotonic", "5000000", "500"] && fields[1] == ["boottime", "5000000", "0"],
            "{output}"
        );
        ensure!(fields[2][0].parse::<i64>()? >= SECONDS, "{output}");
        Ok(())
    }
);

test!(
    fn exec_is_in_the_time_namespace_too(t: &Test) -> Result {
        let container = with_offsets(t).sleeper().start()?;
        let output = container.exec(&["cut", "-d.", "-f1", "/proc/uptime"])?.ok()?;
        ensure!(output.stdout.trim().parse::<i64>()? >= SECONDS, "{output}");
        Ok(())
    }
);

test!(
    fn a_time_namespace_may_have_no_offsets(t: &Test) -> Result {
        let container = t.bundle().namespace(json!({"type": "time"})).sleeper().start()?;
        ensure!(
            process::namespace(&container.pid()?.to_string(), "time")? != process::namespace("self", "time")?
        );
        Ok(())
    }
);

test!(
    fn offsets_without_a_time_namespace_are_refused(t: &Test) -> Result {
        let bundle = t
            .bundle()
            .set("/linux/timeOffsets", json!({"boottime": {"secs": 1}}));
        bundle.run()?.fails_naming(&["timeOffsets"])?;
        Ok(())
    }
);

test!(
    fn a_time_namespace_of_another_container_can_be_joined(t: &Test) -> Result {
        let first = with_offsets(t).sleeper().start()?;
        let joined = json!({"type": "time", "path": format!("/proc/{}/ns/time", first.pid()?)});
        let output = t
            .bundle()
            .namespace(joined)
            .args(&["cut", "-d.", "-f1", "/proc/uptime"])
            .run()?
            .ok()?;
        ensure!(output.stdout.trim().parse::<i64>()? >= SECONDS, "{output}");
        Ok(())
    }
);
