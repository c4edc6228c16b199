//! The benchmark of OCI runtimes on cgroup v2 with each driver of cgroups, by turns: what `hack/bench/run` measures on the
//! host, where there is no systemd.
//!
//! CPU is user and system time of the runtime and of what it waited for, the mean: a kernel may count it in ticks of 10 ms.
//! What systemd itself does for it is in wall time alone, the median. Nothing here asserts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

use crate::bundle::Bundle;
use crate::host;
use crate::leftovers::Belongings;
use crate::registry::Result;
use crate::test::Test;
use crate::wait::until;

/// Who is measured, and with what in front of the verb.
const RUNTIMES: [(&str, &str); 3] = [("rtc", ""), ("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")];

/// A runtime with a driver, and its samples: row, wall and CPU in ms.
struct Contestant {
    name: &'static str,
    test: Test,
    rows: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// `rtc-tests bench-drivers ROUNDS`; `$RTC` is ours.
pub(crate) fn main(rounds: &str) -> Result<ExitCode> {
    let rounds: usize = rounds.parse().context("ROUNDS")?;
    let base = std::env::temp_dir().join(format!("rtc-bench-{}", host::random_name(8)?));
    fs::create_dir_all(&base)?;
    fs::copy("/bin/busybox", base.join("busybox")).context("/bin/busybox")?;
    for driver in ["cgroupfs", "systemd"] {
        let mut contestants = Vec::new();
        for (name, program) in RUNTIMES {
            if program.is_empty() || Path::new(program).exists() {
                contestants.push(contestant(&base, driver, name, program)?);
            }
        }
        let measured = measure(&mut contestants, rounds);
        for contestant in &contestants {
            let belongings = Belongings {
                directory: &base.join(format!("{driver}-{}", contestant.name)),
                root: &contestant.test.root,
                cgroup: contestant.test.cgroup.clone(),
            };
            let left = belongings.clean(false);
            left.iter().for_each(|what| eprintln!("left behind: {what}"));
        }
        measured?;
        print(driver, &contestants);
    }
    let _ = fs::remove_dir_all(&base);
    Ok(ExitCode::SUCCESS)
}

fn contestant(base: &Path, driver: &str, name: &'static str, program: &str) -> Result<Contestant> {
    let id = host::random_name(8)?;
    let cgroup = match driver {
        "systemd" => format!("/rtctest.slice/rtctest-{id}.slice"),
        _ => format!("/rtc-bench-{id}"),
    };
    let mut test = Test::of_benchmark(&base.join(format!("{driver}-{name}")), &cgroup, "")?;
    if !program.is_empty() {
        test.rtc = PathBuf::from(program);
    }
    Ok(Contestant {
        name,
        test,
        rows: Vec::new(),
    })
}

fn measure(contestants: &mut [Contestant], rounds: usize) -> Result {
    for contestant in &mut *contestants {
        contestant.begin().context(contestant.name)?;
    }
    for round in 0..=rounds {
        // By turns: what disturbs the machine disturbs all.
        for contestant in &mut *contestants {
            contestant.round(round).context(contestant.name)?;
        }
    }
    for contestant in &mut *contestants {
        // The first round was to warm up.
        contestant.rows.iter_mut().for_each(|(_, samples)| {
            samples.remove(0);
        });
        let running = contestant.running();
        contestant.verb(None, &["delete", "--force", &running])?;
    }
    Ok(())
}

impl Contestant {
    fn running(&self) -> String {
        format!("{}-running", self.name)
    }

    /// A container that runs all the time.
    fn begin(&mut self) -> Result {
        let running = self.running();
        let bundle = Bundle::at(&self.test, self.test.path("running"), &running)?.sleeper();
        bundle.write()?;
        let directory = bundle.directory.to_string_lossy().into_owned();
        self.verb(None, &["run", "--detach", "--bundle", &directory, &running])
    }

    fn round(&mut self, round: usize) -> Result {
        // systemd's names are the same for all.
        let id = format!("{}-{round}", self.name);
        let running = self.running();
        let (directory, pid_file) = {
            let bundle = Bundle::at(&self.test, self.test.path("bundle"), &id)?.args(&["true"]);
            bundle.write()?;
            (bundle.directory.clone(), self.test.path("pid"))
        };
        let bundle = directory.to_string_lossy();
        let pid = pid_file.to_string_lossy();
        self.verb(Some("run"), &["run", "--bundle", &bundle, &id])?;
        self.verb(
            Some("create"),
            &["create", "--bundle", &bundle, "--pid-file", &pid, &id],
        )?;
        self.verb(Some("start"), &["start", &id])?;
        let process = format!("/proc/{}", fs::read_to_string(&pid_file)?.trim());
        until("its program to end", || {
            Ok((!Path::new(&process).exists()).then_some(()))
        })?;
        self.verb(Some("delete"), &["delete", &id])?;
        self.verb(Some("exec"), &["exec", &running, "true"])?;
        let limit = (100 + round).to_string();
        self.verb(Some("update"), &["update", "--pids-limit", &limit, &running])?;
        fs::remove_dir_all(&directory)?;
        Ok(())
    }

    /// One command, to its end.
    fn verb(&mut self, row: Option<&'static str>, words: &[&str]) -> Result {
        let said = self.test.directory.join("said");
        let mut command = Command::new(&self.test.rtc);
        command.arg("--root").arg(&self.test.root);
        if self.test.uses_systemd() {
            command.arg("--systemd-cgroup");
        }
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?);
        let (began, before) = (Instant::now(), cpu()?);
        let status = command.status()?;
        let (wall, after) = (began.elapsed(), cpu()?);
        ensure!(
            status.success(),
            "{words:?}: {status}: {}",
            fs::read_to_string(&said)?
        );
        if let Some(row) = row {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let sample = (ms(wall), ms(after.saturating_sub(before)));
            match self.rows.iter_mut().find(|(name, _)| *name == row) {
                Some((_, samples)) => samples.push(sample),
                None => self.rows.push((row, vec![sample])),
            }
        }
        Ok(())
    }
}

/// Of all children that were waited for.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mean(values: Vec<f64>) -> f64 {
    let count = u32::try_from(values.len()).unwrap_or(u32::MAX);
    values.into_iter().sum::<f64>() / f64::from(count)
}

fn print(driver: &str, contestants: &[Contestant]) {
    let names: Vec<_> = contestants.iter().map(|contestant| contestant.name).collect();
    println!("| {driver} | {} |", names.join(" | "));
    println!("|---{}|", "|---".repeat(names.len()));
    let rows = contestants
        .first()
        .map(|first| first.rows.as_slice())
        .unwrap_or_default();
    for (index, (row, _)) in rows.iter().enumerate() {
        let cells: Vec<_> = contestants
            .iter()
            .filter_map(|contestant| contestant.rows.get(index))
            .map(|(_, samples)| {
                let wall = median(samples.iter().map(|sample| sample.0).collect());
                let cpu = mean(samples.iter().map(|sample| sample.1).collect());
                format!("{wall:.1} / **{cpu:.1}**")
            })
            .collect();
        println!("| {row} | {} |", cells.join(" | "));
    }
    println!();
}
