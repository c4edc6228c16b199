//! What a filter decides by the arguments of one system call: a decision tree over 32-bit words.
//!
//! ```text
//! level   := node node ...                 tried in order; where none decides, the level above goes on
//! node    := word OP datum ? next : next   word = low or high half of one argument
//! next    := action | level | go on with the next node of this level
//! ```
//!
//! A 64-bit comparison is two or three nodes: equal needs both halves equal; greater needs the high half greater,
//! or the high half equal and the low half greater; the negated operators are the same nodes with the branches
//! exchanged.
//!
//! Several conditional rules of one call are merged into one tree in the order that libseccomp's filters have,
//! which is not the profile's: higher argument first, then `=`-like before `<` before `>`, then the narrower value.
//! It only matters where rules with *different* actions overlap. Two rules with the same condition and different
//! actions contradict each other, and are refused.

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::MAX_INSTRUCTIONS;

/// One condition of a rule, on one argument; `mask` is all ones but for `SCMP_CMP_MASKED_EQ`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) operator: Operator,
    pub(super) mask: u64,
    pub(super) datum: u64,
}

/// A comparison that classic BPF has (`BPF_JEQ`, `BPF_JGT`, `BPF_JGE`), unsigned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
}

/// Half of a system call argument.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Word {
    pub(super) argument: u8,
    pub(super) high: bool,
}

/// Where a decision goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// To the next node of the level, then to what comes after the level.
    Fall,
    Act(u32),
    Level(Level),
}

/// One comparison: `(word & mask) test datum`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Node {
    pub(super) word: Word,
    pub(super) mask: u32,
    pub(super) test: Test,
    pub(super) datum: u32,
    pub(super) yes: Next,
    pub(super) no: Next,
    /// Of `SCMP_CMP_MASKED_EQ`, which is not taken for `SCMP_CMP_EQ` even where they are the same.
    masked: bool,
    rank: Rank,
    /// The whole value compared with, of which `datum` is a half.
    whole: u64,
}

/// Nodes in the order they are tried.
pub(super) type Level = Vec<Node>;

/// Of two nodes on one word, the kind that is tried first is the greater.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Rank {
    Above,
    Below,
    Equality,
}

/// Where a node goes in a level.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Sorted,
    Last,
}

/// Why a rule cannot be added.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// Another rule asks for a different action under the same condition.
    Contradiction,
    /// Each comparison is at least one instruction, and the kernel does not take so many: no need to go on sorting.
    TooMany,
}

/// The decision for one system call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Decision {
    Act(u32),
    Tree(Level),
}

impl Decision {
    /// The decision of a call's first rule. A rule without conditions, or one whose masks leave nothing to compare,
    /// is unconditional. `wide`: arguments have 64 bits, else only their low half is compared.
    pub(super) fn new(conditions: &[Condition], action: u32, wide: bool) -> Decision {
        let mut next = Next::Act(action);
        for condition in conditions.iter().rev() {
            if condition.is_vacuous(wide) {
                continue;
            }
            next = Next::Level(vec![if wide {
                condition.wide(next)
            } else {
                condition.narrow(next)
            }]);
        }
        match next {
            Next::Level(level) => Decision::Tree(level),
            _ => Decision::Act(action),
        }
    }

    /// Adds a later rule of the same call. The first unconditional rule decides alone, whatever comes before or after.
    pub(super) fn add(&mut self, later: Decision) -> Result<(), Refusal> {
        match (self, later) {
            (Decision::Act(_), _) => Ok(()),
            (this, act @ Decision::Act(_)) => {
                *this = act;
                Ok(())
            }
            (Decision::Tree(level), Decision::Tree(new)) => insert_all(level, new, Place::Sorted),
        }
    }
}

impl Condition {
    fn is_vacuous(&self, wide: bool) -> bool {
        self.operator == Operator::ScmpCmpMaskedEq
            && if wide {
                self.mask == 0
            } else {
                self.mask as u32 == 0
            }
    }

    fn rank(&self) -> Rank {
        match self.operator {
            Operator::ScmpCmpEq | Operator::ScmpCmpNe | Operator::ScmpCmpMaskedEq => Rank::Equality,
            Operator::ScmpCmpLt | Operator::ScmpCmpLe => Rank::Below,
            Operator::ScmpCmpGt | Operator::ScmpCmpGe => Rank::Above,
        }
    }

    fn node(&self, high: bool, test: Test, yes: Next, no: Next) -> Node {
        let half = |value: u64| if high { (value >> 32) as u32 } else { value as u32 };
        let word = Word {
            argument: self.argument,
            high,
        };
        let mask = half(self.mask);
        let datum = half(self.datum) & mask;
        Node {
            word,
            mask,
            test,
            datum,
            yes,
            no,
            masked: self.operator == Operator::ScmpCmpMaskedEq,
            rank: self.rank(),
            whole: self.datum,
        }
    }

