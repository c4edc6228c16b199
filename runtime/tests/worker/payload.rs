//! What runs in the containers: this program again.

use std::time::Duration;

/// What runs in the containers.
pub(crate) fn run(arguments: &[String]) -> u8 {
    match arguments.first().map(String::as_str) {
        Some("sleep") => std::thread::sleep(Duration::from_secs(1000)),
        Some("eat") => std::mem::forget(std::hint::black_box(vec![1_u8; 256 << 20])),
        Some("leave") => {
            let left = std::process::Command::new("/payload")
                .args(["payload", "sleep"])
                .spawn();
            assert!(left.is_ok());
        }
        Some("host") => println!("{}", nix::unistd::gethostname().unwrap_or_default().display()),
        Some("look") => crate::pod::look(),
        Some("orphans") => crate::pod::orphans(),
        Some("terminate") => crate::pod::terminate(),
        Some("leave-dead") => {
            let left = std::process::Command::new("/payload").arg("payload").spawn();
            assert!(left.is_ok());
        }
        Some("say") => println!("{}", arguments[1]),
        _ => {}
    }
    let code = arguments.last().and_then(|code| code.parse().ok());
    code.unwrap_or(0)
}
