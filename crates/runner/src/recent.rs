//! A bounded memory of what was seen lately.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;

const REMEMBERED: usize = 4096;

/// The newest few thousand of what was put in.
pub(crate) struct Recent<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
}

impl<T: Copy + Eq + Hash> Recent<T> {
    pub(crate) fn new() -> Self {
        Self { order: VecDeque::new(), known: HashSet::new() }
    }

    pub(crate) fn insert(&mut self, item: T) {
        if !self.known.insert(item) {
            return;
        }
        self.order.push_back(item);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    pub(crate) fn contains(&self, item: &T) -> bool {
        self.known.contains(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::new();
        (0..=REMEMBERED).for_each(|item| recent.insert(item));
        recent.insert(1);
        assert!(!recent.contains(&0) && recent.contains(&1) && recent.contains(&REMEMBERED));
    }
}
