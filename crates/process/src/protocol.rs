//! The lines between runner and agent: docs/exec-agents.md, version 1. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use errand_core::limits::MAX_MESSAGE_BYTES;
use errand_core::run::{InteractionField, Question};
use errand_core::{Error, ErrorCode};
use errand_runner::{Assigned, AuthFailure, AuthMethod, Credential};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// A line, with its newline.
pub(crate) const MAX_LINE_BYTES: usize = 1024 * 1024;
/// Room for the first line's other fields: metadata, folders, and a credential of the largest size.
const START_BYTES: usize = 256 * 1024;
/// A file's name for display.
const MAX_FILE_NAME: usize = 512;

/// What a task's `program` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Further environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The working directory, below the runner's.
    #[serde(default)]
    pub directory: Option<String>,
}

impl Program {
    /// Reads a task's `program`.
    ///
    /// # Errors
    /// `task`/`agent_error` that holds none of its values: they may be secrets.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let wrong = |what: &str| Err(ErrorCode::AGENT_ERROR.with(format!("the task's program is unusable: {what}")));
        if json.is_empty() {
            return wrong("there is none; it needs {\"command\": [...]}");
        }
        let Ok(program) = serde_json::from_slice::<Self>(json) else {
            return wrong(
                "it must be {\"command\": [texts], \"env\": {name: text}, \"directory\": text} and nothing else",
            );
        };
        if program.command.first().is_none_or(String::is_empty) {
            return wrong("command names no program");
        }
        let names = program.env.keys();
        if names.clone().any(|name| name.is_empty() || name.contains(['=', '\0'])) {
            return wrong("a name in env is empty or contains = or NUL");
        }
        if program.env.values().chain(&program.command).any(|text| text.contains('\0')) {
            return wrong("command or env contains NUL");
        }
        let inside = |directory: &String| {
            use std::path::Component;
            Path::new(directory).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        if !program.directory.as_ref().is_none_or(inside) {
            return wrong("directory must be relative to the runner's directory and stay inside");
        }
        Ok(program)
    }
}

/// What an agent says.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Progress {
        message: String,
        step: String,
        percent: Option<u8>,
    },
    Asks(Question),
    File(FileSaid),
    Output(Bytes),
    Failed(Error),
    /// How the source has taken the credential.
    Auth(Result<(), AuthFailure>),
}

/// A file that an agent says is there.
#[derive(Debug, PartialEq)]
pub(crate) struct FileSaid {
    pub(crate) path: String,
    pub(crate) name: Option<String>,
    pub(crate) kind: FileKind,
    pub(crate) data: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FileKind {
    /// `storage` is what the first agents said.
    #[serde(alias = "storage")]
    File,
    Screenshot,
}

/// Any message: what it has depends on its type, what nobody knows is passed over.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Progress {
    message: String,
    step: Option<String>,
    percent: Option<f64>,
}

#[derive(Deserialize)]
struct Asks {
    id: Option<String>,
    interaction: Asked,
}

#[derive(Deserialize)]
struct Asked {
    r#type: String,
    message: String,
    fields: Vec<InteractionField>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow)]
    output: &'a RawValue,
}

#[derive(Deserialize)]
struct Failed {
    error: Failure,
}

#[derive(Deserialize)]
struct Failure {
    r#type: String,
    code: String,
    message: String,
}

#[derive(Deserialize)]
struct AuthFailed {
    code: Option<AuthFailure>,
}

#[derive(Deserialize)]
struct FileLine {
    path: String,
    name: Option<String>,
    kind: FileKind,
    data: Option<Value>,
}

