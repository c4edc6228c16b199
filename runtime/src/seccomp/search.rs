//! The binary search over system call numbers.
//!
//! Neighbouring numbers with the same target are one range. A range that differs from both neighbours in one number
//! only costs one instruction (`BPF_JEQ`) instead of two, so ranges are first gathered into spans of one target with
//! a few exceptions; the search is over the spans.

use super::program::{Program, Target};
use super::tree::Test;

/// Exceptions are tried one after the other: more of them make a span slower than a deeper search.
const EXCEPTIONS: usize = 4;

/// All numbers, as ranges: each from its first number to the next range's.
pub(super) struct Ranges {
    starts: Vec<(u32, Target)>,
}

struct Span {
    start: u32,
    target: Target,
    exceptions: Vec<(u32, Target)>,
}

impl Ranges {
    /// Every number has the same target.
    pub(super) fn new(target: Target) -> Ranges {
        Ranges {
            starts: vec![(0, target)],
        }
    }

    /// From `number` on, which must not be less than in the call before, the target is another.
    pub(super) fn from(&mut self, number: u32, target: Target) {
        if self.starts.last().is_some_and(|(start, _)| *start == number) {
            self.starts.pop();
        }
        if self.starts.last().is_none_or(|(_, last)| *last != target) {
            self.starts.push((number, target));
        }
    }

    /// Writes the search; the number is loaded when it is entered.
    pub(super) fn write(&self, program: &mut Program) -> Target {
        write(program, &self.spans())
    }

    fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut at = 0;
        while let Some(&(start, target)) = self.starts.get(at) {
            let mut exceptions = Vec::new();
            let mut pending = Vec::new();
            let mut end = at + 1;
            for next in at + 1..self.starts.len() {
                let (number, other) = self.starts[next];
                if other == target {
                    exceptions.append(&mut pending);
                    end = next + 1;
                } else if self.is_single(next) && exceptions.len() + pending.len() < EXCEPTIONS {
                    pending.push((number, other));
                } else {
                    break;
                }
            }
            spans.push(Span {
                start,
                target,
                exceptions,
            });
            at = end;
        }
        spans
    }

    fn is_single(&self, at: usize) -> bool {
        self.starts
            .get(at + 1)
            .is_some_and(|(next, _)| *next == self.starts[at].0 + 1)
    }
}

fn write(program: &mut Program, spans: &[Span]) -> Target {
    if let [span] = spans {
        return span
            .exceptions
            .iter()
            .rev()
            .fold(span.target, |otherwise, (number, target)| {
                program.branch(Test::Equal, *number, *target, otherwise)
            });
    }
    let (low, high) = spans.split_at(spans.len() / 2);
    let above = write(program, high);
    let below = write(program, low);
    program.branch(Test::GreaterOrEqual, high[0].start, above, below)
}
