//! A network's plugins, one after another (SPEC.md section 3).
//!
//! ```text
//! ADD      first to last; each gets the result of the one before it (`prevResult`)
//! DEL      last to first, each with the last result; the first that fails ends it: what the rest holds is still in use
//! CHECK    first to last, each with the last result
//! GC       all of them, whatever becomes of some; STATUS: until one is not ready
//! ```

use serde_json::{Map, Value};
use tokio::time::Instant;

use super::INTERFACE;
use super::arguments;
use super::attachment::Attachment;
use super::config::{Network, Plugin};
use super::exec::{Cause, Environment, Failure, Programs, Verb};
use super::result::Attached;
use super::version::Version;

/// A network, the version it speaks, and the programs of its plugins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain<'a> {
    pub(super) programs: &'a Programs,
    pub(super) network: &'a Network,
    pub(super) version: Version,
    pub(super) deadline: Instant,
}

impl Chain<'_> {
    /// ADD. What failed is to be undone by `delete`.
    ///
    /// # Errors
    ///
    /// The plugin that failed.
    pub(super) async fn add(&self, attachment: &Attachment) -> Result<Attached, Failure> {
        let netns = attachment.netns.to_string_lossy();
        let mut result: Option<Attached> = None;
        for plugin in &self.network.plugins {
            let request = self.request(Verb::Add, plugin, Some(attachment), result.as_ref())?;
            let output = self
                .run(Verb::Add, plugin, Some(attachment), &netns, request)
                .await?;
            let parsed = Attached::parse(&output, self.version).map_err(|error| {
                Failure::broken(Verb::Add, &plugin.program, format!("its result {error}"))
            })?;
            result = Some(parsed);
        }
        Ok(result.unwrap_or_default())
    }

    /// DEL. `netns` is empty where the namespace is gone.
    ///
    /// # Errors
    ///
    /// The plugin that failed.
    pub(super) async fn delete(
        &self,
        attachment: &Attachment,
        netns: &str,
        result: Option<&Attached>,
    ) -> Result<(), Failure> {
        let result = result.filter(|_| self.version >= Version::CHECK);
        for plugin in self.network.plugins.iter().rev() {
            let request = self.request(Verb::Del, plugin, Some(attachment), result)?;
            match self
                .run(Verb::Del, plugin, Some(attachment), netns, request)
                .await
            {
                Ok(_) => {}
                Err(failure) if failure.is_unknown_container() => {}
                Err(failure) if netns.is_empty() && lost_namespace(&failure) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// CHECK.
    ///
    /// # Errors
    ///
    /// The plugin that found something wrong.
    pub(super) async fn check(&self, attachment: &Attachment, result: &Attached) -> Result<(), Failure> {
        let netns = attachment.netns.to_string_lossy();
        for plugin in &self.network.plugins {
            let request = self.request(Verb::Check, plugin, Some(attachment), Some(result))?;
            self.run(Verb::Check, plugin, Some(attachment), &netns, request)
                .await?;
        }
        Ok(())
    }

    /// STATUS.
    ///
    /// # Errors
    ///
    /// The plugin that is not ready.
    pub(super) async fn status(&self) -> Result<(), Failure> {
        for plugin in &self.network.plugins {
            let request = self.request(Verb::Status, plugin, None, None)?;
            self.run(Verb::Status, plugin, None, "", request).await?;
        }
        Ok(())
    }

    /// GC: `valid` are all attachments that there are, of containers and their interfaces.
    ///
    /// # Errors
    ///
    /// The plugins that failed; the others did it.
    pub(super) async fn collect(&self, valid: &[(String, String)]) -> Result<(), Vec<Failure>> {
        let valid: Vec<Value> = valid
            .iter()
            .map(|(container, interface)| serde_json::json!({"containerID": container, "ifname": interface}))
            .collect();
        let mut failures = Vec::new();
        for plugin in &self.network.plugins {
            let done = async {
                let mut request = self.request(Verb::Gc, plugin, None, None)?;
                request.insert("cni.dev/valid-attachments".into(), valid.clone().into());
                // The key that the specification had by mistake, and plugins read.
                request.insert("cni.dev/attachments".into(), valid.clone().into());
                self.run(Verb::Gc, plugin, None, "", request).await
            };
            failures.extend(done.await.err());
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    fn request(
        &self,
        verb: Verb,
        plugin: &Plugin,
        attachment: Option<&Attachment>,
        previous: Option<&Attached>,
    ) -> Result<Map<String, Value>, Failure> {
        let mut request = plugin.config.clone();
        request.insert("name".into(), self.network.name.clone().into());
        request.insert("cniVersion".into(), self.version.to_string().into());
        if let Some(attachment) = attachment {
            let wanted: Map<String, Value> = attachment
                .capabilities
                .iter()
                .filter(|(name, _)| plugin.capabilities.contains(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if !wanted.is_empty() {
                request.insert("runtimeConfig".into(), wanted.into());
            }
        }
        if let Some(previous) = previous {
            let previous = previous.to_value(self.version).map_err(|error| {
                Failure::broken(verb, &plugin.program, format!("the result before it {error}"))
            })?;
            request.insert("prevResult".into(), previous);
        }
        Ok(request)
    }

    async fn run(
        &self,
        verb: Verb,
        plugin: &Plugin,
        attachment: Option<&Attachment>,
        netns: &str,
        request: Map<String, Value>,
    ) -> Result<Vec<u8>, Failure> {
        let arguments = attachment.map(|attachment| arguments::joined(&attachment.arguments));
        let environment = Environment {
            container: attachment.map_or("", |attachment| &attachment.pod),
            netns,
            interface: if attachment.is_some() { INTERFACE } else { "" },
            arguments: arguments.as_deref().unwrap_or_default(),
        };
        let input = Value::Object(request).to_string();
        self.programs
            .run(
                verb,
                &plugin.program,
                &environment,
                input.as_bytes(),
                self.deadline,
            )
            .await
    }
}

/// Plugins before 0.4.0, and some since, want the namespace even where it is gone (containernetworking/plugins#210); what is
/// not there any more needs no DEL. As containerd has it.
fn lost_namespace(failure: &Failure) -> bool {
    matches!(&failure.cause, Cause::Said { message, .. } if message.contains("no such file or directory"))
}
