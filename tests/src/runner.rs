//! Runs the chosen tests in parallel, again alone what failed, and reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::host;
use crate::lists;
use crate::options::Options;
use crate::registry::{self, Registered};

/// What became of one test.
enum Outcome {
    Passed,
    /// Why, and what it printed.
    Failed {
        why: String,
        output: String,
    },
    /// Allowed on this machine.
    Skipped(String),
    /// A peer's known failure: reason from its list.
    Expected(&'static str),
    /// Passed although the peer's list expects a failure.
    Unexpected,
}

#[derive(Default)]
struct Report {
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
    flaky: Vec<String>,
    unexpected: Vec<String>,
}

/// The whole run. Exit code 0 iff nothing failed.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let chosen: Vec<&Registered> = registry::all()
        .into_iter()
        .filter(|test| options.chooses(test.area(), test.name))
        .collect();
    if options.list {
        chosen.iter().for_each(|test| println!("{}", test.path()));
        return Ok(ExitCode::SUCCESS);
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("these tests need root");
    }
    if chosen.is_empty() {
        bail!("no test matches {:?} (--list shows all)", options.filters);
    }
    let base = base_directory()?;
    let mut report = run_all(options, &base, chosen)?;
    if options.keep && !report.failed.is_empty() {
        println!("kept: {}", base.display());
    } else if let Err(error) = fs::remove_dir_all(&base) {
        report.failed.push(format!("remove {}: {error}", base.display()));
    }
    Ok(print_summary(&report))
}

/// A directory of this run with the static busybox and this program in it, on one file system with all bundles, which hard-link them.
fn base_directory() -> Result<PathBuf> {
    let base = std::env::temp_dir().join(format!("rtc-tests-{}", host::random_name(8)?));
    fs::create_dir(&base).with_context(|| base.display().to_string())?;
    let busybox = Path::new("/bin/busybox");
    fs::copy(busybox, base.join("busybox")).context("copy /bin/busybox (package busybox-static)")?;
    fs::copy(std::env::current_exe()?, base.join("rtc-tests")).context("copy this program")?;
    Ok(base)
}

fn run_all(options: &Options, base: &Path, chosen: Vec<&'static Registered>) -> Result<Report> {
    let mut programs: Vec<_> = chosen
        .iter()
        .map(|test| options.under_test(test.area()))
        .collect();
    programs.sort_unstable();
    programs.dedup();
    println!("{} tests, {} at a time: {programs:?}", chosen.len(), options.jobs);
    let next = AtomicUsize::new(0);
    let results = Mutex::new((Report::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.min(chosen.len()) {
            scope.spawn(|| {
                while let Some(test) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = run_one(options, base, test);
                    let mut results = results.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    let (report, again) = &mut *results;
                    match outcome {
                        Outcome::Failed { why, output } => {
                            println!("FAILED {} (runs again alone later): {why}", test.path());
                            again.push((*test, why, output));
                        }
                        other => settle(report, test, other),
                    }
                }
            });
        }
    });
    let (mut report, mut again) = results
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    again.sort_by_key(|(test, ..)| test.path());
    for (test, why, output) in again {
        print_failure(test, &why, &output);
        match run_one(options, base, test) {
            Outcome::Failed { why, output } => {
                print_failure(test, &why, &output);
                report.failed.push(test.path());
            }
            outcome => {
                println!("FLAKY  {}: failed, then passed alone", test.path());
                report.flaky.push(test.path());
                if options.strict {
                    report.failed.push(test.path());
                } else {
                    settle(&mut report, test, outcome);
                }
            }
        }
    }
    Ok(report)
}

fn settle(report: &mut Report, test: &Registered, outcome: Outcome) {
    match outcome {
        Outcome::Passed => report.passed += 1,
        Outcome::Skipped(reason) => {
            println!("skip   {}: {reason}", test.path());
            report.skipped += 1;
        }
        Outcome::Expected(reason) => {
            println!("except {}: {reason}", test.path());
            report.skipped += 1;
        }
        Outcome::Unexpected => {
            report.unexpected.push(test.path());
            report.passed += 1;
        }
        Outcome::Failed { .. } => report.failed.push(test.path()),
    }
}

fn print_failure(test: &Registered, why: &str, output: &str) {
    println!("=== {}: {why}\n{}\n===", test.path(), output.trim_end());
}

fn print_summary(report: &Report) -> ExitCode {
    for test in &report.unexpected {
        println!("passes although it is listed as an exception: {test}");
    }
    if !report.flaky.is_empty() {
        println!("{} flaky", report.flaky.len());
        report.flaky.iter().for_each(|test| println!("  {test}"));
    }
    report.failed.iter().for_each(|test| println!("failed: {test}"));
    println!(
        "{} passed, {} failed, {} skipped",
        report.passed,
        report.failed.len(),
        report.skipped
    );
    if report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs one test under its supervisor and judges the result by the lists.
fn run_one(options: &Options, base: &Path, test: &Registered) -> Outcome {
    let start = Instant::now();
    let outcome = match supervise(options, base, test) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed {
            why: format!("{error:#}"),
            output: String::new(),
        },
    };
    let outcome = match outcome {
        Outcome::Skipped(reason) if !lists::skip_is_allowed(&options.machine, &reason) => {
            let why = format!(
                "skipped, which skips/{}.txt does not allow: {reason}",
                options.machine
            );
            Outcome::Failed {
                why,
                output: String::new(),
            }
        }
        other => other,
    };
    let outcome = match (
        outcome,
        lists::expected_failure(options.peer(test.area()), test.area(), test.name),
    ) {
        (Outcome::Failed { .. }, Some(reason)) => Outcome::Expected(reason),
        (Outcome::Passed, Some(_)) => Outcome::Unexpected,
        (other, _) => other,
    };
    if matches!(outcome, Outcome::Passed) {
        println!("ok     {} ({:.2} s)", test.path(), start.elapsed().as_secs_f64());
    }
    outcome
}

fn supervise(options: &Options, base: &Path, test: &Registered) -> Result<Outcome> {
    let id = host::random_name(8)?;
    let cgroup = if options.systemd {
        format!("/rtctest.slice/rtctest-{id}.slice")
    } else {
        format!("/rtc-test-{id}")
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["supervise", &test.path()]).stdin(Stdio::null());
    command
        .env("RTC", &options.rtc)
        .env("SHIM", &options.shim)
        .env("CRI", &options.cri)
        .env("CRI_PEER", &options.cri_peer)
        .env("BINARY_NAME", &options.binary_name)
        .env("KUBELET", &options.kubelet)
        .env("KUBELET_CGROUP_DRIVER", &options.cgroup_driver)
        .env("RTC_TESTS_DIRECTORY", base.join(&id))
        .env("RTC_TESTS_CGROUP", cgroup)
        .env("RTC_TESTS_TIMEOUT", options.timeout.to_string());
    if let Some(peers) = &options.peers {
        command.env("PEERS", peers);
    }
    if options.keep {
        command.env("RTC_TESTS_KEEP", "1");
    }
    let finished = command.output().context("start a supervisor")?;
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    let mut parts = text.splitn(3, '\n');
    let (word, why, output) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
    let why = why.unwrap_or_default().to_owned();
    Ok(match word {
        Some("passed") => Outcome::Passed,
        Some("skipped") => Outcome::Skipped(why),
        Some("failed") => Outcome::Failed {
            why,
            output: output.to_owned(),
        },
        _ => {
            let output = String::from_utf8_lossy(&finished.stderr).into_owned();
            Outcome::Failed {
                why: format!("supervisor: {}", finished.status),
                output,
            }
        }
    })
}
