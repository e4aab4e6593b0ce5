//! A run's credential with a vault that does what a test says.

use errand_core::SessionId;
use errand_core::artifact::ArtifactKind;
use errand_core::run::InteractionField;
use errand_secret::Secrets;
use errand_secret::handover::seal;
use futures::FutureExt;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::activity::Activities;
use crate::control::{Control, Execution};
use crate::files::{NewFile, NotKept};
use crate::report::{Reports, Waiting, What};
use crate::transport::Shelf;

const SECRET: &str = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ";

#[derive(Default)]
struct Fake {
    secrets: Secrets,
    /// How often it was asked to open, and how often of these it is away at first.
    asked: AtomicU32,
    away: u32,
    refuses: Option<Error>,
    /// What it seals for: another run's lease, where it is told so.
    other_lease: bool,
    reports: Mutex<Vec<(u64, u32, Option<AuthFailure>)>>,
}

impl Vault for Arc<Fake> {
    fn open(&self, ask: Ask, key: PublicKey) -> BoxFuture<'static, Result<Vec<u8>, Refused>> {
        let fake = Arc::clone(self);
        async move {
            if fake.asked.fetch_add(1, Ordering::Relaxed) < fake.away {
                return Err(Refused::NotNow("away".into()));
            }
            if let Some(error) = fake.refuses.clone() {
                return Err(Refused::Never(error));
            }
            let (auth_method, secrets) = (AuthMethod::UsernamePassword, fake.secrets.clone());
            let opened = OpenedCredential { auth_method, generation: 3, secrets };
            let token = ask.token + u64::from(fake.other_lease);
            let purpose = Purpose::to_holder(ask.run_id, token, ask.credential_id);
            Ok(seal(&key, &purpose, &opened.encode()).unwrap())
        }
        .boxed()
    }

    fn report(&self, _ask: Ask, tried: Tried) -> BoxFuture<'static, Result<(), Refused>> {
        self.reports.lock().unwrap().push((tried.generation, tried.number, tried.failure));
        async { Ok(()) }.boxed()
    }
}

fn secrets() -> Secrets {
    let text = |text: &str| Some(SecretText::new(text.to_owned()));
    Secrets { username: text("ada"), password: text("correct horse"), totp_secret: text(SECRET), ..Secrets::default() }
}

/// Tokio's own time, which a test lets pass.
fn paused_clock() -> u64 {
    thread_local! {
        static BEGIN: Instant = Instant::now();
    }
    BEGIN.with(|begin| 1_000_000_000 + begin.elapsed().as_secs())
}

fn control(fake: &Arc<Fake>) -> (Control, Waiting) {
    let (run_id, session_id) = (RunId::from_uuid(Uuid::now_v7()), SessionId::from_uuid(Uuid::now_v7()));
    let vault: Arc<dyn Vault> = Arc::new(Arc::clone(fake));
    let mut safe = Safe::new(Some(CredentialId::from_uuid(Uuid::now_v7())), Some(vault));
    safe.clock = paused_clock;
    let (reports, waiting) = Reports::new();
    let execution = Arc::new(Execution::new(run_id, 7, session_id, safe));
    (Control { execution, reports, activities: Activities::new().0, shelf: Shelf::default() }, waiting)
}

