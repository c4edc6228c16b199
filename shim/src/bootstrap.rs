//! What containerd tells a shim at its start, and the answer: two protocols.
//!
//! ```text
//! containerd  told by                                                      answer on standard output
//! 1.6         flags, TTRPC_ADDRESS; options (Any) on standard input        the address
//! 1.7 - 2.2   the same, and MAX_SHIM_VERSION=2, GRPC_ADDRESS, NAMESPACE    JSON: version, address, protocol
//! 2.3 -       BootstrapParams on standard input, and all of the above      BootstrapResult
//! ```
//!
//! containerd 1.7 refuses version 3, and 2.0 to 2.2 say no more than it does, so they get version 2, which they take as
//! well; who sets `MAX_SHIM_VERSION=3` in `[plugins."io.containerd.shim.v1.manager"] env` of 2.x gets 3. Both versions
//! are served to everybody; version 2 costs a call of `start` for each further container of a pod.
//!
//! `BootstrapParams` and `Any` begin with two fields of the same wire type, so that one is read as the other without an
//! error (containerd's own helper mistakes options whose bytes are UTF-8). Hence the rule: what names the id of the flags,
//! or has a field that `Any` lacks, is `BootstrapParams`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::address;
use crate::arguments::Flags;
use crate::options::{self, Options};

/// Who a shim is, and whom it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// The first container, or the sandbox.
    pub(crate) id: String,
    /// Its bundle, absolute.
    pub(crate) bundle: PathBuf,
    /// containerd's gRPC address; may be empty.
    pub(crate) containerd: String,
    /// Where events go: a path, or `unix://`.
    pub(crate) ttrpc_address: Option<String>,
    /// containerd's binary, for events where there is no such address.
    pub(crate) publish_binary: Option<PathBuf>,
    /// Where the shim listens.
    pub(crate) socket: PathBuf,
    /// More messages.
    pub(crate) debug: bool,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The bare address.
    Address,
    /// JSON with this version of the Task API.
    Json(u32),
    /// `BootstrapResult`.
    Protobuf,
}

/// A request to start a shim.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) answer: Answer,
    /// Give the shim and its containers a core scheduling cookie of their own.
    pub(crate) core_scheduling: bool,
}

/// The newest version of the Task API.
const VERSION: u32 = 3;

/// Annotations that say to which group a container belongs, the first one found counts: that of containerd's own shim,
/// and CRI's.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

impl Request {
    /// Puts together what flags, environment and standard input say about the bundle in a directory.
    ///
    /// # Errors
    ///
    /// No namespace or id, or one that can't be a file's name; input that is neither of both; options that can't be read.
    pub(crate) fn new(
        flags: Flags,
        environment: impl Fn(&str) -> Option<OsString>,
        input: &[u8],
        bundle: PathBuf,
    ) -> Result<Self> {
        let variable = |name| {
            let value = environment(name).filter(|value| !value.is_empty())?;
            value.into_string().ok()
        };
        let given = Given::read(&flags, input)?;
        let params = given.params;
        let told = |field: &str| (!field.is_empty()).then(|| field.to_owned());
        let identity = Identity {
            namespace: told(&params.namespace)
                .or(flags.namespace)
                .or_else(|| variable("NAMESPACE"))
                .unwrap_or_default(),
            id: told(&params.instance_id).or(flags.id).unwrap_or_default(),
            bundle,
            containerd: told(&params.containerd_grpc_address)
                .or(flags.address)
                .or_else(|| variable("GRPC_ADDRESS"))
                .unwrap_or_default(),
            ttrpc_address: told(&params.containerd_ttrpc_address).or_else(|| variable("TTRPC_ADDRESS")),
            publish_binary: told(&params.containerd_binary)
                .map(PathBuf::from)
                .or(flags.publish_binary),
            socket: PathBuf::new(),
            // Debug is -4, trace is below.
            debug: flags.debug || params.log_level.value() <= -4,
        };
        check_name("namespace", &identity.namespace)?;
        check_name("id", &identity.id)?;
        let directory = params.socket_dir.filter(|directory| !directory.is_empty());
        let directory = directory.unwrap_or_else(|| address::DIRECTORY.into());
        let group = group(&identity.bundle)?.unwrap_or_else(|| identity.id.clone());
        let socket = flags.socket.unwrap_or_else(|| {
            address::path(
                Path::new(&directory),
                &identity.containerd,
                &identity.namespace,
                &group,
            )
        });
        Ok(Self {
            identity: Identity { socket, ..identity },
            options: Options::parse(given.options.as_ref())?,
            answer: given
                .answer
                .unwrap_or_else(|| legacy(variable("MAX_SHIM_VERSION"))),
            core_scheduling: variable("SCHED_CORE").is_some(),
        })
    }
}

/// What standard input says.
struct Given {
    params: BootstrapParams,
    options: Option<Any>,
    /// `None`: as the environment says.
    answer: Option<Answer>,
}

