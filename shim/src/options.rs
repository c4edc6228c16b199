//! The runtime's options: what containerd's configuration says under `options`.
//!
//! ```text
//! containerd.runc.v1.Options     `ctr --runtime io.containerd.runc.v2`, our own CRI server
//! runtimeoptions.v1.Options      containerd's CRI for a `runtime_type` it does not know: the table as TOML in config_body;
//!                                `ctr --runtime-config-path`: the path of such a file
//! ```

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::Deserialize;

use crate::error::{Error, Kind, Result};

const RUNC: &str = "containerd.runc.v1.Options";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// runc's options, which any runtime handler of containerd may be given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Above the state of the containers, instead of the default.
    pub(crate) root: Option<PathBuf>,
    /// Let systemd make the cgroups.
    pub(crate) systemd_cgroup: bool,
    /// Do not pivot into the root.
    pub(crate) no_pivot_root: bool,
    /// Keep the shim's session keyring.
    pub(crate) no_new_keyring: bool,
    /// Owner of the pipes for stdio.
    pub(crate) io_uid: u32,
    /// Group of the pipes for stdio.
    pub(crate) io_gid: u32,
    /// A foreign OCI runtime, by name or path; `None` is the one inside of the shim.
    pub(crate) binary_name: Option<PathBuf>,
    /// A cgroup for the shim.
    pub(crate) shim_cgroup: Option<PathBuf>,
    /// Where checkpoints go.
    pub(crate) criu_image_path: Option<PathBuf>,
    /// Where CRIU works.
    pub(crate) criu_work_path: Option<PathBuf>,
}

/// The names in containerd's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Table {
    root: String,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    io_uid: u32,
    io_gid: u32,
    binary_name: String,
    shim_cgroup: String,
    criu_image_path: String,
    criu_work_path: String,
    /// Of containerd before 2.0, which writes it into its default configuration; empty there.
    criu_path: String,
    /// containerd's own, of `runtimeoptions.v1.Options`: it reads them from the same table.
    #[serde(rename = "TypeUrl")]
    _type_url: String,
    #[serde(rename = "ConfigPath")]
    _config_path: String,
}

/// Whether a message of this type can be our options.
pub(crate) fn is_known(type_url: &str) -> bool {
    matches!(name(type_url), RUNC | GENERIC)
}

/// The type's name, without the host that may stand before it.
fn name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

impl Options {
    /// From a request: `containerd.runc.v1.Options`, or `runtimeoptions.v1.Options` whose body is TOML.
    ///
    /// # Errors
    ///
    /// Another type, or what can't be read as this one: `InvalidArgument`, with the option's name.
    pub(crate) fn parse(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
            return Ok(Self::default());
        };
        let table = match name(&any.type_url) {
            RUNC => of_runc(&any.value),
            GENERIC => of_generic(&any.value),
            other => Err(anyhow!("type {other:?}: must be {RUNC} or {GENERIC}")),
        };
        table
            .and_then(Self::checked)
            .map_err(|error| Error::new(Kind::InvalidArgument, error.context("options")))
    }

    fn checked(table: Table) -> anyhow::Result<Self> {
        if !table.criu_path.is_empty() {
            return Err(anyhow!(
                "CriuPath {:?}: must be empty: criu is looked for in PATH",
                table.criu_path
            ));
        }
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        Ok(Self {
            root: path(table.root),
            systemd_cgroup: table.systemd_cgroup,
            no_pivot_root: table.no_pivot_root,
            no_new_keyring: table.no_new_keyring,
            io_uid: table.io_uid,
            io_gid: table.io_gid,
            binary_name: path(table.binary_name),
            shim_cgroup: path(table.shim_cgroup),
            criu_image_path: path(table.criu_image_path),
            criu_work_path: path(table.criu_work_path),
        })
    }
}

fn of_runc(value: &[u8]) -> anyhow::Result<Table> {
    let options = oci::Options::parse_from_bytes(value).context(RUNC)?;
    Ok(Table {
        root: options.root,
        systemd_cgroup: options.systemd_cgroup,
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        io_uid: options.io_uid,
        io_gid: options.io_gid,
        binary_name: options.binary_name,
        shim_cgroup: options.shim_cgroup,
        criu_image_path: options.criu_image_path,
        criu_work_path: options.criu_work_path,
        ..Table::default()
    })
}

