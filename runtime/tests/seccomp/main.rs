//! The seccomp compiler against libseccomp, and its filters in the kernel.
//!
//! Needs gcc and libseccomp-dev: `oracle.c` is compiled by the tests. `rtc` itself never sees libseccomp.

#![cfg(target_arch = "x86_64")]

mod bpf;
mod compare;
mod generate;
mod oracle;
mod reference;

use compare::{I386, Tally, X86_64, compare};
use generate::{Random, Shape};
use oci_spec::runtime::LinuxSeccomp;
use oracle::Oracle;
use rtc_runtime::seccomp;

fn compare_many(seed: u64, count: usize, shape: Shape) -> Tally {
    let mut oracle = Oracle::start();
    let names = oracle::names();
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    for _ in 0..count {
        let profile = generate::profile(&mut random, shape, &names);
        compare(
            &mut oracle,
            &mut random,
            &profile,
            shape != Shape::Any,
            &mut tally,
        );
    }
    println!("{shape:?}: {tally:?}");
    tally
}

#[test]
fn rules_without_conditions_decide_as_libseccomp() {
    let tally = compare_many(1, 300, Shape::Plain);
    assert_eq!((tally.confused, tally.wrong, tally.hung), (0, 0, 0));
}

#[test]
fn rules_on_one_argument_decide_as_libseccomp() {
    let tally = compare_many(2, 1000, Shape::OneArgument);
    assert_eq!((tally.wrong, tally.hung), (0, 0));
    assert!(tally.confused * 5 < tally.profiles);
}

#[test]
fn rules_of_one_action_a_call_decide_as_libseccomp() {
    let tally = compare_many(3, 1000, Shape::OneAction);
    assert!(tally.confused * 5 < tally.profiles && tally.wrong * 10_000 < tally.calls);
}

#[test]
fn any_rules_decide_as_libseccomp_where_that_is_right() {
    let tally = compare_many(4, 1500, Shape::Any);
    assert!(tally.confused * 5 < tally.profiles && tally.wrong * 10_000 < tally.calls);
    assert!(tally.other * 100_000 < tally.calls);
}

/// A profile as the engines write it: most calls allowed, a few by argument, for three ABIs.
fn profile_of_an_engine() -> LinuxSeccomp {
    let refused = [
        "bpf",
        "mount",
        "umount2",
        "ptrace",
        "reboot",
        "kexec_load",
        "init_module",
        "swapon",
        "setns",
    ];
    let by_argument = ["personality", "socket", "clone", "clone3"];
    let mut allowed = oracle::names();
    allowed.retain(|name| !refused.contains(&name.as_str()) && !by_argument.contains(&name.as_str()));
    let equal = |value: u64| {
        serde_json::json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
    };
    let mut syscalls = vec![serde_json::json!({"names": allowed, "action": "SCMP_ACT_ALLOW"})];
    syscalls.extend([0, 8, 0x20000, 0x20008, 0xffff_ffff].map(equal));
    syscalls.push(
        serde_json::json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]}),
    );
    syscalls.push(serde_json::json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}));
    syscalls.push(serde_json::json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}));
    serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": syscalls,
    }))
    .expect("a profile")
}

#[test]
fn a_profile_of_an_engine_decides_as_libseccomp_in_a_short_program() {
    let profile = profile_of_an_engine();
    let mut tally = Tally::default();
    compare(
        &mut Oracle::start(),
        &mut Random::new(5),
        &profile,
        true,
        &mut tally,
    );
    assert_eq!((tally.confused, tally.wrong, tally.hung), (0, 0, 0));
    assert!(tally.calls > 10_000);
    let program = seccomp::compile(&profile).expect("compile").program;
    assert!(program.len() < 250, "{} instructions", program.len());
    let data = |number| bpf::Data {
        number,
        arch: X86_64,
        arguments: [0; 6],
    };
    let longest = (0..500).map(|number| bpf::run(&program, &data(number)).1).max();
    assert!(longest < Some(25), "{longest:?} instructions for one call");
}

