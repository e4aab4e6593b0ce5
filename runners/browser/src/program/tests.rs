use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A program with every word of the language in it.
pub(super) fn everything() -> Value {
    json!({
        "settings": {"viewport": {"width": 1024, "height": 768}, "locale": "de-DE", "time_zone": "Europe/Berlin",
                     "user_agent": "me"},
        "steps": [
            {"name": "open", "timeout_ms": 5000, "goto": {"url": "{{input.url}}/x", "until": "load", "any_status": true}},
            {"use_credential": true},
            {"fill": {"target": {"label": "E-mail"}, "value": "{{credential.username}}", "submit": true}},
            {"select": {"target": {"css": "select"}, "option": "{{input.country|\"AT\"}}"}},
            {"press": "Enter"},
            {"wait": {"any": [{"exists": {"role": "row", "name": {"matches": "^[0-9]"}}}, {"network_idle": true}]}},
            {"assert": {"that": {"url": {"contains": "/x"}}, "message": "elsewhere"}},
            {"when": {"all": [{"missing": {"text": ["A", "B"], "nth": 1}}, {"not": {"text": {"contains": "no"}}}]},
             "then": [{"ask": {"type": "mfa", "message": "Code for {{input.email}}?", "fields": [
                 {"name": "code", "type": "code", "label": "Code"},
                 {"name": "how", "type": "select", "label": "How", "options": ["a", "{{vars.b|\"b\"}}"]}]}}],
             "else": [{"fail": {"type": "auth", "code": "auth_locked", "message": "locked"}}]},
            {"for_each": {"pages": {"role": "link", "name": "Older"}, "as": "page", "max": 5}, "do": [
                {"extract": {"bills[]": {"as": "list", "from": {"css": "tr", "within": {"xpath": "//table"}},
                    "limit": "{{input.limit|12}}", "fields": {
                        "number": {"from": {"css": "th"}}, "amount": {"as": "number", "decimal": ","},
                        "date": {"as": "date", "format": "D.M.YYYY", "optional": true},
                        "pdf": {"as": "attribute", "attribute": "href", "from": {"css": "a"}},
                        "status": {"map": {"Paid": "paid"}, "pattern": "[A-Z].*"}}}}},
                {"when": {"at_least": ["{{output.bills.length}}", 12]}, "then": [{"break": true}]}]},
            {"for_each": {"in": "{{output.bills}}", "as": "bill"}, "do": [
                {"download": {"url": "{{bill.pdf}}", "name": "{{bill.number}}.pdf", "data": {"n": "{{bill.number}}"},
                              "into": "files[]"}}]},
            {"extract": {"t": {"as": "table", "columns": {"a": {"heading": "A", "cell": {"as": "number"}}}},
                         "o": {"as": "object", "fields": {"x": {"as": "exists", "from": {"css": "x"}}}},
                         "vars.l": {"as": "list", "from": {"css": "li"}, "items": {"as": "number"}}}},
            {"download": {"click": {"role": "link", "name": "CSV"}}},
            {"screenshot": {"name": "end", "full_page": true}},
            {"set": {"n": {"deep": ["{{run.id}}"]}}},
            {"auth_ok": true},
            {"click": {"css": "a"}},
        ],
        "output": {"bills": "{{output.bills}}"},
    })
}

fn parse(program: &Value) -> Result<Program, Error> {
    Program::parse(program.to_string().as_bytes())
}

fn error(program: Value) -> String {
    let error = parse(&program).unwrap_err();
    error.message.strip_prefix("the task's program is unusable: ").unwrap_or(&error.message).to_owned()
}