/// `type_url = 1, config_path = 2, config_body = 3`: the crate of the protocols has no such message.
fn of_generic(value: &[u8]) -> anyhow::Result<Table> {
    let mut config_path = String::new();
    let mut body = Vec::new();
    let mut input = CodedInputStream::from_bytes(value);
    while let Some(tag) = input.read_raw_tag_or_eof().context(GENERIC)? {
        // Field and wire type: two is "with a length".
        match (tag >> 3, tag & 7) {
            (2, 2) => config_path = input.read_string().context("config_path")?,
            (3, 2) => body = input.read_bytes().context("config_body")?,
            (_, 2) => drop(input.read_bytes().context(GENERIC)?),
            (field, _) => return Err(anyhow!("{GENERIC}: field {field}: must be a string")),
        }
    }
    if body.is_empty() && !config_path.is_empty() {
        let body =
            std::fs::read(&config_path).with_context(|| format!("config_path: read {config_path:?}"))?;
        return of_toml(&body).with_context(|| format!("config_path {config_path:?}"));
    }
    of_toml(&body)
}

fn of_toml(body: &[u8]) -> anyhow::Result<Table> {
    let text = std::str::from_utf8(body).context("must be UTF-8")?;
    Ok(basic_toml::from_str(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(fields: &[(u8, &str)]) -> Any {
        let mut value = Vec::new();
        for (field, text) in fields {
            value.push(field << 3 | 2);
            value.push(u8::try_from(text.len()).unwrap());
            value.extend_from_slice(text.as_bytes());
        }
        Any {
            type_url: GENERIC.into(),
            value,
            ..Any::default()
        }
    }

    #[test]
    fn runcs_message_is_read() {
        let options = oci::Options {
            root: "/r".into(),
            systemd_cgroup: true,
            io_uid: 7,
            binary_name: "crun".into(),
            ..oci::Options::default()
        };
        let any = Any {
            type_url: format!("types.containerd.io/{RUNC}"),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        };
        let expected = Options {
            root: Some("/r".into()),
            systemd_cgroup: true,
            io_uid: 7,
            binary_name: Some("crun".into()),
            ..Options::default()
        };
        assert_eq!(Options::parse(Some(&any)).unwrap(), expected);
        assert_eq!(Options::parse(None).unwrap(), Options::default());
    }

    #[test]
    fn the_table_of_containerds_configuration_is_read() {
        // As pelletier's TOML writes it.
        let body =
            "BinaryName = ''\nCriuPath = ''\nIoGid = 5\nShimCgroup = \"/a\\tb\"\nSystemdCgroup = true\n";
        let options = Options::parse(Some(&generic(&[(3, body)]))).unwrap();
        let expected = Options {
            io_gid: 5,
            shim_cgroup: Some("/a\tb".into()),
            systemd_cgroup: true,
            ..Options::default()
        };
        assert_eq!(options, expected);
        // An empty table, and what containerd itself takes from the table.
        let any = generic(&[(1, "x"), (3, "TypeUrl = 'x'\n")]);
        assert_eq!(Options::parse(Some(&any)).unwrap(), Options::default());
        assert_eq!(Options::parse(Some(&generic(&[]))).unwrap(), Options::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (any, named) in [
            (generic(&[(3, "SystemdCgroups = true")]), "SystemdCgroups"),
            (generic(&[(3, "IoUid = 'x'")]), "IoUid"),
            (generic(&[(3, "CriuPath = '/criu'")]), "CriuPath"),
            (generic(&[(2, "/no/such/file")]), "/no/such/file"),
            (
                Any {
                    type_url: "x.Y".into(),
                    ..Any::default()
                },
                "\"x.Y\"",
            ),
            (
                Any {
                    type_url: RUNC.into(),
                    value: vec![0xff],
                    ..Any::default()
                },
                RUNC,
            ),
        ] {
            let error = Options::parse(Some(&any)).unwrap_err();
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
