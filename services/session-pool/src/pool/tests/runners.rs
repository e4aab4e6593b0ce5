use errand_core::ErrorCode;
use errand_core::run::LostReason;

use super::*;

#[test]
fn a_silent_runner_is_lost_with_its_sessions_and_the_run_is_told_until_it_is_known() {
    let mut world = World::with_runner(2);
    let grant = world.leased(want(1, "acme"));
    let lost = world.pass(10_500, &[]);
    assert_eq!(lost.losses.len(), 1);
    assert_eq!((lost.losses[0].run_id, lost.losses[0].reason), (run(1), LostReason::RunnerLost));
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Failed);
    assert!(world.pool.runner_views().is_empty());
    let restarted = world.restart();
    assert_eq!(restarted.losses, lost.losses, "a restart does not forget");
    assert_eq!(world.pass(6_000, &[]).losses, lost.losses, "nor does silence");
    world.pass(60_000, &[]);
    world.pool.losses_told(&[grant.lease.token], world.now);
    world.step();
    assert!(world.pass(6_000, &[]).losses.is_empty());
    assert!(world.restart().losses.is_empty());
}

#[test]
fn heartbeats_keep_a_runner_and_a_broker_that_is_away_blames_nobody() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    world.pass(60_000, &[1]);
    for _ in 0..60 {
        world.now = world.now.plus_millis(1_000);
        world.pool.tick(world.now, false);
    }
    world.step();
    world.now = world.now.plus_millis(60_000);
    world.pool.tick(world.now, true);
    assert!(world.step().losses.is_empty(), "the pool was away, not the runner");
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Running);
}

#[test]
fn a_runner_that_the_pool_does_not_know_registers_again() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    let id = grant.lease.session_id;
    let again = world.restart();
    assert_eq!(again.grants, [grant], "nobody knows whether it was heard");
    assert!(!world.pool.heartbeat(runner(1), &[id], false, world.now).known);
    assert!(world.register(registration(1, 1), &[id]).is_empty());
    world.step();
    assert!(world.pool.heartbeat(runner(1), &[id], false, world.now).known);
    world.accept(&grant);
    assert!(world.pass(30_000, &[1]).losses.is_empty());
    let foreign = SessionId::from_uuid(Uuid::nil());
    assert_eq!(world.pool.heartbeat(runner(1), &[id, foreign], false, world.now).end_sessions, [foreign]);
}

#[test]
fn after_a_restart_a_runner_that_does_not_show_up_is_lost() {
    let mut world = World::with_runner(1);
    world.leased(want(1, "acme"));
    world.restart();
    assert!(world.pass(9_000, &[]).losses.is_empty());
    assert_eq!(world.pass(2_000, &[]).losses.len(), 1);
}

#[test]
fn after_a_restart_a_lease_that_was_never_accepted_is_given_up() {
    let mut world = World::with_runner(1);
    let asked = world.acquire(reusing(1, "acme", 7));
    let grant = world.started(&asked).grants[0];
    world.restart();
    world.register(registration(1, 1), &[grant.lease.session_id]);
    world.pool.granted(grant.lease.session_id, grant.lease.token, false, world.now);
    world.step();
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Completing, "something may have run there");
}

#[test]
fn a_session_that_its_runner_does_not_list_has_failed() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    world.pool.heartbeat(runner(1), &[], false, world.now);
    world.pool.heartbeat(runner(1), &[], false, world.now);
    assert!(world.step().losses.is_empty(), "it became ready after these were written");
    world.pass(6_000, &[1]);
    world.pool.heartbeat(runner(1), &[], false, world.now);
    assert!(world.step().losses.is_empty(), "once is not enough");
    world.pool.heartbeat(runner(1), &[], false, world.now);
    assert_eq!(world.step().losses[0].reason, LostReason::SessionFailed);
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Failed);
}

