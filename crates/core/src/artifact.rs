//! Artifacts: what a run captures.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an artifact is to its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A file that the agent has brought home.
    File,
    /// A picture of what the agent saw.
    Screenshot,
}

impl ArtifactKind {
    /// The contract's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Screenshot => "screenshot",
        }
    }
}

impl fmt::Display for ArtifactKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_one_word;

    #[test]
    fn a_kind_is_one_word_wherever_it_stands() {
        let all = [ArtifactKind::File, ArtifactKind::Screenshot];
        is_one_word(&all, ArtifactKind::as_str);
        assert_eq!(all.map(|kind| kind.to_string()), ["file", "screenshot"]);
    }
}
