//! The seccomp compiler: a random profile either is refused with a message, or compiles to a program that the kernel
//! would take and that decides as the profile says, read rule by rule.

#![no_main]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use rtc_fuzz::bpf::{self, Call};
use rtc_fuzz::profile;
use rtc_runtime::seccomp;

fuzz_target!(|bytes: &[u8]| {
    let _ = one(&mut Unstructured::new(bytes));
});

fn one(input: &mut Unstructured<'_>) -> Result<()> {
    let profile = profile::random(input)?;
    let filter = match seccomp::compile(&profile) {
        Ok(filter) => filter,
        Err(error) => {
            assert!(!format!("{error:#}").contains('\n'));
            return Ok(());
        }
    };
    assert!(
        filter == seccomp::compile(&profile).expect("compiles again"),
        "the same profile, another program"
    );
    let program: Vec<_> = filter.program.iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect();
    bpf::check(&program).expect("a program that the kernel takes");
    // Calls that the profile is about, with arguments that it compares with, and others.
    for _ in 0..32 {
        let call = Call::random(input, &profile)?;
        let decided = bpf::run(&program, &call);
        let allowed = profile::decisions(&profile, &call);
        assert!(
            allowed.is_empty() || allowed.contains(&decided),
            "{call:x?}: decides {decided:#x}, the profile says one of {allowed:x?}: {profile:?}"
        );
    }
    Ok(())
}
