//! What happens at set times.

use errand_core::session::State;

use super::{Event, World};
use crate::faults::Fault;
use crate::line::{Request, To};
use crate::process::Kind;
use crate::world::client::Wish;

impl World {
    pub(super) fn fault(&mut self, fault: Fault, whom: u64) {
        if self.calm {
            return;
        }
        self.happened += 1;
        let slot = usize::try_from(whom % self.slots.len() as u64).unwrap_or(0);
        let name = self.slots[slot].process.as_ref().map(|process| process.name.clone());
        self.say("world", format_args!("{fault:?} for {name:?}"));
        let is_there = self.slots[slot].process.is_some();
        match fault {
            Fault::Crash if is_there => self.kill(slot, "killed"),
            Fault::Stop if is_there => {
                self.slots[slot].goes = true;
                if let Some(process) = &self.slots[slot].process {
                    process.shutdown.cancel();
                }
                let delay = self.rng.between(10, 4_000);
                self.after(delay, Event::Kill((slot, self.slots[slot].incarnation)));
            }
            Fault::Partition(millis) => {
                self.slots[slot].cut_until = self.now + millis;
                self.after(millis, Event::Heal);
                self.reconnect();
            }
            Fault::Stall(millis) if is_there => {
                let until = self.now + millis;
                if let Some(process) = &mut self.slots[slot].process {
                    process.stalled_until = until;
                }
            }
            Fault::ClockJump(millis) => {
                if let Some(process) = &mut self.slots[slot].process {
                    process.skew = millis;
                }
            }
            Fault::BrokerAway(millis) => self.broker_away(millis),
            Fault::BrokerLosesTheEnd(count) => {
                self.broker.lose_the_end(usize::try_from(count).unwrap_or(1));
                self.broker_away(200);
            }
            Fault::BrokerLosesAll => {
                // What was only in the stream was as durable as the broker.
                let waiting: Vec<_> = self.broker.submissions.values().map(|waiting| waiting.run.id).collect();
                for id in waiting {
                    if !self.checks.runs.contains_key(&id) {
                        self.checks.accepted.remove(&id);
                    }
                }
                self.broker.lose_everything();
                self.broker_away(200);
            }
            Fault::SecondPool => self.second_pool(),
            Fault::DrainRunner => self.drain(whom),
            Fault::EndSession => self.end_session(whom),
            Fault::Repeat => self.repeat(),
            Fault::Crash | Fault::Stop | Fault::Stall(_) => {}
        }
    }

    fn broker_away(&mut self, millis: i64) {
        self.broker.is_up = false;
        self.broker.restart();
        self.reconnect();
        self.after(millis, Event::BrokerUp);
    }

    pub(super) fn broker_up(&mut self) {
        self.broker.is_up = true;
        self.say("broker", "is there");
        self.reconnect();
    }

    /// Tells every process whether it is connected, and to which broker.
    pub(super) fn reconnect(&mut self) {
        for slot in 0..self.slots.len() {
            let broker = self.is_connected(slot).then_some(self.broker.number);
            if let Some(process) = &self.slots[slot].process {
                process.line.connect(broker);
            }
        }
    }

    /// Another pool starts beside one that lives, as when its lock was lost.
    fn second_pool(&mut self) {
        let pools = self.slots.iter().filter(|slot| matches!(slot.kind, Kind::Pool(_)) && !slot.retired).count();
        let Some(kind) = self.slots.iter().map(|slot| &slot.kind).find(|kind| matches!(kind, Kind::Pool(_))) else {
            return;
        };
        if pools > 1 {
            return;
        }
        let kind = kind.clone();
        self.slots.push(super::Slot { kind, process: None, incarnation: 0, cut_until: 0, goes: false, retired: false });
        self.at(self.now, Event::Start(self.slots.len() - 1));
    }

    fn drain(&mut self, whom: u64) {
        let runners: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| if let Kind::Runner { id, .. } = &slot.kind { Some(*id) } else { None })
            .collect();
        let place = usize::try_from(whom % runners.len().max(1) as u64).unwrap_or(0);
        if let Some(runner) = runners.get(place) {
            self.wish(Wish::Once(To::Pool, Box::new(Request::Drain(*runner))));
        }
    }

    fn end_session(&mut self, whom: u64) {
        let live: Vec<_> = self
            .checks
            .sessions
            .values()
            .filter(|session| matches!(session.state, State::Running { .. } | State::Idle { .. }))
            .filter_map(|session| Some((session.tenant.clone()?, session.id)))
            .collect();
        let place = usize::try_from(whom % live.len().max(1) as u64).unwrap_or(0);
        if let Some((tenant, id)) = live.get(place).cloned() {
            self.wish(Wish::Once(To::Pool, Box::new(Request::EndSession(tenant, id))));
        }
    }

    fn repeat(&mut self) {
        for _ in 0..10 {
            let Some((to, request)) = self.rng.pick(&self.old).cloned() else { return };
            let delay = self.rng.between(0, 2_000);
            self.after(delay, Event::Arrive(0, to, request));
        }
    }
}
