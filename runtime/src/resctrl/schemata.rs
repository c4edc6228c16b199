//! Lines of a resctrl `schemata` file: `L3:0=7f0;1=1f`. Pure.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// What each resource gives from each cache or node, without the zeros the kernel pads numbers with.
fn parse<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<(&'a str, &'a str), String> {
    let mut all = BTreeMap::new();
    for line in lines {
        let Some((resource, values)) = line.split_once(':') else {
            continue;
        };
        for (id, value) in values.split(';').filter_map(|value| value.split_once('=')) {
            all.insert(
                (resource.trim(), without_zeros(id)),
                without_zeros(value).to_ascii_lowercase(),
            );
        }
    }
    all
}

fn without_zeros(number: &str) -> &str {
    let number = number.trim();
    let stripped = number.trim_start_matches('0');
    // The last of nothing but zeros stays.
    if stripped.is_empty() && !number.is_empty() {
        &number[number.len() - 1..]
    } else {
        stripped
    }
}

/// Whether a group that is there gives what is asked for; of two lines about the same the later counts.
///
/// # Errors
///
/// The first value that differs.
pub(super) fn compare(asked: &[&str], there: &str) -> Result<()> {
    let found = parse(there.lines());
    for ((resource, id), value) in parse(asked.iter().flat_map(|lines| lines.lines())) {
        match found.get(&(resource, id)) {
            Some(there) if *there == value => {}
            Some(there) => bail!("{resource}:{id}={value} is asked for, {there} is there"),
            None => bail!("{resource}:{id}={value} is asked for, and there is no such resource"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: &str = "    MB:0=100;1= 70\n    L3:0=007F0;1=1f\n";

    #[test]
    fn numbers_are_compared_as_the_kernel_pads_them() {
        compare(&["L3:0=7f0", "MB:01=70"], THERE).unwrap();
        compare(&["L3:1=1f;0=7f0"], THERE).unwrap();
        compare(&["L3:0=1", "L3:0=7f0"], THERE).unwrap();
        compare(&[], THERE).unwrap();
        compare(&["L3:0=0"], "L3:0=000\n").unwrap();
    }

    #[test]
    fn what_differs_is_told() {
        let error = |asked| compare(asked, THERE).unwrap_err().to_string();
        assert_eq!(error(&["L3:0=7f0;1=ff"]), "L3:1=ff is asked for, 1f is there");
        assert_eq!(
            error(&["L2:0=f"]),
            "L2:0=f is asked for, and there is no such resource"
        );
        assert_eq!(
            error(&["L3:2=f"]),
            "L3:2=f is asked for, and there is no such resource"
        );
    }
}