fn question(kind: &str, field: &str) -> Question {
    let field =
        InteractionField { name: "pin".into(), r#type: field.into(), label: "correct horse".into(), options: vec![] };
    Question { id: String::new(), r#type: kind.into(), message: "The code?".into(), fields: vec![field] }
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_for_once_and_again_where_the_vault_is_away() {
    let fake = Arc::new(Fake { secrets: secrets(), away: 3, ..Fake::default() });
    let (control, _waiting) = control(&fake);
    let (one, other) = tokio::join!(control.credential(), control.credential());
    let credential = one.unwrap();
    assert_eq!((credential.username(), credential.password()), (Some("ada"), Some("correct horse")));
    assert!(credential.has_totp() && other.is_ok() && !format!("{credential:?}").contains("horse"));
    assert_eq!(fake.asked.load(Ordering::Relaxed), 4);
    let key = *control.execution.safe.keys.get().unwrap().public();
    assert!(control.execution.safe.made(&key) && !control.execution.safe.made(KeyPair::generate().public()));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_or_is_for_another_lease_is_an_error() {
    let gone = ErrorCode::CREDENTIAL_NOT_FOUND.with("gone");
    let fake = Arc::new(Fake { refuses: Some(gone.clone()), ..Fake::default() });
    assert_eq!(control(&fake).0.credential().await.unwrap_err(), gone);
    let fake = Arc::new(Fake { secrets: secrets(), other_lease: true, ..Fake::default() });
    assert_eq!(control(&fake).0.credential().await.unwrap_err().code, ErrorCode::API_ERROR);
    let fake = Arc::new(Fake { away: u32::MAX, ..Fake::default() });
    assert_eq!(control(&fake).0.credential().await.unwrap_err().code, ErrorCode::API_UNAVAILABLE);
    let unnamed = Safe::new(None, None).credential(RunId::from_uuid(Uuid::nil()), 1).await;
    assert_eq!(unnamed.unwrap_err().code, ErrorCode::AUTH_UNSUPPORTED);
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_data_holds_a_secret_is_refused() {
    let (control, _waiting) = control(&Arc::new(Fake { secrets: secrets(), ..Fake::default() }));
    control.credential().await.unwrap();
    let data = Some(json!({"note": "signed in with correct horse"}));
    let file = NewFile { kind: ArtifactKind::File, name: "a".into(), data };
    let refused = control.upload(file, std::io::Cursor::new(b"x")).await.unwrap_err();
    let NotKept::Refused(error) = refused else { panic!("{refused}") };
    assert_eq!(error.code, ErrorCode::STORAGE_ERROR);
    assert!(!error.message.contains("horse"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_question_for_a_code_is_answered_three_times_with_other_codes_and_then_asked() {
    let fake = Arc::new(Fake { secrets: secrets(), ..Fake::default() });
    let (control, mut waiting) = control(&fake);
    let mut codes = Vec::new();
    for _ in 0..3 {
        let answer = control.ask(question("mfa", "code")).await.unwrap();
        let Value::Object(answer) = answer else { panic!("{answer}") };
        codes.push(answer["pin"].as_str().unwrap().to_owned());
    }
    assert!(codes.iter().all(|code| code.len() == 6) && codes[0] != codes[1] && codes[1] != codes[2], "{codes:?}");
    assert_eq!(control.secret_filter().clean(&format!("entered {}", codes[2])), "entered [secret]");
    assert!(waiting.try_next().is_none(), "nobody was asked");

    let asking = tokio::spawn(async move { control.ask(question("mfa", "code")).await });
    let asked = loop {
        match waiting.try_next() {
            Some(asked) => break asked,
            None => tokio::task::yield_now().await,
        }
    };
    asking.abort();
    let What::Asks(asked) = asked.what else { panic!("a question") };
    assert_eq!(asked.fields[0].label, "[secret]", "what is told has gone through the filter");
}

#[tokio::test(start_paused = true)]
async fn other_questions_are_a_persons() {
    let fake = Arc::new(Fake { secrets: secrets(), ..Fake::default() });
    for (kind, field) in [("security_question", "code"), ("mfa", "text")] {
        let (control, mut waiting) = control(&fake);
        let asking = tokio::spawn(async move { control.ask(question(kind, field)).await });
        while waiting.try_next().is_none() {
            tokio::task::yield_now().await;
        }
        asking.abort();
    }
    let codeless = Secrets { totp_secret: None, ..secrets() };
    let fake = Arc::new(Fake { secrets: codeless, ..Fake::default() });
    let (control, mut waiting) = control(&fake);
    let asking = tokio::spawn(async move { control.ask(question("mfa", "code")).await });
    while waiting.try_next().is_none() {
        tokio::task::yield_now().await;
    }
    asking.abort();
}

#[tokio::test(start_paused = true)]
async fn sign_ins_are_reported_in_order_and_the_end_waits_for_that() {
    let fake = Arc::new(Fake { secrets: secrets(), ..Fake::default() });
    let (control, _waiting) = control(&fake);
    control.auth_ok();
    control.execution.safe.reported().await;
    assert!(fake.reports.lock().unwrap().is_empty(), "nothing was tried yet");
    control.credential().await.unwrap();
    control.auth_failed(AuthFailure::AuthLocked);
    control.auth_ok();
    control.execution.safe.reported().await;
    let mut reports = fake.reports.lock().unwrap().clone();
    reports.sort_by_key(|report| report.1);
    assert_eq!(reports, [(3, 1, Some(AuthFailure::AuthLocked)), (3, 2, None)]);
    assert!(control.execution.safe.stands_in(br#"{"note":"correct horse"}"#));
    assert!(!control.execution.safe.stands_in(&json!({"name": "ada"}).to_string().into_bytes()));
}