impl Given {
    fn read(flags: &Flags, input: &[u8]) -> Result<Self> {
        if input.is_empty() {
            return Ok(Self {
                params: BootstrapParams::default(),
                options: None,
                answer: None,
            });
        }
        if let Ok(mut params) = BootstrapParams::parse_from_bytes(input)
            && is_bootstrap(flags, &params)
        {
            let extensions = std::mem::take(&mut params.extensions);
            let options = extensions
                .into_iter()
                .filter_map(|extension| extension.value.into_option())
                .find(|value| options::is_known(&value.type_url));
            return Ok(Self {
                params,
                options,
                answer: Some(Answer::Protobuf),
            });
        }
        let options = Any::parse_from_bytes(input).context(
            "standard input: must be BootstrapParams, the options as google.protobuf.Any, or empty",
        )?;
        Ok(Self {
            params: BootstrapParams::default(),
            options: Some(options),
            answer: None,
        })
    }
}

fn is_bootstrap(flags: &Flags, params: &BootstrapParams) -> bool {
    let more_than_any = !params.containerd_version.is_empty()
        || !params.containerd_ttrpc_address.is_empty()
        || !params.containerd_grpc_address.is_empty()
        || !params.containerd_binary.is_empty()
        || !params.extensions.is_empty()
        || params.log_level.value() != 0;
    more_than_any || flags.id.as_ref() == Some(&params.instance_id)
}

/// The answer for a containerd before 2.3.
fn legacy(max_version: Option<String>) -> Answer {
    match max_version.and_then(|version| version.parse::<u32>().ok()) {
        Some(version @ 2..) => Answer::Json(version.min(VERSION)),
        _ => Answer::Address,
    }
}

impl Answer {
    /// As containerd reads it.
    pub(crate) fn write(self, socket: &Path) -> Result<Vec<u8>> {
        let address = address::url(socket);
        Ok(match self {
            Self::Address => address.into_bytes(),
            Self::Json(version) => {
                serde_json::json!({"version": version, "address": address, "protocol": "ttrpc"})
                    .to_string()
                    .into_bytes()
            }
            Self::Protobuf => BootstrapResult {
                version: VERSION.cast_signed(),
                address,
                protocol: "ttrpc".into(),
                ..BootstrapResult::default()
            }
            .write_to_bytes()?,
        })
    }
}

/// Both become names of files.
pub(crate) fn check_name(field: &str, value: &str) -> Result<()> {
    if value.is_empty() {
        bail!("{field}: must be given (-{field})");
    }
    if value == "." || value == ".." || value.contains(['/', '\0']) {
        bail!("{field} {value:?}: must be a name, without a slash");
    }
    Ok(())
}

