//! Volumes that can be had without a cluster: emptyDir, hostPath, image.

use anyhow::Result;

use super::container::Pull;
use super::field::{Field, Fields};
use super::names;
use super::quantity::Quantity;

/// A volume.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) source: Source,
}

/// What is in it.
#[derive(Debug)]
pub(crate) enum Source {
    /// Nothing at first; it goes with the pod.
    Empty {
        /// It is a tmpfs, of at most so many bytes.
        memory: bool,
        limit: Option<i64>,
    },
    /// A path of this machine, and what must be there (core/v1, `HostPathType`).
    Host { path: String, kind: &'static str },
    /// An image's files.
    Image { reference: String, pull: Pull },
}

/// `hostPath.type`.
const KINDS: [&str; 8] = [
    "",
    "DirectoryOrCreate",
    "Directory",
    "FileOrCreate",
    "File",
    "Socket",
    "CharDevice",
    "BlockDevice",
];

/// Those that a cluster makes.
const OF_A_CLUSTER: [&str; 27] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

pub(super) fn volumes(spec: &mut Fields<'_>) -> Result<Vec<Volume>> {
    let mut volumes: Vec<Volume> = Vec::new();
    for field in spec.list("volumes")? {
        let mut fields = field.fields()?;
        let name = fields.need("name", "give the volume a name")?;
        if volumes
            .iter()
            .any(|other| name.text().is_ok_and(|name| other.name == name))
        {
            return Err(name.wrong("another volume has it"));
        }
        volumes.push(Volume {
            name: names::label(&name)?.to_owned(),
            source: source(&field, &mut fields)?,
        });
        fields.end()?;
    }
    Ok(volumes)
}

fn source(field: &Field<'_>, fields: &mut Fields<'_>) -> Result<Source> {
    fields.refuse(
        &OF_A_CLUSTER,
        "needs a cluster: put the files into a directory of this machine, and take a hostPath volume",
    )?;
    let given = [
        fields.get("emptyDir"),
        fields.get("hostPath"),
        fields.get("image"),
    ];
    let mut sources = [empty, host, image]
        .into_iter()
        .zip(&given)
        .filter_map(|(read, field)| field.as_ref().map(|field| read(field)));
    let source = sources.next().unwrap_or_else(|| {
        Err(field.wrong("must have one of emptyDir, hostPath, image (emptyDir: {} is enough)"))
    })?;
    if sources.next().is_some() {
        return Err(field.wrong("must have only one of emptyDir, hostPath, image"));
    }
    Ok(source)
}

fn empty(field: &Field<'_>) -> Result<Source> {
    let mut fields = field.fields()?;
    let medium = fields.get("medium");
    let memory = match &medium {
        Some(field) => field.choice(&["", "Memory"])? == 1,
        None => false,
    };
    let limit = fields.get("sizeLimit");
    if let (Some(limit), false) = (&limit, memory) {
        limit.warn("ignored: disk space is watched by a kubelet");
    }
    fields.end()?;
    Ok(Source::Empty {
        memory,
        limit: limit
            .map(|field| field.quantity())
            .transpose()?
            .map(Quantity::value),
    })
}

fn host(field: &Field<'_>) -> Result<Source> {
    let mut fields = field.fields()?;
    let path = fields.need("path", "give a path of this machine")?;
    let kind = match fields.get("type") {
        Some(field) => KINDS[field.choice(&KINDS)?],
        None => "",
    };
    fields.end()?;
    Ok(Source::Host {
        path: names::path(&path)?.to_owned(),
        kind,
    })
}

fn image(field: &Field<'_>) -> Result<Source> {
    let mut fields = field.fields()?;
    let reference = fields.need("reference", "give the image")?.word()?.to_owned();
    let policies = [Pull::IfNotPresent, Pull::Always, Pull::Never];
    let pull = match fields.get("pullPolicy") {
        Some(field) => policies[field.choice(&["IfNotPresent", "Always", "Never"])?],
        None => Pull::IfNotPresent,
    };
    fields.end()?;
    Ok(Source::Image { reference, pull })
}