#[test]
fn every_word_is_read_and_fits_the_schema() {
    parse(&everything()).unwrap();
    parse(&json!({"agent": {"command": ["python3", "agent.py"], "env": {"A": "b"}, "directory": "x"}})).unwrap();
    let schema = jsonschema::validator_for(&schema()).unwrap();
    for program in [everything(), json!({"agent": {"command": ["x"]}}), json!({"steps": [{"break": true}]})] {
        let errors: Vec<String> = schema.iter_errors(&program).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0]);
    }
    for wrong in [
        json!({}),
        json!({"steps": []}),
        json!({"steps": [{}]}),
        json!({"steps": [{"press": "Enter", "click": {"css": "a"}}]}),
        json!({"steps": [{"click": {"css": "a", "text": "b"}}]}),
        json!({"steps": [{"dance": 1}]}),
    ] {
        assert!(!schema.is_valid(&wrong), "{wrong}");
        assert!(parse(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_schema_beside_the_page_is_this_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/browser-program.schema.json");
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        kept,
        crate::schema(),
        "write it anew: cargo run -p errand-browser -- --schema > docs/browser-program.schema.json"
    );
}

#[test]
fn the_pages_and_the_examples_programs_are_read() {
    let page = include_str!("../../../../docs/browser-programs.md");
    let mut seen = 0;
    for block in page.split("```json\n").skip(1) {
        let block = block.split("```").next().unwrap();
        let program: Value = serde_json::from_str(block).unwrap_or_else(|error| panic!("{error}: {block}"));
        let program = if program.get("steps").is_some() { program } else { json!({"steps": [program]}) };
        parse(&program).unwrap_or_else(|error| panic!("{error}: {block}"));
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
    let task = include_str!("../../../../examples/portal/bills-browser.task.json");
    let task: Value = serde_json::from_str(task).unwrap();
    parse(&task["program"]).unwrap();
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_without_values() {
    let steps = |step: Value| json!({"steps": [{"press": "Tab"}, step]});
    let click = |target: Value| steps(json!({"click": target}));
    let deep =
        (0..12).fold(json!({"press": "Tab"}), |inner, _| json!({"when": {"network_idle": true}, "then": [inner]}));
    for (program, expected) in [
        (json!({}), "it must have steps or agent, and not both"),
        (json!({"steps": []}), "steps: there must be one at least"),
        (json!({"steps": [], "x": 1}), "x: unknown field `x`"),
        (json!([]), "it must have steps or agent, and not both"),
        (steps(json!({"name": "x"})), "steps[1]: it must have one of goto, fill"),
        (steps(json!({"press": "Tab", "break": true})), "steps[1]: it must have only one of goto, fill"),
        (steps(json!({"press": "Hyper"})), "steps[1].press: expected one of `Enter`"),
        (steps(json!({"pres": "Tab"})), "steps[1].pres: unknown field `pres`"),
        (steps(json!({"press": "Tab", "timeout_ms": 0})), "steps[1]: timeout_ms must be 1..300000"),
        (steps(json!({"press": "Tab", "then": []})), "steps[1]: then and else belong to when"),
        (steps(json!({"for_each": {"in": []}})), "steps[1]: for_each and do belong together"),
        (steps(json!({"for_each": {"in": [], "as": "input"}, "do": []})), "steps[1]: as must be a name"),
        (steps(json!({"for_each": {"in": [], "max": 1001}, "do": []})), "steps[1]: max must be 1..1000"),
        (steps(json!({"break": true})), "steps[1]: break belongs into a for_each"),
        (steps(json!({"break": false})), "steps[1]: break is always true"),
        (click(json!({})), "steps[1].click: it must have one of css, xpath, role, label, text"),
        (click(json!({"name": "x"})), "steps[1].click: name belongs to role"),
        (click(json!({"role": "a b"})), "steps[1].click: role must be a word"),
        (click(json!({"css": 7})), "steps[1].click.css: expected a string, not integer"),
        (click(json!({"text": {"matches": "("}})), "steps[1].click.text: this is no regular expression"),
        (
            click(json!({"text": {"matches": "(x{999}){999}"}})),
            "steps[1].click.text: the regular expression is too large",
        ),
        (click(json!({"text": 7})), "steps[1].click.text: it must be a text, a list of texts"),
        (click(json!({"css": "{{hunter2"})), "steps[1].click.css: a {{ has no }}"),
        (click(json!({"css": "{{bill.x}}"})), "steps[1].click: {{bill...}} is none of input"),
        (click(json!({"css": "{{credential.password}}"})), "steps[1].click: a credential may only stand in"),
        (steps(json!({"set": {"x": "{{credential.password}}"}})), "steps[1].set: a credential may only stand in"),
        (
            steps(json!({"fail": {"type": "source", "code": "source_error", "message": "{{answer.code}}"}})),
            "steps[1].fail: an answer is a secret",
        ),
        (
            steps(json!({"fail": {"type": "run", "code": "x", "message": "x"}})),
            "steps[1]: type and code are no error that an agent may report",
        ),
        (steps(json!({"extract": {"a..b": {}}})), "steps[1]: a place must be 1..8 names"),
        (steps(json!({"extract": {}})), "steps[1].extract: there must be 1..100 fields"),
        (steps(json!({"extract": {"a": {"attribute": "x"}}})), "steps[1].extract.a: attribute does not belong to"),
        (steps(json!({"extract": {"a": {"as": "list"}}})), "steps[1].extract.a: from is missing"),
        (
            steps(json!({"download": {"url": "x", "click": {"css": "x"}}})),
            "steps[1]: it must have only one of click, url",
        ),
        (steps(deep), "steps[1].then[0].then[0].then[0].then[0].then[0].then[0].then[0].then[0]: it is nested deeper"),
        (json!({"agent": {"command": []}}), "command names no program"),
        (
            json!({"steps": [{"press": "Tab"}], "settings": {"viewport": {"width": 1, "height": 1}}}),
            "settings: viewport",
        ),
        (json!({"steps": [{"press": "Tab"}], "output": "{{credential.password}}"}), "output: a credential may only"),
    ] {
        let found = error(program.clone());
        assert!(found.starts_with(expected), "{program}: {found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
    assert!(Program::parse(b"{").unwrap_err().message.contains("it is not JSON (line 1, column 1)"));
    assert!(Program::parse(b"").unwrap_err().message.contains("there is none"));
    let many = json!({"steps": vec![json!({"press": "Tab"}); 501]});
    assert_eq!(error(many), "steps[500]: a program may have 500 steps");
}

/// Any JSON, more often than not with the language's own words in it.
fn anything() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "steps",
        "goto",
        "url",
        "fill",
        "target",
        "value",
        "click",
        "css",
        "xpath",
        "role",
        "name",
        "label",
        "text",
        "nth",
        "within",
        "when",
        "then",
        "else",
        "for_each",
        "in",
        "pages",
        "do",
        "extract",
        "as",
        "from",
        "fields",
        "items",
        "wait",
        "any",
        "all",
        "not",
        "exists",
        "set",
        "ask",
        "fail",
        "break",
        "output",
        "settings",
        "timeout_ms",
    ]);
    let text = prop_oneof![word.clone().prop_map(str::to_owned), "[a-z{}|. ]{0,12}", Just("{{input.x}}".to_owned())];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(word.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Replaces one value somewhere in a program, or takes it away.
fn spoil(value: &mut Value, mut at: usize, by: &Value) -> Option<usize> {
    if at == 0 {
        *value = by.clone();
        return None;
    }
    at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().try_fold(at, |at, item| spoil(item, at, by)),
        Value::Object(fields) => fields.values_mut().try_fold(at, |at, field| spoil(field, at, by)),
        _ => Some(at),
    }
}

proptest! {
    /// Whatever stands in a task: it is read or refused, and what is read fits the schema.
    #[test]
    fn nothing_breaks_the_reader(program in anything()) {
        let _ = parse(&program);
        let _ = parse(&json!({"steps": [program]}));
    }

    #[test]
    fn a_spoilt_program_that_is_read_fits_the_schema(at in 0usize..400, by in anything()) {
        // serde reads a list as the fields of a struct in their order; the schema does not have that.
        prop_assume!(!by.to_string().contains('['));
        let mut program = everything();
        spoil(&mut program, at, &by);
        let schema = jsonschema::validator_for(&schema()).unwrap();
        match parse(&program) {
            Ok(_) => prop_assert!(schema.is_valid(&program), "{program}"),
            Err(error) => prop_assert!(error.message.len() <= 2048 && error.code == ErrorCode::AGENT_ERROR),
        }
    }
}
