mod histories;
mod matching;
mod runners;

use std::collections::BTreeMap;

use errand_core::run::{Lease, LeaseToken};
use errand_core::session::SessionStatus;
use errand_core::{AgentId, RunId, RunnerId, SessionId, SourceId, Tenant, Timestamp};
use uuid::Uuid;

use super::{Change, Decisions, Grant, Loss, Policy, Pool, Registration, Release, Stored, Want};

/// A pool with a store and a clock.
struct World {
    pool: Pool,
    policy: Policy,
    now: Timestamp,
    made: u128,
    sessions: BTreeMap<SessionId, Change>,
    losses: BTreeMap<LeaseToken, Loss>,
    drains: std::collections::BTreeSet<RunnerId>,
    token: LeaseToken,
    /// The newest token that was granted.
    granted: LeaseToken,
}

fn run(n: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(n))
}

fn runner(n: u128) -> RunnerId {
    RunnerId::from_uuid(Uuid::from_u128(n))
}

fn source(n: u128) -> SourceId {
    SourceId::from_uuid(Uuid::from_u128(n))
}

fn tenant(name: &str) -> Tenant {
    name.parse().unwrap()
}

fn agent(name: &str) -> AgentId {
    format!("agt_{name}").parse().unwrap()
}

fn want(n: u128, of: &str) -> Want {
    Want {
        run_id: run(n),
        tenant: tenant(of),
        agent_id: agent("exec"),
        source_id: None,
        credential_id: None,
        session_id: None,
        reuse: false,
        priority: 0,
        queued_at: Timestamp(i64::try_from(n).unwrap()),
        attempt: 1,
        traceparent: None,
    }
}

fn reusing(n: u128, of: &str, on: u128) -> Want {
    Want { reuse: true, source_id: Some(source(on)), ..want(n, of) }
}

fn registration(n: u128, capacity: usize) -> Registration {
    Registration {
        id: runner(n),
        agent_id: agent("exec"),
        capacity,
        warm: 0,
        tenants: None,
        host: "here".into(),
        version: "1".into(),
    }
}

impl World {
    fn new(policy: Policy) -> Self {
        let now = Timestamp(1_000_000);
        Self {
            pool: Pool::restore(policy.clone(), Stored::default(), now),
            policy,
            now,
            made: 1 << 64,
            sessions: BTreeMap::new(),
            losses: BTreeMap::new(),
            drains: std::collections::BTreeSet::new(),
            token: 0,
            granted: 0,
        }
    }

    fn with_runner(capacity: usize) -> Self {
        let mut world = Self::new(Policy::default());
        world.register(registration(1, capacity), &[]);
        world
    }

    /// Matches, checks everything that must hold, and commits.
    fn step(&mut self) -> Decisions {
        let made = &mut self.made;
        self.pool.settle(self.now, &mut || {
            *made += 1;
            SessionId::from_uuid(Uuid::from_u128(*made))
        });
        self.pool.check().unwrap();
        self.pool.check_settled().unwrap();
        let decisions = self.pool.take();
        self.commit(&decisions);
        decisions
    }

    fn commit(&mut self, decisions: &Decisions) {
        for change in &decisions.changes {
            let before = self.sessions.insert(change.session.id, change.clone());
            let expected = before.as_ref().map_or(1, |before| before.session.seq + 1);
            assert_eq!(change.session.seq, expected, "one event for each change, without gaps");
            let was_held = before.and_then(|before| before.session.holder());
            let is_held = change.session.holder();
            assert!(was_held.is_none() || is_held.is_none(), "a session goes from run to run only by way of idle");
        }
        for grant in &decisions.grants {
            let stored = &self.sessions[&grant.lease.session_id].session;
            assert_eq!(stored.holder(), Some((grant.run_id, grant.lease.token)), "granted is committed");
            if grant.lease.token > self.token {
                assert!(grant.lease.token > self.granted, "tokens only grow");
                self.granted = grant.lease.token;
            }
        }
        for loss in &decisions.new_losses {
            self.losses.insert(loss.lease.token, loss.clone());
        }
        for token in &decisions.told_losses {
            self.losses.remove(token);
        }
        for (id, drains) in &decisions.drains {
            if *drains {
                self.drains.insert(*id)
            } else {
                self.drains.remove(id)
            };
        }
        self.token = self.pool.token();
        let open = self.sessions.values().filter(|change| !change.session.status().is_final());
        let live: Vec<SessionId> = self.pool.slots.keys().copied().collect();
        assert_eq!(open.map(|change| change.session.id).collect::<Vec<_>>(), live, "no session is forgotten");
    }

    fn restart(&mut self) -> Decisions {
        let open = self.sessions.values().filter(|change| !change.session.status().is_final());
        let stored = Stored {
            sessions: open.cloned().collect(),
            losses: self.losses.values().cloned().collect(),
            drains: self.drains.iter().copied().collect(),
            token: self.token,
        };
        self.pool = Pool::restore(self.policy.clone(), stored, self.now);
        self.step()
    }

    fn register(&mut self, registration: Registration, listed: &[SessionId]) -> Vec<SessionId> {
        self.pool.register(registration, listed, self.now).unwrap()
    }

    fn acquire(&mut self, want: Want) -> Decisions {
        self.pool.acquire(want, self.now).unwrap();
        self.step()
    }

    fn started(&mut self, decisions: &Decisions) -> Decisions {
        for start in &decisions.starts {
            self.pool.started(start.session_id, Ok(()), self.now);
        }
        self.step()
    }

    fn torn_down(&mut self, decisions: &Decisions) -> Decisions {
        for (runner, id) in &decisions.tear_downs {
            self.pool.torn_down(*runner, *id, true, self.now);
        }
        self.step()
    }

    fn accept(&mut self, grant: &Grant) {
        self.pool.granted(grant.lease.session_id, grant.lease.token, true, self.now);
    }

    fn release(&mut self, grant: &Grant) -> Decisions {
        let release = Release { run_id: grant.run_id, lease: Some(grant.lease), discard: false };
        self.pool.release(release, self.now);
        self.step()
    }

    /// Lets time pass, with heartbeats of these runners.
    fn pass(&mut self, millis: i64, alive: &[u128]) -> Decisions {
        let mut all = Decisions::default();
        let end = self.now.plus_millis(millis);
        while self.now < end {
            self.now = self.now.plus_millis(500).min(end);
            for n in alive {
                let listed = self.pool.runners[&runner(*n)].sessions.iter().copied().collect::<Vec<_>>();
                self.pool.heartbeat(runner(*n), &listed, false, self.now);
            }
            self.pool.tick(self.now, true);
            let step = self.step();
            all.changes.extend(step.changes);
            all.grants.extend(step.grants);
            all.losses.extend(step.losses);
            all.checks.extend(step.checks);
            all.starts.extend(step.starts);
            all.tear_downs.extend(step.tear_downs);
        }
        all
    }

    /// A run from want to lease, in a session made for it.
    fn leased(&mut self, want: Want) -> Grant {
        let asked = self.acquire(want);
        assert_eq!(asked.starts.len(), 1, "{asked:?}");
        let ready = self.started(&asked);
        assert_eq!(ready.grants.len(), 1, "{ready:?}");
        self.accept(&ready.grants[0]);
        ready.grants[0]
    }

    fn status(&self, id: SessionId) -> SessionStatus {
        self.sessions[&id].session.status()
    }
}

fn stale(lease: Lease) -> Lease {
    Lease { token: lease.token - 1, ..lease }
}
