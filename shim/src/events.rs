//! Events for containerd: one queue, in order, delivered at least once.

use containerd_shim_protos::protobuf::MessageFull;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use tokio::sync::mpsc;

/// An event on its way.
#[derive(Debug)]
pub(crate) struct Event {
    /// As `/tasks/exit`.
    pub(crate) topic: &'static str,
    /// The message.
    pub(crate) event: Any,
    /// When it happened.
    pub(crate) at: std::time::SystemTime,
}

/// Where events go in.
#[derive(Debug, Clone)]
pub(crate) struct Events(mpsc::UnboundedSender<Event>);

impl Events {
    /// The queue's ends.
    pub(crate) fn queue() -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Puts an event into the queue. Never waits.
    pub(crate) fn send(&self, topic: &'static str, message: &impl MessageFull) {
        let event = Event {
            topic,
            event: to_any(message),
            at: std::time::SystemTime::now(),
        };
        // The publisher lives as long as the shim.
        let _ = self.0.send(event);
    }
}

/// Packs a message as containerd's typeurl does for its own: the type's name without a host before it.
pub(crate) fn to_any<M: MessageFull>(message: &M) -> Any {
    Any {
        type_url: M::descriptor().full_name().to_owned(),
        // Never fails: there are no required fields.
        value: message.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    }
}