/// Reads a line of an agent. The error is a text without anything of the line's values.
pub(crate) fn parse(line: &[u8]) -> Result<Message, String> {
    let text = std::str::from_utf8(line).map_err(|_| "is not UTF-8".to_owned())?;
    if !text.trim_start().starts_with('{') {
        return Err("is not a JSON object".to_owned());
    }
    let Line { r#type } = serde_json::from_str(text).map_err(|error| what_is_wrong(&error, "a message"))?;
    match &*r#type {
        "progress" => progress(read(text, "progress")?),
        "interaction" => asks(read(text, "interaction")?),
        "file" => file(read(text, "file")?),
        "output" => {
            let Output { output } = read(text, "output")?;
            Ok(Message::Output(Bytes::copy_from_slice(output.get().as_bytes())))
        }
        "error" => Ok(Message::Failed(failure(read(text, "error")?))),
        "auth_ok" => Ok(Message::Auth(Ok(()))),
        "auth_failed" => {
            let AuthFailed { code } = read(text, "auth_failed")?;
            Ok(Message::Auth(Err(code.unwrap_or(AuthFailure::AuthInvalid))))
        }
        unknown => {
            // A type is no secret, but it may be anything.
            let unknown: String = unknown.chars().filter(|c| !c.is_control()).take(64).collect();
            Err(format!("has a type that the runner does not know: {unknown}"))
        }
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a str, what: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| what_is_wrong(&error, what))
}

/// serde's own words quote values, so only its kind and place are told, and the names that it expects.
fn what_is_wrong(error: &serde_json::Error, what: &str) -> String {
    if !error.is_data() {
        return format!("is not a JSON object (column {})", error.column());
    }
    let text = error.to_string();
    let missing = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    match missing {
        Some(field) => format!("is no {what}: {field} is missing"),
        None => format!("is no {what}: a field is not what it must be (column {})", error.column()),
    }
}

fn progress(said: Progress) -> Result<Message, String> {
    let percent = match said.percent {
        None => None,
        // In range, so that nothing is cut.
        Some(percent) if (0.0..=100.0).contains(&percent) => Some(percent.round() as u8),
        Some(_) => return Err("is no progress: percent must be 0..100".to_owned()),
    };
    Ok(Message::Progress { message: said.message, step: said.step.unwrap_or_default(), percent })
}

fn asks(said: Asks) -> Result<Message, String> {
    if said.id.as_ref().is_some_and(String::is_empty) {
        return Err("is no interaction: id is empty".to_owned());
    }
    let Asked { r#type, message, fields } = said.interaction;
    // The runner's own id stands in for none while the limits are checked.
    let id = said.id.unwrap_or_default();
    let mut question = Question { id, r#type, message, fields };
    let own = question.id.is_empty();
    if own {
        question.id.push('-');
    }
    question.check().map_err(|error| format!("is no interaction: {}", named(&error)))?;
    if own {
        question.id.clear();
    }
    Ok(Message::Asks(question))
}

/// The limit and the field, as the catalogue's error has them: names and numbers, no values.
fn named(error: &Error) -> String {
    match &error.field {
        Some(field) => format!("{field}: {}", error.message),
        None => error.message.clone(),
    }
}

fn file(said: FileLine) -> Result<Message, String> {
    let FileLine { path, name, kind, data } = said;
    if path.is_empty() {
        return Err("is no file: path is empty".to_owned());
    }
    if name.as_ref().is_some_and(|name| name.len() > MAX_FILE_NAME) {
        return Err(format!("is no file: name is larger than {MAX_FILE_NAME} bytes"));
    }
    Ok(Message::File(FileSaid { path, name, kind, data }))
}

/// What an agent may not say becomes its own fault, its words kept.
fn failure(said: Failed) -> Error {
    let Failure { r#type, code, message } = said.error;
    let known = ErrorCode::find(&r#type, &code).filter(|code| code.is_agents());
    let message = if message.is_empty() { "the agent gave no message".to_owned() } else { message };
    match known {
        Some(code) => code.with(message),
        None => ErrorCode::AGENT_ERROR.with(message),
    }
}

#[derive(Serialize)]
struct Start<'a> {
    r#type: &'static str,
    protocol: u32,
    run: StartRun<'a>,
    session: StartSession<'a>,
    files_directory: &'a Path,
    prompt: Option<&'a str>,
    program: &'a RawValue,
    source_id: Option<errand_core::SourceId>,
    credential_id: Option<errand_core::CredentialId>,
    #[serde(flatten)]
    extra: &'a BTreeMap<&'static str, Value>,
    credential: Option<StartCredential<'a>>,
}

/// What an agent needs to sign in. What makes one-time codes stays with the runner.
#[derive(Serialize)]
struct StartCredential<'a> {
    auth_method: AuthMethod,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<&'a str>,
    has_totp: bool,
}

impl<'a> From<&'a Credential> for StartCredential<'a> {
    fn from(credential: &'a Credential) -> Self {
        Self {
            auth_method: credential.auth_method(),
            username: credential.username(),
            password: credential.password(),
            api_key: credential.api_key(),
            has_totp: credential.has_totp(),
        }
    }
}

#[derive(Serialize)]
struct StartRun<'a> {
    id: errand_core::RunId,
    task_id: errand_core::TaskId,
    attempt: u32,
    metadata: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct StartSession<'a> {
    id: errand_core::SessionId,
    directory: &'a Path,
}

