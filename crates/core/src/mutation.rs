//! Deliberate faults, so that it can be shown that the simulator and the property tests find such. Compiled only with
//! the feature `mutations`, which nothing that is shipped turns on; without it [`mutated!`](crate::mutated) is `false`.

use std::cell::Cell;
use std::sync::OnceLock;

macro_rules! mutations {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// A deliberate fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutation {
            $($(#[doc = $doc])* $name,)*
        }

        impl Mutation {
            /// Every one, with what it does.
            pub const ALL: &[(Self, &str, &str)] = &[$((Self::$name, stringify!($name), concat!($($doc),*)),)*];
        }
    };
}

mutations! {
    /// Events are handed to the publisher before the commit.
    PublishBeforeCommit,
    /// The asker is answered before the commit.
    AnswerBeforeCommit,
    /// Effects go out before the commit.
    EffectsBeforeCommit,
    /// A report under any lease moves the run.
    ForgetTheFence,
    /// The dispatcher's sweep sends nothing again.
    DropTheSweep,
    /// A watcher loads no snapshot.
    LoseDeadlinesOnRestart,
    /// A submission is acked whatever became of it.
    AckBeforeCommit,
    /// A session that a run holds is leased to another as well.
    DoubleGrant,
    /// A lease token is given twice.
    RepeatToken,
    /// A change adds two to `seq`.
    SkipASeq,
    /// A released session is idle again, although it is to be discarded.
    IgnoreDiscard,
    /// A session that is to be torn down is forgotten without telling its runner.
    ReleaseWithoutTearDown,
    /// A pool that has restarted is taken for the one that knew who waits.
    ForgetTheEpoch,
    /// The mark is moved before the stream has the events.
    MarkBeforePublish,
    /// An idle session serves other tenants, too.
    ReuseAcrossTenants,
    /// What met a conflict is dropped, not decided anew.
    DropOnConflict,
    /// That nothing changes is believed of a cached run.
    TrustTheCache,
    /// After a commit of unknown outcome nobody looks what is in the store.
    ForgetTheUncertain,
    /// What a dead writer left is published by nobody.
    ForgetTheDeadWriter,
    /// After a reconnect nobody compares the stream with the store.
    SkipTheRecovery,
    /// Events of one object go to the broker side by side.
    PublishInOneWave,
    /// What others have not published of a run does not go before what is decided now.
    OvertakeOtherWriters,
    /// A loss is told once, answered or not.
    TellALossOnce,
    /// A grant is told once, answered or not.
    TellAGrantOnce,
    /// Leases are never compared with the dispatcher's.
    SkipLeaseChecks,
    /// A silent runner is never given up.
    TrustSilentRunners,
    /// A final run can be canceled.
    CancelTheFinal,
    /// An attempt more than the task allows is made.
    OneAttemptTooMany,
    /// A deadline is believed to have passed whenever somebody says so.
    BelieveTheWatcher,
    /// A run in the state of waiting for a person has no deadline.
    WaitForEver,
    /// A runner takes an assignment under an older lease.
    RunnerForgetsTheFence,
    /// A runner sends a report once.
    ReportOnce,
    /// A newer lease begins before the older one's agent is gone.
    TwoAgentsInASession,
    /// A grant for an earlier attempt is taken.
    GrantOfAnyAttempt,
    /// A pool whose store was taken over goes on.
    IgnoreTheOwner,
    /// A session keeps its run's lease when the run is over.
    KeepTheLease,
}

thread_local! {
    static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
}

/// The fault of this thread from now on.
pub fn activate(mutation: Option<Mutation>) {
    ACTIVE.set(mutation);
}

/// Whether this is the thread's fault; of a thread that has none, the one that `ERRAND_MUTATION` names.
#[must_use]
pub fn is_active(mutation: Mutation) -> bool {
    ACTIVE.get().or_else(of_environment) == Some(mutation)
}

fn of_environment() -> Option<Mutation> {
    static NAMED: OnceLock<Option<Mutation>> = OnceLock::new();
    *NAMED.get_or_init(|| {
        let wanted = std::env::var("ERRAND_MUTATION").ok()?;
        Mutation::ALL.iter().find(|(_, name, _)| *name == wanted).map(|(mutation, ..)| *mutation)
    })
}
