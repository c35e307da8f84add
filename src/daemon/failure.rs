//! The failures of a relay.

use crate::queue::OpenError;
use crate::serve::BindError;

/// The cause of a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The store and the configuration do not match.
    #[error("{0}")]
    Config(String),
    /// Any other cause.
    #[error("{0}")]
    Failed(String),
}

impl From<BindError> for Failure {
    fn from(error: BindError) -> Failure {
        Failure::Failed(error.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        match error {
            OpenError::OtherFormat { .. } | OpenError::Volatile { .. } | OpenError::Sealed { .. } => {
                Failure::Config(error.to_string())
            }
            OpenError::Locked { .. } | OpenError::Damaged { .. } | OpenError::Failed { .. } => {
                Failure::Failed(error.to_string())
            }
        }
    }
}
