use errand_core::{Error, ErrorCode};

use super::*;

fn runs(decisions: &Decisions) -> Vec<RunId> {
    decisions.grants.iter().map(|grant| grant.run_id).collect()
}

#[test]
fn a_fresh_session_is_made_leased_torn_down_and_its_room_used_again() {
    let mut world = World::with_runner(1);
    let first = world.leased(want(1, "acme"));
    let session = first.lease.session_id;
    assert!(world.acquire(want(2, "acme")).starts.is_empty(), "there is room for one");
    let over = world.release(&first);
    assert_eq!(over.tear_downs, [(runner(1), session)]);
    assert_eq!(world.status(session), SessionStatus::Completing);
    let next = world.torn_down(&over);
    assert_eq!(world.status(session), SessionStatus::Completed);
    assert_eq!(runs(&world.started(&next)), [run(2)]);
    let statuses: Vec<_> = world.sessions.values().map(|change| change.session.seq).collect();
    assert_eq!(statuses, [4, 2], "queued, running, completing, completed; queued, running");
}

#[test]
fn a_session_is_reused_by_runs_that_fit_only() {
    struct Case(&'static str, Want, bool);
    let other = "the same tenant, source and credential";
    for Case(what, next, reused) in [
        Case("the same", reusing(2, "acme", 7), true),
        Case(other, Want { tenant: tenant("blue"), ..reusing(2, "acme", 7) }, false),
        Case("another source", reusing(2, "acme", 8), false),
        Case("one that wants a fresh one", Want { reuse: false, ..reusing(2, "acme", 7) }, false),
        Case("another agent", Want { agent_id: agent("other"), ..reusing(2, "acme", 7) }, false),
    ] {
        let mut world = World::with_runner(2);
        let first = world.leased(reusing(1, "acme", 7));
        world.release(&first);
        assert_eq!(world.status(first.lease.session_id), SessionStatus::Idle);
        let second = world.acquire(next);
        assert_eq!(
            second.grants.iter().any(|grant| grant.lease.session_id == first.lease.session_id),
            reused,
            "{what}"
        );
    }
}

#[test]
fn priority_then_age_decide_within_a_tenant() {
    let mut world = World::with_runner(1);
    let first = world.leased(want(1, "acme"));
    world.acquire(want(5, "acme"));
    world.acquire(want(3, "acme"));
    world.acquire(Want { priority: 10, ..want(9, "acme") });
    world.acquire(Want { priority: -10, ..want(2, "acme") });
    let mut order = Vec::new();
    let mut holder = first;
    for _ in 0..4 {
        let over = world.release(&holder);
        let next = world.torn_down(&over);
        holder = world.started(&next).grants[0];
        order.push(holder.run_id);
    }
    assert_eq!(order, [run(9), run(3), run(5), run(2)]);
}

#[test]
fn a_flood_does_not_starve_another_tenant() {
    let mut world = World::with_runner(4);
    let mut held: Vec<Grant> = Vec::new();
    for n in 0..200 {
        let asked = world.acquire(want(n, "flood"));
        held.extend(world.started(&asked).grants);
    }
    for n in 1000..1004 {
        world.acquire(want(n, "small"));
    }
    // Two of four rooms are the small one's as soon as they come free.
    let mut granted = Vec::new();
    for _ in 0..4 {
        let oldest = held.remove(0);
        let over = world.release(&oldest);
        let next = world.torn_down(&over);
        let grants = world.started(&next).grants;
        granted.extend(grants.iter().map(|grant| grant.run_id));
        held.extend(grants);
    }
    assert_eq!(granted[..2], [run(1000), run(1001)]);
    assert_eq!(granted.iter().filter(|id| **id >= run(1000)).count(), 2, "{granted:?}");
}

#[test]
fn reuse_does_not_starve_another_tenant() {
    let mut world = World::with_runner(1);
    let mut holder = world.leased(reusing(0, "flood", 7));
    for n in 1..50 {
        world.acquire(reusing(n, "flood", 7));
    }
    world.acquire(want(1000, "small"));
    let over = world.release(&holder);
    assert!(over.grants.is_empty(), "the idle session ends for the one who has none");
    let next = world.torn_down(&over);
    holder = world.started(&next).grants[0];
    assert_eq!(holder.run_id, run(1000));
}

#[test]
fn an_idle_session_is_taken_out_of_turn_only_so_often() {
    let mut world = World::with_runner(1);
    let mut holder = world.leased(reusing(0, "acme", 7));
    world.acquire(reusing(1, "acme", 8));
    for n in 2..40 {
        world.acquire(reusing(n, "acme", 7));
    }
    let mut before = 0;
    loop {
        let over = world.release(&holder);
        match over.grants.first() {
            Some(grant) => holder = *grant,
            None => break,
        }
        before += 1;
    }
    assert_eq!(before, 16);
}

#[test]
fn the_longest_idle_session_that_does_not_fit_makes_room() {
    let mut world = World::with_runner(2);
    let first = world.leased(reusing(1, "acme", 7));
    let second = world.leased(reusing(2, "acme", 8));
    world.release(&second);
    world.now = world.now.plus_millis(10);
    world.release(&first);
    let asked = world.acquire(want(3, "blue"));
    assert_eq!(asked.tear_downs, [(runner(1), second.lease.session_id)]);
    assert!(world.acquire(want(3, "blue")).tear_downs.is_empty(), "the same want again");
    let next = world.torn_down(&asked);
    assert_eq!(runs(&world.started(&next)), [run(3)]);
    assert_eq!(world.status(first.lease.session_id), SessionStatus::Idle);
}

#[test]
fn a_tenant_at_its_limit_waits_and_lets_others_pass() {
    let mut world =
        World::new(Policy { tenant_limit: 2, tenant_limits: [(tenant("vip"), 3)].into(), ..Policy::default() });
    world.register(registration(1, 10), &[]);
    let mut grants = Vec::new();
    for (n, of) in [(1, "acme"), (2, "acme"), (3, "acme"), (4, "vip"), (5, "vip"), (6, "vip"), (7, "vip")] {
        let asked = world.acquire(want(n, of));
        grants.extend(world.started(&asked).grants);
    }
    assert_eq!(grants.iter().map(|g| g.run_id).collect::<Vec<_>>(), [run(1), run(2), run(4), run(5), run(6)]);
    let over = world.release(&grants[0]);
    assert_eq!(over.starts.len(), 1, "its next one is made as soon as a lease ends");
    assert_eq!(runs(&world.started(&over)), [run(3)]);
}

#[test]
fn a_session_asked_for_by_name_is_waited_for_and_kept() {
    let mut world = World::with_runner(2);
    let first = world.leased(want(1, "acme"));
    let session = first.lease.session_id;
    let named = |n| Want { session_id: Some(session), ..want(n, "acme") };
    assert!(world.acquire(named(2)).starts.is_empty(), "no other will do");
    assert_eq!(runs(&world.release(&first)), [run(2)]);
    let refused = world.pool.acquire(Want { tenant: tenant("blue"), ..named(3) }, world.now);
    assert_eq!(refused.unwrap_err().code, ErrorCode::SESSION_NOT_AVAILABLE);
    let unknown = Want { session_id: Some(SessionId::from_uuid(Uuid::nil())), ..want(3, "acme") };
    assert_eq!(world.pool.acquire(unknown, world.now).unwrap_err().field.as_deref(), Some("session_id"));
}

#[test]
fn a_named_session_waits_for_a_tenant_at_its_limit() {
    let mut world = World::new(Policy { tenant_limit: 1, ..Policy::default() });
    world.register(registration(1, 3), &[]);
    let first = world.leased(reusing(1, "acme", 7));
    world.release(&first);
    let other = world.leased(want(2, "acme"));
    let named = Want { session_id: Some(first.lease.session_id), ..want(3, "acme") };
    assert!(world.acquire(named).grants.is_empty());
    assert_eq!(runs(&world.release(&other)), [run(3)]);
}

#[test]
fn warm_sessions_are_kept_ready_and_taken_first() {
    let mut world = World::new(Policy::default());
    world.register(Registration { warm: 2, ..registration(1, 3) }, &[]);
    let made = world.step();
    assert_eq!((made.starts.len(), made.starts[0].tenant.clone()), (2, None));
    world.started(&made);
    let asked = world.acquire(want(1, "acme"));
    assert_eq!(runs(&asked), [run(1)]);
    assert_eq!(asked.starts.len(), 1, "another one is made in its place");
}

#[test]
fn a_runner_serves_the_tenants_that_it_names() {
    let mut world = World::new(Policy::default());
    let only = |names: &[&str]| Some(names.iter().map(|name| tenant(name)).collect());
    world.register(Registration { tenants: only(&["acme", "blue"]), ..registration(1, 1) }, &[]);
    assert!(world.acquire(want(1, "cyan")).starts.is_empty());
    assert_eq!(world.acquire(want(2, "blue")).starts.len(), 1);
    world.register(registration(2, 1), &[]);
    assert_eq!(world.step().starts[0].runner_id, runner(2));
}

#[test]
fn a_session_that_cannot_be_made_is_tried_elsewhere_and_later() {
    let mut world = World::with_runner(1);
    world.register(registration(2, 1), &[]);
    let asked = world.acquire(want(1, "acme"));
    let failed = || Err::<(), Error>(ErrorCode::PROVISION_FAILED.with("no image"));
    let first = asked.starts[0].clone();
    world.pool.started(first.session_id, failed(), world.now);
    let again = world.step();
    assert_ne!(again.starts[0].runner_id, first.runner_id);
    assert_eq!(again.tear_downs, [(first.runner_id, first.session_id)], "what is half made goes");
    world.pool.started(again.starts[0].session_id, failed(), world.now);
    let third = world.step();
    assert!(third.starts.is_empty(), "not at once");
    world.torn_down(&again);
    assert_eq!(world.pass(1_500, &[1, 2]).starts.len(), 1);
}

#[test]
fn a_session_made_for_a_run_that_waits_no_more_is_another_ones() {
    let mut world = World::with_runner(1);
    let asked = world.acquire(want(1, "acme"));
    world.acquire(want(2, "acme"));
    world.pool.release(Release { run_id: run(1), lease: None, discard: false }, world.now);
    world.step();
    assert_eq!(runs(&world.started(&asked)), [run(2)]);
}

#[test]
fn a_repeated_want_is_the_same_and_a_newer_attempt_takes_its_place() {
    let mut world = World::with_runner(1);
    let first = world.leased(want(1, "acme"));
    world.acquire(want(2, "acme"));
    world.acquire(want(2, "acme"));
    assert_eq!(world.pool.agent_views()[0].waiting, 1);
    world.acquire(Want { attempt: 2, ..want(2, "acme") });
    assert_eq!(world.pool.agent_views()[0].waiting, 1);
    let over = world.release(&first);
    let next = world.torn_down(&over);
    let grant = world.started(&next).grants[0];
    assert_eq!(grant.attempt, 2);
    world.now = world.now.plus_millis(2_000);
    assert_eq!(world.acquire(Want { attempt: 2, ..want(2, "acme") }).grants, [grant], "told again, not leased again");
}

#[test]
fn a_grant_that_is_not_accepted_leaves_the_session_to_others() {
    let mut world = World::with_runner(1);
    let asked = world.acquire(want(1, "acme"));
    let grant = world.started(&asked).grants[0];
    world.acquire(want(2, "acme"));
    world.pool.granted(grant.lease.session_id, grant.lease.token, false, world.now);
    let next = world.step();
    assert_eq!(runs(&next), [run(2)], "it is as good as fresh");
    assert_eq!(next.grants[0].lease.session_id, grant.lease.session_id);
}

#[test]
fn a_stale_release_changes_nothing_and_is_a_reason_to_look() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    let release = Release { run_id: grant.run_id, lease: Some(stale(grant.lease)), discard: true };
    world.pool.release(release, world.now);
    let decisions = world.step();
    assert!(decisions.changes.is_empty());
    assert!(decisions.changes_the_store(), "a commit shows whether another pool has taken over");
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Running);
}

#[test]
fn as_many_wait_as_may() {
    let mut world = World::new(Policy { max_waiting: 2, ..Policy::default() });
    world.acquire(want(1, "acme"));
    world.acquire(want(2, "acme"));
    let error = world.pool.acquire(want(3, "acme"), world.now).unwrap_err();
    assert_eq!((error.code, error.field.as_deref()), (ErrorCode::API_UNAVAILABLE, Some("wants")));
    assert!(world.pool.acquire(want(2, "acme"), world.now).is_ok());
}