    /// The BPF test of the low half, and whether the condition holds where the test does not.
    fn test(&self) -> (Test, bool) {
        match self.operator {
            Operator::ScmpCmpEq | Operator::ScmpCmpMaskedEq => (Test::Equal, false),
            Operator::ScmpCmpNe => (Test::Equal, true),
            Operator::ScmpCmpGt => (Test::Greater, false),
            Operator::ScmpCmpLe => (Test::Greater, true),
            Operator::ScmpCmpGe => (Test::GreaterOrEqual, false),
            Operator::ScmpCmpLt => (Test::GreaterOrEqual, true),
        }
    }

    fn narrow(&self, then: Next) -> Node {
        let (test, negated) = self.test();
        let (yes, no) = if negated {
            (Next::Fall, then)
        } else {
            (then, Next::Fall)
        };
        self.node(false, test, yes, no)
    }

    fn wide(&self, then: Next) -> Node {
        let low = |then: Next| Next::Level(vec![self.narrow(then)]);
        let (test, negated) = self.test();
        match (test, negated) {
            (Test::Equal, false) => self.node(true, Test::Equal, low(then), Next::Fall),
            (Test::Equal, true) => self.node(true, Test::Equal, low(then.clone()), then),
            (_, false) => {
                let equal = self.node(true, Test::Equal, low(then.clone()), Next::Fall);
                self.node(true, Test::Greater, then, Next::Level(vec![equal]))
            }
            (_, true) => {
                let equal = self.node(true, Test::Equal, low(then.clone()), then);
                self.node(true, Test::Greater, Next::Fall, Next::Level(vec![equal]))
            }
        }
    }
}

impl Node {
    fn same_test(&self, other: &Node) -> bool {
        let test = |node: &Node| (node.word, node.mask, node.test, node.masked, node.datum);
        test(self) == test(other)
    }

    /// Whether `other` is to be tried before this one, which was there first.
    fn yields_to(&self, other: &Node) -> bool {
        let key = |node: &Node| (node.word, node.rank);
        match key(self).cmp(&key(other)) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal if self.rank == Rank::Below => self.datum > other.datum,
            std::cmp::Ordering::Equal => self.datum < other.datum,
        }
    }

    fn is_leaf(&self) -> bool {
        !matches!(self.yes, Next::Level(_)) && !matches!(self.no, Next::Level(_))
    }

    /// Merges a node with the same test: both rules go on from here.
    fn merge(&mut self, new: Node, place: Place) -> Result<(), Refusal> {
        let ends_here = self.is_leaf() || new.is_leaf();
        // The wider `>` of two with the same high half also holds for all greater high halves: the narrower decides.
        let narrower = new.word.high && new.whole > self.whole;
        if let (Next::Act(old), Next::Act(action)) = (&mut self.yes, &new.yes)
            && old != action
            && narrower
        {
            *old = *action;
        }
        // A rule that is there and asks for less goes first in all that the two have in common.
        let is_longer = matches!((&self.yes, &new.yes), (Next::Act(_), Next::Level(_)));
        let place_of_no = if is_longer { Place::Last } else { place };
        merge_next(&mut self.yes, new.yes, ends_here, place)?;
        merge_next(&mut self.no, new.no, ends_here, place_of_no)
    }
}

fn merge_next(old: &mut Next, new: Next, ends_here: bool, place: Place) -> Result<(), Refusal> {
    match (old, new) {
        (_, Next::Fall) => Ok(()),
        (old @ Next::Fall, new) => {
            *old = new;
            Ok(())
        }
        (Next::Act(old), Next::Act(new)) if *old != new && ends_here => Err(Refusal::Contradiction),
        (Next::Act(_), _) => Ok(()),
        (Next::Level(level), Next::Level(new)) => insert_all(level, new, place),
        (old @ Next::Level(_), Next::Act(action)) => {
            let Next::Level(level) = &*old else { return Ok(()) };
            if !only_acts(level, action) {
                return Err(Refusal::Contradiction);
            }
            *old = Next::Act(action);
            Ok(())
        }
    }
}

fn insert_all(level: &mut Level, new: Level, place: Place) -> Result<(), Refusal> {
    new.into_iter().try_for_each(|node| insert(level, node, place))
}

fn insert(level: &mut Level, new: Node, place: Place) -> Result<(), Refusal> {
    if level.len() > MAX_INSTRUCTIONS {
        return Err(Refusal::TooMany);
    }
    for at in 0..level.len() {
        if level[at].same_test(&new) {
            return level[at].merge(new, place);
        }
        if place == Place::Sorted && level[at].yields_to(&new) {
            level.insert(at, new);
            return Ok(());
        }
    }
    level.push(new);
    Ok(())
}

/// Whether every action below a level is this one.
fn only_acts(level: &Level, action: u32) -> bool {
    let only = |next: &Next| match next {
        Next::Fall => true,
        Next::Act(other) => *other == action,
        Next::Level(below) => only_acts(below, action),
    };
    level.iter().all(|node| only(&node.yes) && only(&node.no))
}