#[test]
fn a_session_that_dies_tells_its_run_and_frees_its_room_when_it_is_gone() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    world.acquire(want(2, "acme"));
    world.pool.session_lost(runner(1), grant.lease.session_id, "the browser crashed", world.now);
    let lost = world.step();
    assert_eq!(lost.losses[0].message, "the browser crashed");
    assert!(lost.starts.is_empty(), "what is left of it takes room");
    assert_eq!(world.torn_down(&lost).starts.len(), 1);
}

#[test]
fn a_run_whose_session_dies_before_it_has_accepted_waits_again() {
    let mut world = World::with_runner(1);
    let asked = world.acquire(want(1, "acme"));
    let grant = world.started(&asked).grants[0];
    world.pool.session_lost(runner(1), grant.lease.session_id, "the browser crashed", world.now);
    let lost = world.step();
    assert_eq!(lost.losses.len(), 1, "it may have accepted");
    let next = world.torn_down(&lost);
    assert_eq!(world.started(&next).grants[0].run_id, run(1));
}

#[test]
fn a_user_ends_a_session_and_nobody_elses() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    let id = grant.lease.session_id;
    let refused = world.pool.end_session(id, &tenant("blue"), world.now).unwrap_err();
    assert_eq!(refused.code, ErrorCode::SESSION_NOT_FOUND);
    world.pool.end_session(id, &tenant("acme"), world.now).unwrap();
    let ended = world.step();
    assert_eq!(ended.losses[0].reason, LostReason::SessionEnded);
    assert_eq!(ended.tear_downs, [(runner(1), id)]);
    world.pool.end_session(id, &tenant("acme"), world.now).unwrap();
    assert!(!world.step().changes_the_store(), "once is enough");
}

#[test]
fn a_tear_down_without_an_answer_is_asked_for_again() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    world.release(&grant);
    world.pool.torn_down(runner(1), grant.lease.session_id, false, world.now);
    world.step();
    assert_eq!(world.pass(3_000, &[1]).tear_downs, [(runner(1), grant.lease.session_id)]);
    assert_eq!(world.restart().tear_downs, [(runner(1), grant.lease.session_id)]);
}

#[test]
fn a_draining_runner_ends_what_is_idle_and_keeps_what_runs() {
    let mut world = World::with_runner(3);
    let running = world.leased(want(1, "acme"));
    let idle = world.leased(reusing(2, "acme", 7));
    world.release(&idle);
    assert!(world.pool.drain_runner(runner(1), world.now).unwrap().draining);
    assert_eq!(world.pool.drain_runner(runner(9), world.now).unwrap_err().code, ErrorCode::RUNNER_NOT_FOUND);
    let drained = world.step();
    assert_eq!(drained.tear_downs, [(runner(1), idle.lease.session_id)]);
    world.torn_down(&drained);
    assert!(world.acquire(want(3, "acme")).starts.is_empty());
    assert_eq!(world.status(running.lease.session_id), SessionStatus::Running);
    world.restart();
    world.register(registration(1, 3), &[running.lease.session_id]);
    assert!(world.step().starts.is_empty(), "a restart does not forget");
    assert!(world.pool.heartbeat(runner(1), &[running.lease.session_id], false, world.now).drain);
    world.pool.deregister(runner(1), world.now);
    assert_eq!(world.step().drains, [(runner(1), false)]);
}

#[test]
fn an_idle_session_ends_after_its_time() {
    let mut world = World::with_runner(1);
    let grant = world.leased(reusing(1, "acme", 7));
    world.release(&grant);
    world.pass(599_000, &[1]);
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Idle);
    world.pass(1_500, &[1]);
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Completing);
}

#[test]
fn leases_are_compared_with_the_dispatchers() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    assert!(world.pass(9_000, &[1]).checks.is_empty());
    let checks = world.pass(7_000, &[1]).checks;
    assert_eq!(checks[0], (run(1), grant.lease));
    world.pool.not_held(run(1), grant.lease, world.now);
    world.step();
    assert_eq!(world.status(grant.lease.session_id), SessionStatus::Completing);
}

