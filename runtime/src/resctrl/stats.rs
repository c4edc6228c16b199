//! What a resctrl group gets and has used, in the form of runc's `events` (its `types.IntelRdt`).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// All of it. What the machine does not have is left out.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct RdtStats {
    /// The L3 cache of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l3_cache_info: Option<CacheInfo>,
    /// What the default group gets of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema_root: String,
    /// What the container gets of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub l3_cache_schema: String,
    /// The memory bandwidth of this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_bw_info: Option<BandwidthInfo>,
    /// What the default group gets of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema_root: String,
    /// What the container gets of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mem_bw_schema: String,
    /// All that the container gets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schemata: Vec<String>,
    /// Memory bandwidth used, for each L3 cache, where it is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbm_stats: Option<Vec<BandwidthUse>>,
    /// Cache used, for each L3 cache, where it is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmt_stats: Option<Vec<CacheUse>>,
}

/// `info/L3`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheInfo {
    /// All bits, in hexadecimal.
    pub cbm_mask: String,
    /// How many a group has at least.
    pub min_cbm_bits: u64,
    /// How many groups there can be.
    pub num_closids: u64,
}

/// `info/MB`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct BandwidthInfo {
    /// Steps, in percent.
    pub bandwidth_gran: u64,
    /// Whether the steps are even.
    #[serde(skip_serializing_if = "is_zero")]
    pub delay_linear: u64,
    /// The least, in percent.
    pub min_bandwidth: u64,
    /// How many groups there can be.
    pub num_closids: u64,
}

/// Bytes between one L3 cache and memory.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct BandwidthUse {
    /// All.
    pub mbm_total_bytes: u64,
    /// Those of memory beside it.
    pub mbm_local_bytes: u64,
}

/// Bytes in one L3 cache.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheUse {
    /// Now.
    pub llc_occupancy: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Reads the files of a group, and of what is counted apart for the container.
pub(super) fn read(root: &Path, group: &Path, monitoring: Option<&Path>) -> Result<RdtStats> {
    let of_root = text(&root.join("schemata"))?.unwrap_or_default();
    let of_group = text(&group.join("schemata"))?.unwrap_or_default();
    let mut stats = RdtStats {
        schemata: of_group.lines().map(|line| line.trim().to_owned()).collect(),
        ..RdtStats::default()
    };
    let info = root.join("info");
    let number = |path: &str| -> Result<u64> {
        let path = info.join(path);
        let text = text(&path)?.unwrap_or_default();
        text.trim()
            .parse()
            .with_context(|| format!("{}: {text:?}: no number", path.display()))
    };
    if info.join("L3").is_dir() {
        stats.l3_cache_info = Some(CacheInfo {
            cbm_mask: text(&info.join("L3/cbm_mask"))?
                .unwrap_or_default()
                .trim()
                .to_owned(),
            min_cbm_bits: number("L3/min_cbm_bits")?,
            num_closids: number("L3/num_closids")?,
        });
        stats.l3_cache_schema_root = line(&of_root, "L3");
        stats.l3_cache_schema = line(&of_group, "L3");
    }
    if info.join("MB").is_dir() {
        stats.mem_bw_info = Some(BandwidthInfo {
            bandwidth_gran: number("MB/bandwidth_gran")?,
            delay_linear: number("MB/delay_linear")?,
            min_bandwidth: number("MB/min_bandwidth")?,
            num_closids: number("MB/num_closids")?,
        });
        stats.mem_bw_schema_root = line(&of_root, "MB");
        stats.mem_bw_schema = line(&of_group, "MB");
    }
    let features = text(&info.join("L3_MON/mon_features"))?.unwrap_or_default();
    let counts = |feature: &str| features.lines().any(|known| known == feature);
    count(monitoring.unwrap_or(group), counts, &mut stats)?;
    Ok(stats)
}

fn count(group: &Path, counts: impl Fn(&str) -> bool, stats: &mut RdtStats) -> Result<()> {
    let (bandwidth, cache) = (
        counts("mbm_total_bytes") || counts("mbm_local_bytes"),
        counts("llc_occupancy"),
    );
    if !bandwidth && !cache {
        return Ok(());
    }
    let data = group.join("mon_data");
    let listed = fs::read_dir(&data).with_context(|| format!("read {}", data.display()))?;
    let mut domains: Vec<_> = listed
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    domains.sort();
    // "Unavailable" and the like of a counter that has nothing to tell yet is 0.
    let number = |path: &Path| -> Result<u64> {
        Ok(text(path)?.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    };
    for domain in domains {
        if bandwidth {
            stats.mbm_stats.get_or_insert_default().push(BandwidthUse {
                mbm_total_bytes: number(&domain.join("mbm_total_bytes"))?,
                mbm_local_bytes: number(&domain.join("mbm_local_bytes"))?,
            });
        }
        if cache {
            stats.cmt_stats.get_or_insert_default().push(CacheUse {
                llc_occupancy: number(&domain.join("llc_occupancy"))?,
            });
        }
    }
    Ok(())
}

/// The last line about a resource.
fn line(schemata: &str, resource: &str) -> String {
    let found = schemata.lines().rfind(|line| line.contains(resource));
    found.unwrap_or_default().trim().to_owned()
}

fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_told_as_runc_tells_it() {
        let root = std::env::temp_dir().join(format!("rtc-resctrl-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (path, text) in [
            ("schemata", "    MB:0=100\n    L3:0=fffff\n"),
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\n"),
            ("c1/schemata", "    MB:0= 20\n    L3:0=0000f\n"),
            ("c1/mon_data/mon_L3_00/llc_occupancy", "4096\n"),
            ("c1/mon_data/mon_L3_00/mbm_total_bytes", "Unavailable\n"),
        ] {
            write(path, text);
        }
        let stats = read(&root, &root.join("c1"), None).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            serde_json::to_value(&stats).unwrap(),
            serde_json::json!({
                "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
                "l3_cache_schema_root": "L3:0=fffff",
                "l3_cache_schema": "L3:0=0000f",
                "schemata": ["MB:0= 20", "L3:0=0000f"],
                "mbm_stats": [{"mbm_total_bytes": 0, "mbm_local_bytes": 0}],
                "cmt_stats": [{"llc_occupancy": 4096}]
            })
        );
    }
}
