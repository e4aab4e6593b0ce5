//! What happened, step by step: the last of it to be read, all of it as a hash.

use std::collections::VecDeque;
use std::fmt;

/// Steps that are kept.
const KEPT: usize = 400;

/// See the module.
#[derive(Debug)]
pub(crate) struct Trace {
    kept: VecDeque<String>,
    /// FNV-1a over every line.
    hash: u64,
    steps: u64,
    aloud: bool,
}

impl Trace {
    pub(crate) fn new(aloud: bool) -> Self {
        Self { kept: VecDeque::new(), hash: 0xcbf2_9ce4_8422_2325, steps: 0, aloud }
    }

    #[expect(clippy::print_stdout, reason = "asked for")]
    pub(crate) fn say(&mut self, now: i64, actor: &dyn fmt::Display, what: &dyn fmt::Display) {
        self.steps += 1;
        let line = format!("{:>8}.{:03} {actor:<14} {what}", now / 1000, now % 1000);
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.aloud {
            println!("{line}");
        }
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(line);
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.kept.iter().cloned().collect()
    }
}