/// The group of a bundle's container, by its annotations. Who has no config.json (a sandbox) has none.
pub(crate) fn group(bundle: &Path) -> Result<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: Option<std::collections::BTreeMap<String, String>>,
    }
    let config = match std::fs::read(bundle.join("config.json")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        config => config.with_context(|| format!("read config.json in {bundle:?}"))?,
    };
    let config: Annotated =
        serde_json::from_slice(&config).with_context(|| format!("config.json in {bundle:?}"))?;
    let annotations = config.annotations.unwrap_or_default();
    let group = GROUPS.iter().find_map(|name| annotations.get(*name));
    Ok(group.filter(|group| !group.is_empty()).cloned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use containerd_shim_protos::bootstrap_api::{Extension, LogLevel};
    use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
    use containerd_shim_protos::shim::oci;

    use super::*;

    /// A directory without config.json.
    const NOWHERE: &str = "/proc/self/fdinfo";

    fn flags() -> Flags {
        Flags {
            namespace: Some("k8s.io".into()),
            id: Some("web".into()),
            address: Some("/c.sock".into()),
            ..Flags::default()
        }
    }

    fn request(environment: &[(&str, &str)], input: &[u8]) -> Result<Request> {
        let environment: BTreeMap<_, _> = environment.iter().copied().collect();
        Request::new(
            flags(),
            |name| environment.get(name).map(OsString::from),
            input,
            NOWHERE.into(),
        )
    }

    fn systemd() -> Any {
        let options = oci::Options {
            systemd_cgroup: true,
            ..oci::Options::default()
        };
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        }
    }

    #[test]
    fn the_containerd_of_each_age_gets_the_answer_it_reads() {
        let ttrpc = ("TTRPC_ADDRESS", "/c.sock.ttrpc");
        let old = request(&[ttrpc], b"").unwrap();
        assert_eq!(old.identity.ttrpc_address.as_deref(), Some("/c.sock.ttrpc"));
        assert_eq!(old.answer, Answer::Address);
        for (max, answer) in [
            ("1", Answer::Address),
            ("2", Answer::Json(2)),
            ("3", Answer::Json(3)),
            ("7", Answer::Json(3)),
            ("x", Answer::Address),
        ] {
            assert_eq!(request(&[("MAX_SHIM_VERSION", max)], b"").unwrap().answer, answer);
        }
        let socket = Path::new("/s/x");
        assert_eq!(Answer::Address.write(socket).unwrap(), b"unix:///s/x");
        let json: serde_json::Value =
            serde_json::from_slice(&Answer::Json(2).write(socket).unwrap()).unwrap();
        let expected = serde_json::json!({"version": 2, "address": "unix:///s/x", "protocol": "ttrpc"});
        assert_eq!(json, expected);
    }

    #[test]
    fn params_say_all_that_flags_and_environment_do() {
        let params = BootstrapParams {
            instance_id: "web".into(),
            namespace: "k8s.io".into(),
            log_level: EnumOrUnknown::new(LogLevel::LOG_LEVEL_TRACE),
            containerd_version: "2.3.7".into(),
            containerd_ttrpc_address: "/n.sock.ttrpc".into(),
            containerd_grpc_address: "/n.sock".into(),
            containerd_binary: "/c".into(),
            extensions: vec![
                Extension {
                    value: MessageField::some(Any {
                        type_url: "of.the.Future".into(),
                        ..Any::default()
                    }),
                    ..Extension::default()
                },
                Extension {
                    value: MessageField::some(systemd()),
                    ..Extension::default()
                },
            ],
            socket_dir: Some("/s".into()),
            ..BootstrapParams::default()
        };
        // Without flags, as a containerd of the future calls.
        let input = params.write_to_bytes().unwrap();
        let got = Request::new(Flags::default(), |_| None, &input, NOWHERE.into()).unwrap();
        let expected = Identity {
            namespace: "k8s.io".into(),
            id: "web".into(),
            bundle: NOWHERE.into(),
            containerd: "/n.sock".into(),
            ttrpc_address: Some("/n.sock.ttrpc".into()),
            publish_binary: Some("/c".into()),
            socket: address::path(Path::new("/s"), "/n.sock", "k8s.io", "web"),
            debug: true,
        };
        assert_eq!(got.identity, expected);
        assert!(got.options.systemd_cgroup);
        assert_eq!(got.answer, Answer::Protobuf);
        let answer =
            BootstrapResult::parse_from_bytes(&got.answer.write(Path::new("/s/x")).unwrap()).unwrap();
        assert_eq!(
            (answer.version, answer.address.as_str(), answer.protocol.as_str()),
            (3, "unix:///s/x", "ttrpc")
        );
    }

    #[test]
    fn options_are_not_mistaken_for_params() {
        // The bytes are UTF-8: this is a BootstrapParams with the namespace "H\x01" to a parser.
        let input = systemd().write_to_bytes().unwrap();
        assert!(BootstrapParams::parse_from_bytes(&input).is_ok());
        let got = request(&[("MAX_SHIM_VERSION", "2")], &input).unwrap();
        assert_eq!(got.identity.namespace, "k8s.io");
        assert_eq!(got.answer, Answer::Json(2));
        assert!(got.options.systemd_cgroup);
        // Params with nothing but what Any could have, too.
        let params = BootstrapParams {
            instance_id: "web".into(),
            namespace: "other".into(),
            ..BootstrapParams::default()
        };
        let got = request(&[], &params.write_to_bytes().unwrap()).unwrap();
        assert_eq!(
            (got.identity.namespace.as_str(), got.answer),
            ("other", Answer::Protobuf)
        );
    }

    #[test]
    fn what_is_neither_is_refused() {
        let error = request(&[], b"{\"version\": 3}").unwrap_err().to_string();
        assert!(
            error.starts_with("standard input: must be BootstrapParams"),
            "{error}"
        );
    }

    #[test]
    fn a_group_has_one_socket() {
        let bundle = std::env::temp_dir().join(format!("rtc-shim-{}-group", std::process::id()));
        std::fs::create_dir_all(&bundle).unwrap();
        let socket = |id: &str, config: &str| {
            std::fs::write(bundle.join("config.json"), config).unwrap();
            let flags = Flags {
                id: Some(id.into()),
                ..flags()
            };
            Request::new(flags, |_| None, b"", bundle.clone()).map(|request| request.identity.socket)
        };
        let alone = socket("pod", "{}").unwrap();
        assert_eq!(
            socket("pod", r#"{"annotations": null, "ociVersion": "1.2.0"}"#).unwrap(),
            alone
        );
        let in_pod = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#;
        assert_eq!(socket("web", in_pod).unwrap(), alone);
        let both =
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "x", "io.containerd.runc.v2.group": "pod"}}"#;
        assert_eq!(socket("web", both).unwrap(), alone);
        assert_ne!(socket("web", "{}").unwrap(), alone);
        assert!(socket("web", "{").is_err());
        std::fs::remove_dir_all(bundle).unwrap();
    }

    #[test]
    fn names_that_would_be_paths_are_refused() {
        for name in ["", ".", "..", "a/b", "/"] {
            assert!(check_name("id", name).is_err(), "{name}");
        }
        assert!(check_name("id", "a.b_c-d").is_ok());
    }
}
