//! Version, UpdateRuntimeConfig, Status, RuntimeConfig.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use tokio::sync::Mutex;

use crate::config::CgroupDriver;
use crate::error::Result;
use crate::log;
use crate::node::Node;
use crate::proto::*;
use crate::shim::{info, start};

/// The version of the kubelet's side that it asks for: it never was another.
const KUBELET_VERSION: &str = "0.1.0";
const API_VERSION: &str = "v1";
const NAME: &str = "rtc";

/// What handlers can do, by their names: each runtime is asked until it has answered once.
#[derive(Debug, Default)]
pub(crate) struct Handlers(Mutex<HashMap<String, RuntimeHandlerFeatures>>);

/// Version.
pub(crate) async fn version(_node: &Arc<Node>, request: VersionRequest) -> Result<VersionResponse> {
    let version = match request.version.as_str() {
        "" => KUBELET_VERSION,
        version => version,
    };
    Ok(VersionResponse {
        version: version.to_owned(),
        runtime_name: NAME.into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: API_VERSION.into(),
    })
}

/// UpdateRuntimeConfig: the node's range of pod addresses, which CNI plugins have from their own configuration.
pub(crate) async fn update_runtime_config(
    node: &Arc<Node>,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse> {
    let network = request.runtime_config.and_then(|config| config.network_config);
    let ranges = network.map(|network| network.pod_cidr).unwrap_or_default();
    node.cni.set_pod_cidrs(&ranges)?;
    Ok(UpdateRuntimeConfigResponse {})
}

/// Status.
pub(crate) async fn status(node: &Arc<Node>, request: StatusRequest) -> Result<StatusResponse> {
    let shim = start::program(&node.config.shim);
    let network = node.cni.ready().await;
    let conditions = vec![
        condition("RuntimeReady", "ShimNotFound", shim.map(drop)),
        condition("NetworkReady", "NetworkPluginNotReady", network),
    ];
    let runtime_handlers = node.handlers.get(node).await;
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("config".to_owned(), json!(node.config).to_string());
        info.insert(
            "node".to_owned(),
            json!({
                "sandboxes": node.sandboxes().len(),
                "containers": node.containers().len(),
                "cgroupDriver": node.config.driver(),
            })
            .to_string(),
        );
        info.insert("network".to_owned(), node.cni.describe().to_string());
    }
    Ok(StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info,
        runtime_handlers,
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
        }),
    })
}

fn condition(name: &str, reason: &str, result: Result<()>) -> RuntimeCondition {
    let (reason, message) = match &result {
        Ok(()) => (String::new(), String::new()),
        Err(error) => (reason.to_owned(), error.to_string()),
    };
    RuntimeCondition {
        r#type: name.to_owned(),
        status: result.is_ok(),
        reason,
        message,
    }
}

impl Handlers {
    /// All of them, the default one by an empty name too. One that can't be asked can do nothing special, for now.
    async fn get(&self, node: &Node) -> Vec<RuntimeHandler> {
        let mut known = self.0.lock().await;
        let mut all = Vec::new();
        for name in node.config.handler_names() {
            let features = match known.get(name) {
                Some(features) => *features,
                None => match features(node, name).await {
                    Ok(features) => *known.entry(name.to_owned()).or_insert(features),
                    Err(error) => {
                        log::warn(format_args!("handler {name:?}: {error}"));
                        RuntimeHandlerFeatures::default()
                    }
                },
            };
            let handler = |name: &str| RuntimeHandler {
                name: name.to_owned(),
                features: Some(features),
            };
            if all.is_empty() {
                // The first is the default one.
                all.push(handler(""));
            }
            all.push(handler(name));
        }
        all
    }
}

/// What the runtime of a handler says of itself.
async fn features(node: &Node, handler: &str) -> Result<RuntimeHandlerFeatures> {
    let options = crate::sandbox::options(&node.config, handler)?;
    info::features(&start::program(&node.config.shim)?, &options).await
}

/// RuntimeConfig.
pub(crate) async fn runtime_config(
    node: &Arc<Node>,
    _request: RuntimeConfigRequest,
) -> Result<RuntimeConfigResponse> {
    let driver = match node.config.driver() {
        CgroupDriver::Systemd => crate::proto::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs => crate::proto::CgroupDriver::Cgroupfs,
    };
    Ok(RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_says_why() {
        let ready = condition("RuntimeReady", "X", Ok(()));
        assert!(ready.status && ready.reason.is_empty());
        let not = condition(
            "NetworkReady",
            "NetworkPluginNotReady",
            Err(crate::error::Error::invalid("no file")),
        );
        assert_eq!((not.status, not.message.as_str()), (false, "no file"));
        assert_eq!(not.reason, "NetworkPluginNotReady");
    }
}
