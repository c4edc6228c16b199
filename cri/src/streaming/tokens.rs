//! What was asked for, until its URL is opened: a secret that is good once, for a minute.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Kind, Result};
use crate::locked;

/// How long a URL may be opened.
pub(super) const LIFE: Duration = Duration::from_secs(60);
/// So many may wait to be opened.
const WAITING_MAX: usize = 1000;

/// Things by their tokens: 32 random bytes, base64url.
#[derive(Debug)]
pub(super) struct Tokens<T>(Mutex<HashMap<String, (Instant, T)>>);

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Tokens<T> {
    /// Keeps it. Returns its token.
    ///
    /// # Errors
    ///
    /// `ResourceExhausted`: too many wait; there is no `/dev/urandom`.
    pub(super) fn insert(&self, kept: T) -> Result<String> {
        self.insert_at(Instant::now(), kept)
    }

    fn insert_at(&self, now: Instant, kept: T) -> Result<String> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context("/dev/urandom")?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.locked();
        if waiting.len() >= WAITING_MAX {
            waiting.retain(|_, (since, _)| is_good(*since, now));
        }
        if waiting.len() >= WAITING_MAX {
            return Err(Error::text(
                Kind::ResourceExhausted,
                format_args!(
                    "{WAITING_MAX} streams were asked for and not opened: open them, or wait {} s",
                    LIFE.as_secs()
                ),
            ));
        }
        waiting.insert(token.clone(), (now, kept));
        Ok(token)
    }

    /// What was kept, where it passes; then the token is good no more. A wrong door leaves it as it is.
    pub(super) fn take(&self, token: &str, passes: impl FnOnce(&T) -> bool) -> Option<T> {
        self.take_at(Instant::now(), token, passes)
    }

    fn take_at(&self, now: Instant, token: &str, passes: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut waiting = self.locked();
        let (since, kept) = waiting.get(token)?;
        if !is_good(*since, now) {
            waiting.remove(token);
            return None;
        }
        if !passes(kept) {
            return None;
        }
        waiting.remove(token).map(|(_, kept)| kept)
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, (Instant, T)>> {
        locked(&self.0)
    }
}

fn is_good(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < LIFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let start = Instant::now();
        let (one, two) = (
            tokens.insert_at(start, 1).unwrap(),
            tokens.insert_at(start, 2).unwrap(),
        );
        assert_eq!(one.len(), 43);
        assert_ne!(one, two);
        assert_eq!(tokens.take_at(start, &one, |_| false), None);
        assert_eq!(tokens.take_at(start + LIFE / 2, &one, |kept| *kept == 1), Some(1));
        assert_eq!(tokens.take_at(start, &one, |_| true), None);
        assert_eq!(tokens.take_at(start + LIFE, &two, |_| true), None);
        assert_eq!(
            tokens.take_at(start, &two, |_| true),
            None,
            "it was too late once"
        );
    }

    #[test]
    fn too_many_that_wait_are_refused_until_they_expire() {
        let tokens = Tokens::default();
        let start = Instant::now();
        for number in 0..WAITING_MAX {
            tokens.insert_at(start, number).unwrap();
        }
        let error = tokens.insert_at(start, 0).unwrap_err();
        assert_eq!(error.kind, Kind::ResourceExhausted);
        tokens.insert_at(start + LIFE, 0).unwrap();
        assert_eq!(tokens.locked().len(), 1);
    }
}
