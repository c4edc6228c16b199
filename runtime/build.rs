//! Gives `rtc --version` the commit it was built from; without git, or outside a clone, that is `unknown`. Sets the
//! entry of the executable.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RTC_COMMIT");
    // A packager that builds from a tarball knows the commit better.
    let commit = std::env::var("RTC_COMMIT")
        .ok()
        .or_else(commit)
        .unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=RTC_COMMIT={commit}");
    // src/sys/early.rs has an entry of ours, before libc's. Only optimised code is free of calls to libc.
    let of_cargo = |name: &str| std::env::var(name).unwrap_or_default();
    if of_cargo("CARGO_CFG_TARGET_ARCH") == "x86_64" && of_cargo("OPT_LEVEL") != "0" {
        println!("cargo:rustc-link-arg-bin=rtc=-Wl,--undefined=rtc_entry,-e,rtc_entry");
    }
}

fn commit() -> Option<String> {
    let head = git(&["rev-parse", "--git-path", "HEAD"])?;
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for file in [head, log] {
        if std::path::Path::new(&file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    git(&["rev-parse", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !text.is_empty()).then_some(text)
}
