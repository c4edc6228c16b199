//! `config.json` from an enemy: whatever the bytes are, the answer is an error of one line, or a configuration that
//! can be read back from what is kept of it, and whose seccomp profile compiles or is refused.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rtc_runtime::{bundle, seccomp};

fuzz_target!(|bytes: &[u8]| {
    let mut raw = bytes.to_vec();
    match bundle::parse_spec(&mut raw) {
        Err(error) => check_message(&format!("{error:#}")),
        Ok((spec, warnings)) => {
            for warning in &warnings {
                check_message(warning);
            }
            let kept = bundle::parse_kept(&raw).expect("what is kept of a good configuration parses");
            assert!(spec == kept, "what is kept says the same");
            let (again, warnings) = bundle::parse_spec(&mut raw).expect("what is kept is good");
            assert!(spec == again);
            assert!(
                warnings.iter().all(|w| !w.contains("not known to rtc")),
                "what is kept has no unknown capability"
            );
            let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
            if let Some(Err(error)) = profile.map(seccomp::compile) {
                check_message(&format!("{error:#}"));
            }
        }
    }
});

/// An error message is printed to a terminal and into logs of one line per message.
fn check_message(message: &str) {
    assert!(!message.is_empty());
    assert!(!message.contains(|c: char| c.is_control()), "{message:?}");
}
