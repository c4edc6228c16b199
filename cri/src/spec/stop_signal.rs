//! The signal that asks a container to stop.

use nix::libc;

use crate::error::{Error, Result};
use crate::image::Untrusted;
use crate::proto::{ContainerConfig, Signal};

/// SIGRTMIN of a container's C library: glibc and musl keep two or three for themselves; the number is the field's.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Linux's number: the request's, else the image's, else SIGTERM. An image's that is none is SIGTERM, too.
///
/// # Errors
///
/// `InvalidArgument`: the request's is none.
pub(super) fn of(config: &ContainerConfig, image: &Untrusted) -> Result<i32> {
    let asked = Signal::try_from(config.stop_signal).map_err(|_| {
        Error::invalid(format_args!(
            "config.stop_signal: {}: is no signal",
            config.stop_signal
        ))
    })?;
    if asked == Signal::RuntimeDefault {
        return Ok(number(&image.stop_signal).unwrap_or(libc::SIGTERM));
    }
    number(asked.as_str_name()).ok_or_else(|| {
        Error::invalid(format_args!(
            "config.stop_signal: {}: is no signal",
            asked.as_str_name()
        ))
    })
}

/// `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `SIGRTMINPLUS3` (CRI's).
fn number(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Ok(number) = name.parse() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let offset = |rest: &str, word: &str, sign: char| -> Option<i32> {
        let digits = rest.strip_prefix(word).or_else(|| rest.strip_prefix(sign))?;
        digits
            .parse()
            .ok()
            .filter(|offset| (0..=RTMAX - RTMIN).contains(offset))
    };
    match name {
        "RTMIN" => return Some(RTMIN),
        "RTMAX" => return Some(RTMAX),
        "CLD" => return Some(libc::SIGCHLD),
        "POLL" => return Some(libc::SIGIO),
        "IOT" => return Some(libc::SIGABRT),
        "UNUSED" => return Some(libc::SIGSYS),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest, "PLUS", '+').map(|offset| RTMIN + offset);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest, "MINUS", '-').map(|offset| RTMAX - offset);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_image(signal: &str) -> i32 {
        of(
            &ContainerConfig::default(),
            &Untrusted {
                stop_signal: signal.into(),
                ..Default::default()
            },
        )
        .unwrap()
    }

    #[test]
    fn the_images_signal_is_known_in_every_form() {
        for (text, signal) in [
            ("", 15),
            ("SIGQUIT", 3),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGCLD", 17),
            ("nonsense", 15),
            ("0", 15),
            ("65", 15),
            ("SIGRTMIN+99", 15),
        ] {
            assert_eq!(of_image(text), signal, "{text}");
        }
    }

    #[test]
    fn all_signals_of_cri_have_a_number_of_linux() {
        let mut known = 0;
        for value in 1..100 {
            let Ok(signal) = Signal::try_from(value) else {
                continue;
            };
            let config = ContainerConfig {
                stop_signal: value,
                ..Default::default()
            };
            let number =
                of(&config, &Untrusted::default()).unwrap_or_else(|error| panic!("{signal:?}: {error}"));
            assert!((1..=64).contains(&number), "{signal:?}");
            known += 1;
        }
        assert!(known >= 65, "{known}");
        let config = ContainerConfig {
            stop_signal: 999,
            ..Default::default()
        };
        assert!(of(&config, &Untrusted::default()).is_err());
    }
}