/// The first line to an agent. It may hold secrets: it is wiped when it has been written.
pub(crate) fn start(
    run: &Assigned,
    extra: &BTreeMap<&'static str, Value>,
    credential: Option<&Credential>,
    session_directory: &Path,
    files_directory: &Path,
) -> Result<Zeroizing<Vec<u8>>, Error> {
    let unusable = |what: &str| ErrorCode::AGENT_ERROR.with(format!("the run cannot be told to its agent: {what}"));
    let program: &RawValue =
        serde_json::from_slice(&run.program).map_err(|_| unusable("the task's program is not JSON"))?;
    let start = Start {
        r#type: "start",
        protocol: 1,
        run: StartRun { id: run.run_id, task_id: run.task_id, attempt: run.attempt, metadata: &run.metadata },
        session: StartSession { id: run.lease.session_id, directory: session_directory },
        files_directory,
        prompt: Some(run.prompt.as_str()).filter(|prompt| !prompt.is_empty()),
        program,
        source_id: run.source_id,
        credential_id: run.credential_id,
        extra,
        // Last: what grows before it leaves no copy of it behind.
        credential: credential.map(StartCredential::from),
    };
    let mut json = Zeroizing::new(Vec::with_capacity(START_BYTES + run.program.len() + run.prompt.len() * 2));
    serde_json::to_writer(&mut *json, &start).map_err(|_| unusable("a folder's name is not UTF-8"))?;
    end_line(&mut json);
    Ok(json)
}

