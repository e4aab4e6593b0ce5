//! Credentials: what is known of them. Their secrets are nowhere near.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::{CredentialId, SourceId, Tenant};
use crate::run::LeaseToken;
use crate::source::check_name;
use crate::time::Timestamp;

/// How a credential signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// With a name and a password, and where the source asks for one, a one-time code.
    UsernamePassword,
    /// With a key.
    ApiKey,
    /// With one-time codes alone.
    Totp,
    /// Not at all.
    None,
}

impl AuthMethod {
    /// Every method.
    pub const ALL: [Self; 4] = [Self::UsernamePassword, Self::ApiKey, Self::Totp, Self::None];

    /// The word in JSON and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UsernamePassword => "username_password",
            Self::ApiKey => "api_key",
            Self::Totp => "totp",
            Self::None => "none",
        }
    }
}

/// Whether the source takes it, as far as agents have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CredentialStatus {
    /// Nobody has tried these secrets.
    Unverified,
    /// An agent has signed in with them.
    Verified,
    /// The source has refused them.
    Invalid,
}

impl CredentialStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Unverified, Self::Verified, Self::Invalid];

    /// The word in JSON, subjects and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::Verified => "verified",
            Self::Invalid => "invalid",
        }
    }
}

/// Why a source has refused a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthFailure {
    /// Name, password, key or code were not right.
    AuthInvalid,
    /// The account is locked.
    AuthLocked,
}

impl AuthFailure {
    /// The code in the error catalogue, of type `auth`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthInvalid => "auth_invalid",
            Self::AuthLocked => "auth_locked",
        }
    }
}

/// Which of all reports one is. They are ordered: by the secrets that were tried, then the lease, then the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReportMark {
    /// Which of the credential's secrets: 1, 2, 3 ...
    pub generation: u64,
    /// Under which lease.
    pub token: LeaseToken,
    /// 1, 2, 3 ... per lease.
    pub number: u32,
}

/// What an agent tells of its sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthReport {
    /// Which report it is.
    pub mark: ReportMark,
    /// Whether the source has taken the credential.
    pub verdict: Result<(), AuthFailure>,
}

/// A credential, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Its id.
    pub id: CredentialId,
    /// Its owner.
    pub tenant: Tenant,
    /// For people.
    pub name: String,
    /// How it signs in.
    pub auth_method: AuthMethod,
    /// Whether it holds what one-time codes are made from.
    pub has_totp: bool,
    /// What it is for; none: for any.
    pub source_id: Option<SourceId>,
    /// Whether the source takes it.
    pub status: CredentialStatus,
    /// Why not, where it does not.
    pub failure: Option<AuthFailure>,
    /// Which secrets these are: 1, 2, 3 ... with each change of them.
    pub generation: u64,
    /// The newest report that was taken.
    pub last_report: Option<ReportMark>,
    /// When an agent has tried it last.
    pub checked_at: Option<Timestamp>,
    /// The number of its last event: 1, 2, 3 ...
    pub seq: u64,
    /// Grows with each change, told or not.
    pub version: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its owner or an agent changed it last.
    pub updated_at: Timestamp,
}

/// What becomes of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// The status changes: `credential.<status>` is told.
    Changed(Box<Credential>),
    /// The status is as it was; that it was tried is kept.
    Noted(Box<Credential>),
    /// It is a repetition, or older than what is known: nothing changes.
    Ignored,
}

