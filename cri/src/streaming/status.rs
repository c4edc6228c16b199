//! How a remote command ended, as its client reads it on the error stream: `metav1.Status` as JSON (from v4 on), or the bare
//! message of a failure (before).

use serde_json::json;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ran, and ended with this code.
    Exit(u32),
    /// An attached client has seen all of it.
    Complete,
    /// It could not be run, or how it ended is not known.
    Failed(String),
}

/// In which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Text,
}

impl Outcome {
    /// What goes onto the error stream; it may be nothing.
    pub(super) fn bytes(&self, form: Form) -> Vec<u8> {
        let message = match self {
            Self::Exit(0) | Self::Complete => None,
            Self::Exit(code) => Some(format!("command terminated with exit code {code}")),
            Self::Failed(message) => Some(message.clone()),
        };
        if form == Form::Text {
            return message.unwrap_or_default().into_bytes();
        }
        let status = match self {
            Self::Exit(0) | Self::Complete => json!({"metadata": {}, "status": "Success"}),
            Self::Exit(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(_) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_told_as_kubectl_reads_it() {
        let told: serde_json::Value = serde_json::from_slice(&Outcome::Exit(3).bytes(Form::Json)).unwrap();
        assert_eq!(told["status"], "Failure");
        assert_eq!(told["reason"], "NonZeroExitCode");
        assert_eq!(
            told["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
        let good = Outcome::Exit(0).bytes(Form::Json);
        assert_eq!(good, br#"{"metadata":{},"status":"Success"}"#);
        let failed = Outcome::Failed("no such file".into());
        let told: serde_json::Value = serde_json::from_slice(&failed.bytes(Form::Json)).unwrap();
        assert_eq!(told["message"], "no such file");
        assert_eq!(told["code"], 500);
    }

    #[test]
    fn before_v4_only_a_failure_is_told() {
        assert!(Outcome::Exit(0).bytes(Form::Text).is_empty());
        assert!(Outcome::Complete.bytes(Form::Text).is_empty());
        assert_eq!(
            Outcome::Exit(2).bytes(Form::Text),
            b"command terminated with exit code 2"
        );
    }
}
