//! The events of one run, put in order out of two sources that overlap: what is heard live and what the store holds.
//! Pure: the sources are the caller's.

use std::collections::BTreeMap;

use errand_core::run::RunStatus;
use errand_proto::v1;

/// Takes a run's events in any order, with repetitions, and gives each once, by `seq`, up to the final one.
#[derive(Debug, Default)]
pub struct Timeline {
    /// The last one given: its `seq` and id.
    given: Option<(u64, String)>,
    /// Those that came, and still wait for one before them or for their reader.
    held: BTreeMap<u64, v1::Event>,
    over: bool,
}

impl Timeline {
    /// Nothing given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The timeline behind this event, which was given before.
    #[must_use]
    pub fn after(event: &v1::Event) -> Self {
        Self { given: Some((event.seq, event.id.clone())), over: is_final(event), ..Self::default() }
    }

    fn next_seq(&self) -> u64 {
        self.given.as_ref().map_or(1, |(seq, _)| seq + 1)
    }

    /// Takes an event. What was given or is held already is dropped: an object has one event per `seq`, so its
    /// `seq` tells a repetition as its id does.
    pub fn offer(&mut self, event: v1::Event) {
        if !self.over && event.seq >= self.next_seq() {
            self.held.entry(event.seq).or_insert(event);
        }
    }

    /// The next event, where it is there.
    pub fn pop(&mut self) -> Option<v1::Event> {
        if self.over {
            return None;
        }
        let event = self.held.remove(&self.next_seq())?;
        self.given = Some((event.seq, event.id.clone()));
        if is_final(&event) {
            self.over = true;
            self.held.clear();
        }
        Some(event)
    }

    /// Whether a later event is here while the next one is missing: the store has it.
    #[must_use]
    pub fn has_gap(&self) -> bool {
        !self.over && self.held.first_key_value().is_some_and(|(seq, _)| *seq > self.next_seq())
    }

    /// Whether the final event was given: nothing follows.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// The id of the last event given, behind which to read on in the store.
    #[must_use]
    pub fn last_id(&self) -> Option<&str> {
        self.given.as_ref().map(|(_, id)| id.as_str())
    }
}

/// Whether nothing follows this event of a run.
pub(crate) fn is_final(event: &v1::Event) -> bool {
    let Some(v1::event::Data::Run(run)) = &event.data else { return false };
    RunStatus::try_from(run.status()).is_ok_and(RunStatus::is_final)
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::RunStatus as Status;

    fn event(seq: u64, status: Status) -> v1::Event {
        v1::Event {
            id: format!("evt_{seq}"),
            seq,
            data: Some(v1::event::Data::Run(v1::RunSummary { status: status.into(), ..Default::default() })),
            ..Default::default()
        }
    }

    fn history() -> Vec<v1::Event> {
        [Status::Queued, Status::Running, Status::InteractionRequired, Status::Running, Status::Completed]
            .into_iter()
            .zip(1..)
            .map(|(status, seq)| event(seq, status))
            .collect()
    }

    fn drain(timeline: &mut Timeline) -> Vec<u64> {
        std::iter::from_fn(|| timeline.pop()).map(|event| event.seq).collect()
    }

    /// Every order of `items`.
    fn permutations(items: &[v1::Event]) -> Vec<Vec<v1::Event>> {
        if items.is_empty() {
            return vec![vec![]];
        }
        let mut all = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let rest: Vec<_> = items.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, e)| e.clone()).collect();
            for mut order in permutations(&rest) {
                order.insert(0, item.clone());
                all.push(order);
            }
        }
        all
    }

    #[test]
    fn every_order_with_repetitions_gives_each_event_once_in_order() {
        for order in permutations(&history()) {
            // Taken one by one, each twice, and read after each: as live events come.
            let mut timeline = Timeline::new();
            let mut seen = Vec::new();
            for event in &order {
                timeline.offer(event.clone());
                timeline.offer(event.clone());
                seen.extend(drain(&mut timeline));
            }
            assert_eq!(seen, [1, 2, 3, 4, 5]);
            assert!(timeline.is_over() && !timeline.has_gap());
            // And what comes after the end is dropped.
            order.into_iter().for_each(|event| timeline.offer(event));
            assert_eq!(drain(&mut timeline), Vec::<u64>::new());
        }
    }

    #[test]
    fn whatever_is_lost_live_the_store_fills() {
        let history = history();
        for lost in 0u32..1 << history.len() {
            for read_after in 0..=history.len() {
                let mut timeline = Timeline::new();
                let mut seen = Vec::new();
                for (at, event) in history.iter().enumerate() {
                    if at == read_after {
                        history[..at].iter().cloned().for_each(|event| timeline.offer(event));
                    }
                    if lost & (1 << at) == 0 {
                        timeline.offer(event.clone());
                    }
                    seen.extend(drain(&mut timeline));
                }
                // The last look reads what is behind the last one given.
                let from = timeline.last_id().map_or(0, |id| history.iter().position(|e| e.id == id).unwrap() + 1);
                history[from..].iter().cloned().for_each(|event| timeline.offer(event));
                seen.extend(drain(&mut timeline));
                assert_eq!(seen, [1, 2, 3, 4, 5], "lost {lost:b}, read after {read_after}");
            }
        }
    }

    #[test]
    fn a_missing_event_is_a_gap_until_it_comes() {
        let mut timeline = Timeline::new();
        assert!(!timeline.has_gap());
        timeline.offer(event(1, Status::Queued));
        timeline.offer(event(3, Status::Failed));
        assert_eq!((drain(&mut timeline), timeline.has_gap(), timeline.last_id()), (vec![1], true, Some("evt_1")));
        timeline.offer(event(2, Status::Running));
        assert_eq!((drain(&mut timeline), timeline.has_gap(), timeline.is_over()), (vec![2, 3], false, true));
    }
}