impl Credential {
    /// Checks every limit.
    ///
    /// # Errors
    /// `request`/`input_missing` or `request`/`input_invalid`, naming the field and the limit.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name)
    }

    /// What an agent's report makes of it. Reports are taken in one order whatever the order in which they arrive, so
    /// a repeated, late or outdated one changes nothing.
    #[must_use]
    pub fn report(&self, report: &AuthReport, now: Timestamp) -> Reported {
        let AuthReport { mark, verdict } = *report;
        if mark.generation != self.generation || self.last_report.is_some_and(|last| last >= mark) {
            return Reported::Ignored;
        }
        let now = now.max(self.updated_at);
        let mut next = Self { last_report: Some(mark), checked_at: Some(now), ..self.clone() };
        next.version += 1;
        next.failure = verdict.err();
        next.status = if verdict.is_ok() { CredentialStatus::Verified } else { CredentialStatus::Invalid };
        if (next.status, next.failure) == (self.status, self.failure) {
            return Reported::Noted(Box::new(next));
        }
        next.seq += 1;
        next.updated_at = now;
        Reported::Changed(Box::new(next))
    }

    /// It with other secrets, or for another source: nobody has tried that. Told as `credential.unverified`.
    #[must_use]
    pub fn renewed(&self, now: Timestamp) -> Self {
        Self {
            status: CredentialStatus::Unverified,
            failure: None,
            generation: self.generation + 1,
            checked_at: None,
            seq: self.seq + 1,
            version: self.version + 1,
            updated_at: now.max(self.updated_at),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits;
    use crate::testing::is_one_word;

    fn credential() -> Credential {
        Credential {
            id: CredentialId::from_uuid(uuid::Uuid::nil()),
            tenant: "acme".parse().unwrap(),
            name: "portal".into(),
            auth_method: AuthMethod::UsernamePassword,
            has_totp: false,
            source_id: None,
            status: CredentialStatus::Unverified,
            failure: None,
            generation: 1,
            last_report: None,
            checked_at: None,
            seq: 1,
            version: 1,
            created_at: Timestamp(1),
            updated_at: Timestamp(1),
        }
    }

    fn report(generation: u64, token: u64, number: u32, verdict: Result<(), AuthFailure>) -> AuthReport {
        AuthReport { mark: ReportMark { generation, token, number }, verdict }
    }

    #[test]
    fn a_report_moves_the_status_once() {
        let Reported::Changed(verified) = credential().report(&report(1, 5, 1, Ok(())), Timestamp(2)) else { panic!() };
        assert_eq!((verified.status, verified.seq, verified.checked_at.unwrap().0), (CredentialStatus::Verified, 2, 2));
        assert_eq!(verified.report(&report(1, 5, 1, Ok(())), Timestamp(3)), Reported::Ignored, "repeated");
        let Reported::Noted(noted) = verified.report(&report(1, 6, 1, Ok(())), Timestamp(3)) else { panic!() };
        assert_eq!((noted.seq, noted.version, noted.checked_at.unwrap().0), (2, 3, 3));
        let locked = Err(AuthFailure::AuthLocked);
        assert_eq!(noted.report(&report(1, 5, 2, locked), Timestamp(4)), Reported::Ignored, "an older lease");
        let Reported::Changed(invalid) = noted.report(&report(1, 6, 2, locked), Timestamp(4)) else { panic!() };
        assert_eq!((invalid.status, invalid.failure), (CredentialStatus::Invalid, Some(AuthFailure::AuthLocked)));
        let renewed = invalid.renewed(Timestamp(5));
        assert_eq!((renewed.status, renewed.failure, renewed.generation), (CredentialStatus::Unverified, None, 2));
        assert_eq!(renewed.report(&report(1, 9, 1, locked), Timestamp(6)), Reported::Ignored, "of the old secrets");
        assert!(matches!(renewed.report(&report(2, 1, 1, Ok(())), Timestamp(6)), Reported::Changed(_)));
    }

    proptest! {
        /// Whatever the order in which reports arrive, the newest one decides, and events number without gaps.
        #[test]
        fn the_newest_report_decides(
            reports in proptest::collection::vec((1u64..3, 1u64..4, 1u32..4), 1..30), renew_at in 0usize..30,
        ) {
            let verdict = |mark: (u64, u64, u32)| match (mark.1 + u64::from(mark.2)) % 3 {
                0 => Ok(()),
                1 => Err(AuthFailure::AuthInvalid),
                _ => Err(AuthFailure::AuthLocked),
            };
            let (mut now, mut credential, mut newest) = (1, credential(), None);
            for (at, mark) in reports.into_iter().enumerate() {
                if at == renew_at {
                    credential = credential.renewed(Timestamp(now));
                    newest = None;
                }
                now += 1;
                let before = credential.clone();
                match credential.report(&report(mark.0, mark.1, mark.2, verdict(mark)), Timestamp(now)) {
                    Reported::Changed(next) => {
                        prop_assert_eq!(next.seq, before.seq + 1);
                        credential = *next;
                    }
                    Reported::Noted(next) => {
                        prop_assert_eq!((next.seq, next.status), (before.seq, before.status));
                        credential = *next;
                    }
                    Reported::Ignored => {}
                }
                if mark.0 == credential.generation {
                    newest = newest.max(Some(mark));
                }
                let expected = newest.map(verdict);
                prop_assert_eq!(expected.map(|verdict| verdict.err()), newest.map(|_| credential.failure));
                prop_assert_eq!(credential.status == CredentialStatus::Unverified, newest.is_none());
            }
        }
    }

    #[test]
    fn each_word_is_one_wherever_it_stands() {
        is_one_word(&AuthMethod::ALL, AuthMethod::as_str);
        is_one_word(&CredentialStatus::ALL, CredentialStatus::as_str);
        let failures = [AuthFailure::AuthInvalid, AuthFailure::AuthLocked];
        is_one_word(&failures, AuthFailure::as_str);
        let codes = failures.map(|failure| crate::ErrorCode::find("auth", failure.as_str()));
        assert_eq!(codes, [Some(crate::ErrorCode::AUTH_INVALID), Some(crate::ErrorCode::AUTH_LOCKED)]);
    }

    #[test]
    fn a_credential_has_a_name_within_the_limit() {
        for (length, fits) in [(0, false), (1, true), (limits::MAX_NAME, true), (limits::MAX_NAME + 1, false)] {
            assert_eq!(Credential { name: "x".repeat(length), ..credential() }.check().is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn other_secrets_begin_anew() {
        let refused = Credential {
            status: CredentialStatus::Invalid,
            failure: Some(AuthFailure::AuthLocked),
            generation: 2,
            last_report: Some(ReportMark { generation: 2, token: 5, number: 1 }),
            checked_at: Some(Timestamp(50)),
            seq: 3,
            version: 5,
            updated_at: Timestamp(50),
            ..credential()
        };
        // The clock of who renews may be behind that of who took the last report.
        for (now, updated_at) in [(60, 60), (40, 50)] {
            let expected = Credential {
                status: CredentialStatus::Unverified,
                failure: None,
                generation: 3,
                checked_at: None,
                seq: 4,
                version: 6,
                updated_at: Timestamp(updated_at),
                ..refused.clone()
            };
            assert_eq!(refused.renewed(Timestamp(now)), expected);
        }
    }
}
