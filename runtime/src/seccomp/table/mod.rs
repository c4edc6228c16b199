//! System call names and numbers, compact: one blob of names and columns of `u16`, for the ABIs that a kernel of
//! this target can run and no others.
//!
//! The rows are written by `hack/gen-syscalls`; the compiler folds them into the blob, so the pairs of pointer and
//! length that a `&[&str]` would need are not in the binary. All tables are compiled in unit tests.

#[cfg(any(test, target_arch = "aarch64"))]
mod arm;
#[cfg(any(test, target_arch = "loongarch64"))]
mod loongarch64;
#[cfg(any(test, target_arch = "powerpc64"))]
mod powerpc64;
#[cfg(any(test, target_arch = "riscv64"))]
mod riscv64;
#[cfg(any(test, target_arch = "s390x"))]
mod s390x;
#[cfg(any(test, target_arch = "x86_64"))]
mod x86;

#[cfg(target_arch = "aarch64")]
use arm::ROWS;
#[cfg(target_arch = "loongarch64")]
use loongarch64::ROWS;
#[cfg(target_arch = "powerpc64")]
use powerpc64::ROWS;
#[cfg(target_arch = "riscv64")]
use riscv64::ROWS;
#[cfg(target_arch = "s390x")]
use s390x::ROWS;
#[cfg(target_arch = "x86_64")]
use x86::ROWS;

/// A name and its number in each of `A` ABIs.
type Row<const A: usize> = (&'static str, [u16; A]);

/// The call does not exist in this ABI.
const NONE: u16 = u16::MAX;

/// ARM's private calls (0xf0001 and on) are stored as 0xf001 and on.
const ARM_PRIVATE: u16 = 0xf000;
const ARM_PRIVATE_BASE: u32 = 0x000f_0000;

/// How many ABIs this target's table has; `arch::ABIS` has one entry for each column.
pub(super) const COLUMNS: usize = columns(&ROWS);

const LEN: usize = ROWS.len();
const BLOB_LEN: usize = blob_len(&ROWS);

static NAMES: [u8; BLOB_LEN] = blob(&ROWS);
static ENDS: [u16; LEN] = ends(&ROWS);
static NUMBERS: [[u16; COLUMNS]; LEN] = numbers(&ROWS);

/// How many rows after the last one found are tried first: profiles name calls mostly in alphabetical order.
const NEAR: usize = 6;

/// The row of a name, `None` where no ABI of this target has such a call. `after` is the row found last, or any other.
pub(super) fn find(name: &str, after: usize) -> Option<usize> {
    let near = after..LEN.min(after + NEAR);
    near.into_iter()
        .find(|row| name_at(*row) == name.as_bytes())
        .or_else(|| search(name))
}

fn search(name: &str) -> Option<usize> {
    let (mut low, mut high) = (0, LEN);
    while low < high {
        let middle = (low + high) / 2;
        match name_at(middle).cmp(name.as_bytes()) {
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

/// The number of a row's call in one ABI, `None` where that ABI has no such call.
pub(super) fn number(row: usize, column: usize) -> Option<u32> {
    decode(NUMBERS[row][column])
}

const fn decode(stored: u16) -> Option<u32> {
    match stored {
        NONE => None,
        private if private >= ARM_PRIVATE => Some(ARM_PRIVATE_BASE + (private - ARM_PRIVATE) as u32),
        plain => Some(plain as u32),
    }
}

fn name_at(row: usize) -> &'static [u8] {
    let start = if row == 0 { 0 } else { usize::from(ENDS[row - 1]) };
    &NAMES[start..usize::from(ENDS[row])]
}

const fn columns<const A: usize, const N: usize>(_rows: &[Row<A>; N]) -> usize {
    A
}

const fn blob_len<const A: usize>(rows: &[Row<A>]) -> usize {
    let (mut row, mut total) = (0, 0);
    while row < rows.len() {
        total += rows[row].0.len();
        row += 1;
    }
    assert!(total < u16::MAX as usize, "the offsets of the names are u16");
    total
}

const fn blob<const A: usize, const B: usize>(rows: &[Row<A>]) -> [u8; B] {
    let mut out = [0; B];
    let (mut row, mut at) = (0, 0);
    while row < rows.len() {
        let name = rows[row].0.as_bytes();
        let mut byte = 0;
        while byte < name.len() {
            out[at] = name[byte];
            at += 1;
            byte += 1;
        }
        row += 1;
    }
    out
}

const fn ends<const A: usize, const N: usize>(rows: &[Row<A>; N]) -> [u16; N] {
    let mut out = [0; N];
    let (mut row, mut end) = (0, 0);
    while row < N {
        end += rows[row].0.len();
        out[row] = end as u16;
        row += 1;
    }
    out
}

const fn numbers<const A: usize, const N: usize>(rows: &[Row<A>; N]) -> [[u16; A]; N] {
    let mut out = [[NONE; A]; N];
    let mut row = 0;
    while row < N {
        out[row] = rows[row].1;
        row += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_table_is_found_with_its_own_number() {
        for (row, (name, numbers)) in ROWS.iter().enumerate() {
            for after in [0, row.saturating_sub(3), row, row + 1, LEN - 1, LEN] {
                assert_eq!(find(name, after), Some(row), "{name}");
            }
            for (column, stored) in numbers.iter().enumerate() {
                assert_eq!(number(row, column), decode(*stored), "{name}");
            }
        }
        assert_eq!(find("no_such_call", 0), None);
        assert_eq!(find("", LEN), None);
    }

    fn is_sorted<const A: usize>(rows: &[Row<A>]) -> bool {
        rows.is_sorted_by(|a, b| a.0 < b.0)
    }

    #[test]
    fn the_tables_of_all_targets_are_sorted_by_name() {
        assert!(is_sorted(&ROWS) && is_sorted(&arm::ROWS) && is_sorted(&riscv64::ROWS));
        assert!(is_sorted(&powerpc64::ROWS) && is_sorted(&s390x::ROWS) && is_sorted(&loongarch64::ROWS));
    }

    #[test]
    fn well_known_numbers_are_as_in_the_kernel_headers() {
        let of = |name: &str| find(name, 0).map(|row| number(row, 0)).unwrap();
        assert_eq!(of("execve"), Some(libc::SYS_execve as u32));
        assert_eq!(of("clone3"), Some(libc::SYS_clone3 as u32));
        assert_eq!(of("getppid"), Some(libc::SYS_getppid as u32));
        assert_eq!(
            arm::ROWS
                .iter()
                .find(|row| row.0 == "cacheflush")
                .map(|row| decode(row.1[1])),
            Some(Some(0xf0002))
        );
    }
}
