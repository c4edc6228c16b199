//! What is shown to a person: tables, sizes, ages, a progress bar; and what of a peer's words must not reach a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Text of others without what a terminal obeys.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A table with these headings, its columns as wide as they need be.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let all: Vec<Vec<String>> = std::iter::once(headings.iter().map(|&heading| heading.to_owned()).collect())
        .chain(
            rows.iter()
                .map(|row| row.iter().map(|cell| harmless(cell)).collect()),
        )
        .collect();
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   ", width = *width));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Writes a verb's answer to standard output. Who does not read on has read enough.
pub(super) fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
    let _ = std::io::stdout().flush();
}

/// Bytes, in the units of SI, as registries count them.
pub(super) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in units {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    if unit == "B" {
        format!("{bytes} B")
    } else if value < 9.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// How long ago it was, in the largest unit.
pub(super) fn age(nanoseconds: i64, now: std::time::SystemTime) -> String {
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let seconds = now.saturating_sub(u64::try_from(nanoseconds).unwrap_or(0) / 1_000_000_000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// Typed characters are not shown, while this is there.
#[derive(Debug)]
pub(super) struct NoEcho(Option<Termios>);

impl NoEcho {
    /// Asks, where a person sits at the keyboard.
    ///
    /// # Errors
    ///
    /// The terminal can't be set.
    pub(super) fn on_stdin(question: &str) -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        eprint!("{question}");
        let old = tcgetattr(&stdin)?;
        let mut quiet = old.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&stdin, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(Some(old)))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        if let Some(old) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, old);
            eprintln!();
        }
    }
}

/// The terminal passes all keys on, while this is there.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Of standard input.
    ///
    /// # Errors
    ///
    /// It is no terminal.
    pub(super) fn of_stdin() -> anyhow::Result<Self> {
        let stdin = std::io::stdin();
        let old = tcgetattr(&stdin)?;
        let mut raw = old.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Self(old))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// How often a line says how far it is where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Characters of the bar itself.
const BAR: usize = 24;

/// How far a pull is: a bar on a terminal, else a line now and then. On standard error.
#[derive(Debug)]
pub(super) struct Bar {
    what: String,
    begun: Instant,
    terminal: bool,
    last_line: Instant,
    drawn: bool,
}

/// What a bar shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) layers: u32,
    pub(super) done: u32,
    pub(super) size: u64,
    pub(super) taken: u64,
}

impl Bar {
    pub(super) fn new(what: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            eprintln!("pulling {}", harmless(what));
        }
        Self {
            what: harmless(what),
            begun: Instant::now(),
            terminal,
            last_line: Instant::now(),
            drawn: false,
        }
    }

    /// How often it wants to be told.
    pub(super) fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 100 } else { 500 })
    }

    /// Shows how far it is; `None`: that is not known.
    pub(super) fn show(&mut self, step: Option<Step>) {
        let elapsed = self.begun.elapsed();
        if self.terminal {
            let width = rtc_runtime::sys::tty::size(std::io::stderr()).map_or(80, |size| size.columns);
            let line = line(&self.what, step, elapsed, true);
            let shown: String = line.chars().take(usize::from(width).saturating_sub(1)).collect();
            eprint!("\r\x1b[K{shown}");
            self.drawn = true;
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            eprintln!("{}", line(&self.what, step, elapsed, false));
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&mut self) {
        if std::mem::take(&mut self.drawn) {
            eprint!("\r\x1b[K");
        }
    }

    /// The time it took, in seconds.
    pub(super) fn seconds(&self) -> f32 {
        self.begun.elapsed().as_secs_f32()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

fn line(what: &str, step: Option<Step>, elapsed: Duration, bar: bool) -> String {
    let seconds = elapsed.as_secs();
    let Some(step) = step.filter(|step| step.layers > 0) else {
        // The manifest is on its way, or the server does not tell.
        return format!("{what}: {seconds} s");
    };
    let share = if step.size == 0 {
        1.0
    } else {
        (step.taken as f64 / step.size as f64).min(1.0)
    };
    let drawn = if bar {
        let full = (share * BAR as f64) as usize;
        format!(" [{}{}]", "#".repeat(full), " ".repeat(BAR - full))
    } else {
        ":".to_owned()
    };
    let (taken, all, layers) = (size(step.taken), size(step.size), step.layers);
    let rate = match elapsed.as_millis() {
        0..500 => String::new(),
        milliseconds => format!(
            ", {}/s",
            size(u64::try_from(u128::from(step.taken) * 1000 / milliseconds).unwrap_or(u64::MAX))
        ),
    };
    format!(
        "{what}{drawn} {taken} of {all}{rate}, {} of {layers} layers",
        step.done
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_s_words_do_not_move_the_cursor() {
        assert_eq!(harmless("a\u{1b}[2J\tb\nc"), "a\\u{1b}[2J\\tb\nc");
    }

    #[test]
    fn sizes_and_ages_are_short() {
        let sizes = [0, 999, 1000, 1_234_567, 45_600_000, 999_600_000].map(size);
        assert_eq!(sizes, ["0 B", "999 B", "1.0 kB", "1.2 MB", "46 MB", "1.0 GB"]);
        let now = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ago = |seconds: i64| age((1_000_000 - seconds) * 1_000_000_000, now);
        assert_eq!([5, 300, 7200, 200_000].map(ago), ["5s", "5m", "2h", "2d"]);
    }

    #[test]
    fn a_table_has_columns() {
        let rows = vec![
            vec!["a".into(), "long one".into()],
            vec!["longer".into(), "b".into()],
        ];
        assert_eq!(
            table(&["ID", "NAME"], &rows),
            "ID       NAME\na        long one\nlonger   b\n"
        );
    }

    #[test]
    fn a_bar_shows_bytes_that_came_and_nothing_that_is_not_known() {
        let step = Step {
            layers: 3,
            done: 1,
            size: 40_000_000,
            taken: 10_000_000,
        };
        let shown = line("x", Some(step), Duration::from_secs(2), true);
        assert_eq!(
            shown,
            "x [######                  ] 10 MB of 40 MB, 5.0 MB/s, 1 of 3 layers"
        );
        let shown = line("x", Some(step), Duration::from_secs(2), false);
        assert_eq!(shown, "x: 10 MB of 40 MB, 5.0 MB/s, 1 of 3 layers");
        assert_eq!(line("x", None, Duration::from_secs(7), true), "x: 7 s");
    }
}