/// The second line to an agent: the input as it was submitted.
pub(crate) fn input(run: &Assigned) -> Vec<u8> {
    let input: &[u8] = if run.input.is_empty() { b"null" } else { &run.input };
    line(&[br#"{"type":"input","input":"#, input, b"}"])
}

/// The user's answer.
pub(crate) fn answer(id: &str, value: &Value) -> Vec<u8> {
    line(&[serde_json::json!({"type": "interaction", "id": id, "input": value}).to_string().as_bytes()])
}

/// The wish that the agent leave.
pub(crate) fn stop(reason: &str, grace: std::time::Duration) -> Vec<u8> {
    let seconds = grace.as_secs_f64();
    // A whole number where it is one.
    let seconds = if seconds.fract() == 0.0 { Value::from(grace.as_secs()) } else { Value::from(seconds) };
    line(&[serde_json::json!({"type": "stop", "reason": reason, "grace_seconds": seconds}).to_string().as_bytes()])
}

/// One line of JSON. Where JSON has a line break, it is white space: inside texts it is escaped.
fn line(parts: &[&[u8]]) -> Vec<u8> {
    let mut line = parts.concat();
    end_line(&mut line);
    line
}

fn end_line(line: &mut Vec<u8>) {
    for byte in line.iter_mut() {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    line.push(b'\n');
}

/// The message of a run that its agent's line has failed.
pub(crate) fn broken(number: u64, what: &str) -> Error {
    debug_assert!(what.len() < MAX_MESSAGE_BYTES, "messages are short");
    ErrorCode::AGENT_ERROR.with(format!("line {number} of the agent's output {what}"))
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str) -> String {
        parse(line.as_bytes()).unwrap_err()
    }

    #[test]
    fn every_message_is_read() {
        let progress = |step: &str, percent| Message::Progress { message: "m".into(), step: step.into(), percent };
        for (line, expected) in [
            (r#"{"type":"progress","message":"m"}"#, progress("", None)),
            (r#" {"percent":40.4,"message":"m","step":"s","type":"progress","later":[{}]} "#, progress("s", Some(40))),
            (r#"{"type":"progress","message":"m","step":null,"percent":null}"#, progress("", None)),
            (
                r#"{"type":"output","output":{"b":1.10,"a":12345678901234567890123}}"#,
                Message::Output(r#"{"b":1.10,"a":12345678901234567890123}"#.into()),
            ),
            (r#"{"type":"output","output":null}"#, Message::Output("null".into())),
            (
                r#"{"type":"error","error":{"type":"auth","code":"auth_locked","message":"m"}}"#,
                Message::Failed(ErrorCode::AUTH_LOCKED.with("m")),
            ),
            (
                r#"{"type":"error","error":{"type":"session","code":"lost","message":"m"}}"#,
                Message::Failed(ErrorCode::AGENT_ERROR.with("m")),
            ),
            (
                r#"{"type":"error","error":{"type":"my","code":"own","message":"m"}}"#,
                Message::Failed(ErrorCode::AGENT_ERROR.with("m")),
            ),
            (r#"{"type":"auth_ok"}"#, Message::Auth(Ok(()))),
            (r#"{"type":"auth_failed"}"#, Message::Auth(Err(AuthFailure::AuthInvalid))),
            (r#"{"type":"auth_failed","code":"auth_locked"}"#, Message::Auth(Err(AuthFailure::AuthLocked))),
            (
                r#"{"type":"file","path":"a/b.pdf","kind":"storage"}"#,
                Message::File(FileSaid { path: "a/b.pdf".into(), name: None, kind: FileKind::File, data: None }),
            ),
            (
                r#"{"type":"file","path":"b","kind":"screenshot","name":"n","data":[1]}"#,
                Message::File(FileSaid {
                    path: "b".into(),
                    name: Some("n".into()),
                    kind: FileKind::Screenshot,
                    data: Some(serde_json::json!([1])),
                }),
            ),
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(expected), "{line}");
        }
    }

    #[test]
    fn a_question_is_read_with_and_without_an_id() {
        let with = |id: &str| {
            format!(
                r#"{{"type":"interaction",{id}"interaction":{{"type":"mfa","message":"m",
            "fields":[{{"name":"code","type":"code","label":"l"}}]}}}}"#
            )
        };
        for (line, id) in [(with(r#""id":"q1","#), "q1"), (with(""), ""), (with(r#""id":null,"#), "")] {
            let Ok(Message::Asks(question)) = parse(line.as_bytes()) else { panic!("{line}") };
            assert_eq!((question.id.as_str(), question.fields.len()), (id, 1));
        }
    }

    #[test]
    fn every_malformed_line_says_what_is_wrong_and_quotes_no_value() {
        let field = r#"{"name":"c","type":"code","label":"l"}"#;
        for (line, expected) in [
            ("", "is not a JSON object"),
            ("SECRET", "is not a JSON object"),
            ("null", "is not a JSON object"),
            (r#"["SECRET"]"#, "is not a JSON object"),
            (r#""SECRET""#, "is not a JSON object"),
            (r#"{"type":"progress""#, "is not a JSON object (column 18)"),
            (r#"{"type":"progress"} SECRET"#, "is not a JSON object (column 21)"),
            (r#"{"type":"output","output":{}}{"SECRET":1}"#, "is not a JSON object (column 30)"),
            (r"{}", "is no a message: type is missing"),
            (r#"{"type":1}"#, "is no a message: a field is not what it must be (column 9)"),
            (r#"{"type":"outptu","output":"SECRET"}"#, "has a type that the runner does not know: outptu"),
            (r#"{"type":"progress"}"#, "is no progress: message is missing"),
            (
                r#"{"type":"progress","message":{"SECRET":1}}"#,
                "is no progress: a field is not what it must be (column 29)",
            ),
            (r#"{"type":"progress","message":"m","percent":101}"#, "is no progress: percent must be 0..100"),
            (r#"{"type":"progress","message":"m","percent":-1}"#, "is no progress: percent must be 0..100"),
            (
                r#"{"type":"progress","message":"m","percent":"SECRET"}"#,
                "is no progress: a field is not what it must be (column 51)",
            ),
            (
                r#"{"type":"auth_failed","code":"SECRET"}"#,
                "is no auth_failed: a field is not what it must be (column 37)",
            ),
            (r#"{"type":"output"}"#, "is no output: output is missing"),
            (r#"{"type":"error"}"#, "is no error: error is missing"),
            (r#"{"type":"error","error":{"type":"auth","code":"auth_locked"}}"#, "is no error: message is missing"),
            (r#"{"type":"error","error":"SECRET"}"#, "is no error: a field is not what it must be (column 32)"),
            (r#"{"type":"file","kind":"storage"}"#, "is no file: path is missing"),
            (r#"{"type":"file","path":"a"}"#, "is no file: kind is missing"),
            (r#"{"type":"file","path":"","kind":"storage"}"#, "is no file: path is empty"),
            (r#"{"type":"file","path":"a","kind":"SECRET"}"#, "is no file: a field is not what it must be (column 41)"),
            (r#"{"type":"interaction"}"#, "is no interaction: interaction is missing"),
            (
                r#"{"type":"interaction","id":"","interaction":{"type":"mfa","message":"m","fields":[]}}"#,
                "is no interaction: id is empty",
            ),
            (
                r#"{"type":"interaction","interaction":{"type":"mfa","message":"m","fields":[]}}"#,
                "is no interaction: interaction.fields: there must be 1..20 fields",
            ),
            (
                r#"{"type":"interaction","interaction":{"type":"mfa","fields":[]}}"#,
                "is no interaction: message is missing",
            ),
            (
                &format!(r#"{{"type":"interaction","interaction":{{"type":"","message":"m","fields":[{field}]}}}}"#),
                "is no interaction: interaction.type: type must have 1..64 bytes",
            ),
            (
                &format!(
                    r#"{{"type":"interaction","interaction":{{"type":"t","message":"m","fields":[{field},{field}]}}}}"#
                ),
                "is no interaction: interaction.fields.1.name: c stands twice",
            ),
        ] {
            let said = wrong(line);
            assert_eq!(said, expected, "{line}");
            assert!(!said.contains("SECRET"));
        }
        assert_eq!(parse(b"{\"type\":\"progress\",\"message\":\"\xff\"}"), Err("is not UTF-8".to_owned()));
        let long = wrong(&format!(r#"{{"type":"{}"}}"#, "x".repeat(10_000)));
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn programs_are_checked_and_never_quoted() {
        let program = Program::parse(br#"{"command":["a","b"],"env":{"A":"1"},"directory":"x/./y"}"#).unwrap();
        assert_eq!(program.command, ["a", "b"]);
        for (json, expected) in [
            ("", "there is none"),
            ("SECRET", "must be"),
            (r#"{"command":[]}"#, "names no program"),
            (r#"{"command":[""]}"#, "names no program"),
            (r#"{"command":"SECRET"}"#, "must be"),
            (r#"{"command":["a"],"env":{"A":{"SECRET":1}}}"#, "must be"),
            (r#"{"command":["a"],"shell":"SECRET"}"#, "must be"),
            (r#"{"command":["a"],"env":{"A=SECRET":"1"}}"#, "contains ="),
            (r#"{"command":["a"],"env":{"":"1"}}"#, "is empty"),
            (r#"{"command":["a"],"env":{"A":"\u0000"}}"#, "NUL"),
            (r#"{"command":["a"],"directory":"/SECRET"}"#, "stay inside"),
            (r#"{"command":["a"],"directory":"x/../../SECRET"}"#, "stay inside"),
        ] {
            let error = Program::parse(json.as_bytes()).unwrap_err();
            assert!(error.code == ErrorCode::AGENT_ERROR && error.message.contains(expected), "{json}: {error}");
            assert!(!error.message.contains("SECRET"), "{error}");
        }
    }

    #[test]
    fn what_is_sent_is_one_line_each() {
        let stop = stop("canceled", std::time::Duration::from_secs(10));
        assert_eq!(stop, b"{\"grace_seconds\":10,\"reason\":\"canceled\",\"type\":\"stop\"}\n");
        assert!(super::stop("timeout", std::time::Duration::from_millis(500)).starts_with(b"{\"grace_seconds\":0.5,"));
        assert_eq!(line(&[b"{\n\"a\": \"x\\ny\"\r\n}"]), b"{ \"a\": \"x\\ny\"  }\n");
        let answer = answer("q1", &serde_json::json!({"code": "1\n2"}));
        assert_eq!(answer.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