/// The profile of podman, cri-o and buildah for a container with their default capabilities, as these filter it: rules
/// for other architectures, and for capabilities that the container has or lacks, are left out.
fn distributed_profile() -> Option<LinuxSeccomp> {
    const PATH: &str = "/usr/share/containers/seccomp.json";
    const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_SYS_CHROOT"];
    let Ok(text) = std::fs::read(PATH) else {
        println!("left out: there is no {PATH} (package golang-github-containers-common)");
        return None;
    };
    let mut profile: serde_json::Value = serde_json::from_slice(&text).expect("the profile is JSON");
    let texts = |value: &serde_json::Value| -> Vec<String> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    let has = |capability: &String| CAPABILITIES.contains(&capability.as_str());
    profile["syscalls"].as_array_mut().expect("rules").retain(|rule| {
        let arches = texts(&rule["includes"]["arches"]);
        (arches.is_empty() || arches.iter().any(|arch| arch == "amd64"))
            && texts(&rule["includes"]["caps"]).iter().all(has)
            && !texts(&rule["excludes"]["caps"]).iter().any(has)
    });
    profile["architectures"] = serde_json::json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    Some(serde_json::from_value(profile).expect("a profile"))
}

#[test]
fn the_distributed_profile_decides_as_libseccomp_in_a_short_program() {
    let Some(profile) = distributed_profile() else {
        return;
    };
    let mut tally = Tally::default();
    compare(
        &mut Oracle::start(),
        &mut Random::new(7),
        &profile,
        true,
        &mut tally,
    );
    assert_eq!(
        (tally.refused, tally.confused, tally.wrong, tally.hung),
        (0, 0, 0, 0)
    );
    assert!(tally.calls > 10_000);
    let program = seccomp::compile(&profile).expect("compile").program;
    assert!(program.len() < 250, "{} instructions", program.len());
}

#[test]
fn the_kernel_decides_as_the_interpreter() {
    let mut random = Random::new(6);
    for _ in 0..60 {
        let profile = generate::harmless(&mut random);
        let Ok(filter) = seccomp::compile(&profile) else {
            continue;
        };
        let calls: Vec<(u32, [u64; 6])> = (0..20)
            .map(|_| (random.of(&generate::HARMLESS), generate::arguments(&mut random)))
            .collect();
        let outcomes = oracle::under_filter(&filter.program, &calls);
        assert_eq!(outcomes.len(), calls.len());
        for ((number, arguments), outcome) in calls.into_iter().zip(outcomes) {
            let data = bpf::Data {
                number,
                arch: X86_64,
                arguments,
            };
            let (verdict, _) = bpf::run(&filter.program, &data);
            assert_eq!(
                outcome,
                outcome_of(verdict),
                "{verdict:#x} for {data:x?}: {}",
                compare::json(&profile)
            );
        }
    }
}

/// What a call on a descriptor that is not open comes to: the signal that kills the process, or the errno.
fn outcome_of(verdict: u32) -> (u32, u32) {
    const EBADF: u32 = libc::EBADF as u32;
    const ENOSYS: u32 = libc::ENOSYS as u32;
    match verdict & 0xffff_0000 {
        0x7fff_0000 | 0x7ffc_0000 => (0, EBADF),
        0x0005_0000 => (0, verdict & 0xffff),
        // No tracer, no supervisor.
        0x7ff0_0000 | 0x7fc0_0000 => (0, ENOSYS),
        _ => (libc::SIGSYS as u32, 0),
    }
}

#[test]
fn a_filter_of_another_abi_only_is_the_native_one_and_that() {
    let profile: LinuxSeccomp = serde_json::from_value(serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_AARCH64", "SCMP_ARCH_S390X"],
        "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO"}],
    }))
    .expect("a profile");
    let program = seccomp::compile(&profile).expect("compile").program;
    let verdict = |number, arch| {
        bpf::run(
            &program,
            &bpf::Data {
                number,
                arch,
                arguments: [0; 6],
            },
        )
        .0
    };
    assert_eq!(verdict(63, X86_64), 0x0005_0001);
    assert_eq!(verdict(122, I386), 0x0005_0001);
    assert_eq!(verdict(0, I386), 0x7fff_0000);
    assert_eq!(verdict(63 | 0x4000_0000, X86_64), 0, "x32 is not listed");
    assert_eq!(verdict(160, 0xc000_00b7), 0, "aarch64 cannot be here");
}