#[test]
fn a_grant_without_an_answer_is_told_again() {
    let mut world = World::with_runner(1);
    let asked = world.acquire(want(1, "acme"));
    let grant = world.started(&asked).grants[0];
    assert_eq!(world.pass(6_000, &[1]).grants, [grant]);
}

#[test]
fn a_runner_that_fails_again_and_again_has_a_rest() {
    let mut world = World::with_runner(10);
    for n in 0..3 {
        let asked = world.acquire(want(n, "acme"));
        let failed = Err(ErrorCode::PROVISION_FAILED.with("no disk"));
        world.pool.started(asked.starts[0].session_id, failed, world.now);
        world.pool.release(Release { run_id: run(n), lease: None, discard: false }, world.now);
        world.step();
    }
    assert!(world.acquire(want(9, "acme")).starts.is_empty());
    assert_eq!(world.pass(1_500, &[1]).starts.len(), 1);
}

#[test]
fn a_runner_keeps_to_one_agent_and_there_is_a_limit_to_runners() {
    let mut world = World::new(Policy { max_runners: 1, ..Policy::default() });
    world.register(registration(1, 1), &[]);
    let other = Registration { agent_id: agent("other"), ..registration(1, 1) };
    let error = world.pool.register(other, &[], world.now).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("agent_id"));
    let error = world.pool.register(registration(2, 1), &[], world.now).unwrap_err();
    assert_eq!(error.code, ErrorCode::API_UNAVAILABLE);
}

/// Found by the simulator, seed 117.
#[test]
fn a_run_whose_lease_is_gone_before_it_was_accepted_waits_again_also_where_no_further_may() {
    let mut world = World::new(Policy { max_waiting: 1, ..Policy::default() });
    world.register(registration(1, 1), &[]);
    let made = world.acquire(want(1, "acme"));
    let grant = world.started(&made).grants[0];
    world.acquire(want(2, "acme"));
    let now = world.now;
    world.pool.session_lost(runner(1), grant.lease.session_id, "it died", now);
    world.step();
    assert!(world.pool.waits(run(1)) && world.pool.waits(run(2)));
    assert!(world.pool.acquire(want(3, "acme"), now).is_err());
}

/// Found by the simulator, seed 384: the grant of a lease arrived behind its loss, the run took it, and nobody ever said
/// again that it was gone.
#[test]
fn the_loss_of_a_lease_that_may_yet_be_accepted_is_told_again_although_it_was_answered() {
    let mut world = World::with_runner(1);
    let made = world.acquire(want(1, "acme"));
    let grant = world.started(&made).grants[0];
    world.pool.session_lost(runner(1), grant.lease.session_id, "it died", world.now);
    let lost = world.step().losses;
    assert_eq!(lost.len(), 1);
    world.pool.losses_told(&[grant.lease.token], world.now);
    assert_eq!(world.pass(6_000, &[1]).losses, lost, "the grant may be under way");
    world.pass(60_000, &[1]);
    world.pool.losses_told(&[grant.lease.token], world.now);
    assert!(world.step().told_losses == [grant.lease.token] && world.pass(6_000, &[1]).losses.is_empty());
}

/// Found by the simulator, seed 630: a runner made a session behind its tear-down, and the pool took it for gone.
#[test]
fn a_session_that_is_gone_and_is_listed_for_long_is_to_be_ended() {
    let mut world = World::with_runner(1);
    let grant = world.leased(want(1, "acme"));
    let over = world.release(&grant);
    world.torn_down(&over);
    let listed = [grant.lease.session_id];
    assert!(
        world.pool.heartbeat(runner(1), &listed, false, world.now).end_sessions.is_empty(),
        "it may be an old message"
    );
    world.pass(6_000, &[1]);
    assert_eq!(world.pool.heartbeat(runner(1), &listed, false, world.now).end_sessions, listed);
}
