//! Every step of the language, and what comes of steps that cannot be done.

use serde_json::{Value, json};

use crate::site::{Answer, Site, html};
use crate::world::World;

const FORM: &str = r#"
<h1>Order</h1>
<form action="/echo" method="post">
  <label>Name <input name="name" value="old"></label>
  <label for="d">Date</label><input id="d" name="date" type="date">
  <label for="c">Country</label><select id="c" name="country"><option value="DE">Germany</option><option value="AT">Austria</option></select>
  <label><input type="checkbox" name="agree"> I agree</label>
  <textarea name="notes" aria-label="Notes">abc</textarea>
  <button id="send" disabled>Send it</button>
</form>
<button onclick="let p = document.createElement('p'); p.textContent = 'late'; setTimeout(() => document.body.append(p), 300)">Later</button>
<button onclick="window.open('/popup')">Popup</button>
<button onclick="alert('hello')">Alert</button>
<div style="display:none"><button>Send it</button></div>
<script>document.querySelector('[name=agree]').onchange = e => document.querySelector('#send').disabled = !e.target.checked</script>"#;

const LIST: &str = r#"
<h1>List</h1>
<table><tr><th>No</th><th>Sum</th><th>Day</th></tr>
<tr><td>A1</td><td>1.234,50 €</td><td>3.7.2026</td></tr><tr><td>A2</td><td>7 €</td><td>24.12.2026</td></tr></table>
<ul><li class=x><b>One</b> <a href="/f/1.txt">get</a></li><li class=x><b>Two</b> <a href="/f/2.txt">get</a></li></ul>
<p>Total: <span id=t>1.241,50</span></p><a href="/list2">Next</a>"#;

async fn site() -> Site {
    let text = |body: &str| Answer(200, "content-type: text/plain\r\n", body.to_owned());
    let file = Answer(
        200,
        "content-type: text/csv\r\ncontent-disposition: attachment; filename=\"../x.csv\"\r\n",
        "a,b\n".into(),
    );
    Site::start([
        ("/form", html(FORM)),
        ("/popup", html("<h1>Popup</h1><button onclick='window.close()'>Close</button>")),
        ("/list", html(LIST)),
        ("/list2", html("<h1>List</h1><ul><li class=x><b>Three</b> <a href='/f/3.txt'>get</a></li></ul>")),
        ("/f/1.txt", text("one")),
        ("/f/2.txt", text("two")),
        ("/f/3.txt", text("three")),
        ("/file", file),
        ("/files", html("<a href=/file>Export</a><a href=/broken>Broken</a>")),
        ("/broken", Answer(503, "content-type: text/html\r\n", "<h1>down</h1>".into())),
        ("/forbidden", Answer(403, "", "no".into())),
        ("/go", Answer(302, "location: /list\r\n", String::new())),
        (
            "/world",
            html(
                "<p id=w></p><script>w.textContent = [innerWidth, innerHeight, navigator.language, \
            new Intl.DateTimeFormat().resolvedOptions().timeZone, navigator.userAgent, \
            (1.5).toLocaleString()].join('|')</script>",
            ),
        ),
        ("/covered", html("<button>Under</button><div style='position:fixed;inset:0'></div>")),
        ("/hang", html("<button onclick='for(;;){}'>Hang</button>")),
        (
            "/idle",
            html(
                "<p>calling</p><script>let n = 0; const next = () => fetch('/f/1.txt').then(() => n++ < 3 ? \
            setTimeout(next, 100) : document.body.append('called'))\n next()</script>",
            ),
        ),
    ])
    .await
}

fn forms(site: &Site) -> Value {
    json!([
        {"name": "open", "goto": {"url": site.url("/form"), "until": "load"}},
        {"assert": {"that": {"all": [{"url": {"contains": "/form"}}, {"missing": {"text": "late"}}, {"exists": {"role": "heading", "name": "Order"}}]}}},
        {"click": {"role": "button", "name": "Later"}},
        {"wait": {"exists": {"text": "late"}}},
        {"click": {"text": "Alert"}},
        {"click": {"role": "button", "name": "Popup"}},
        {"wait": {"exists": {"role": "heading", "name": "Popup"}}},
        {"click": {"role": "button", "name": "Close"}},
        {"wait": {"exists": {"role": "heading", "name": "Order"}}},
        {"fill": {"target": {"label": "Name"}, "value": "Ada {{input.last}}"}},
        {"fill": {"target": {"label": "Date"}, "value": "2026-07-03"}},
        {"fill": {"target": {"css": "textarea"}, "value": ""}},
        {"select": {"target": {"label": "Country"}, "option": "Austria"}},
        {"click": {"label": {"matches": "agree$"}}},
        {"extract": {"held": {"as": "object", "fields": {
            "name": {"from": {"label": "Name"}}, "country": {"from": {"css": "select"}}}}}},
        {"click": {"role": "button", "name": "Send it"}},
        {"extract": {"sent": {"from": {"css": "#body"}}}},
        {"goto": {"url": "/form"}},
        {"fill": {"target": {"label": "Name"}, "value": "x", "submit": true}, "timeout_ms": 2000},
        {"press": "Tab"},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_are_filled_in_and_sent() {
    let (world, site) = (World::start(&[]).await, site().await);
    let program = json!({"steps": forms(&site)});
    let run = world.run_with(json!({}), program, json!({"last": "Lovelace"})).await;
    let output = world.output(run).await;
    assert_eq!(output["held"], json!({"name": "Ada Lovelace", "country": "Austria"}));
    assert_eq!(output["sent"], "name=Ada+Lovelace&date=2026-07-03&country=AT&agree=on&notes=");
    world.end().await;
}

fn lists(site: &Site) -> Value {
    json!([
        {"goto": {"url": site.url("/go")}},
        {"extract": {
            "rows": {"as": "table", "columns": {
                "no": {"heading": "No"},
                "sum": {"heading": {"matches": "^S"}, "cell": {"as": "number", "decimal": ","}},
                "day": {"heading": "Day", "cell": {"as": "date", "format": "D.M.YYYY"}}}},
            "total": {"as": "number", "decimal": ",", "from": {"css": "#t"}},
            "none": {"from": {"css": "#none"}, "optional": true},
            "there": {"as": "exists", "from": {"xpath": "//ul"}},
            "vars.names": {"as": "list", "from": {"role": "listitem"}, "items": {"from": {"css": "b"}}}}},
        {"for_each": {"pages": {"role": "link", "name": "Next"}, "as": "page"}, "do": [
            {"extract": {"items[]": {"as": "list", "from": {"css": "li.x"}, "limit": 3, "fields": {
                "name": {"from": {"css": "b"}, "map": {"One": 1, "Two": 2, "Three": 3}},
                "file": {"as": "attribute", "attribute": "href", "from": {"css": "a"}}}}}}]},
        {"for_each": {"in": "{{output.items}}"}, "do": [
            {"when": {"equals": ["{{item.name}}", 3]}, "then": [{"break": true}], "else": [
                {"download": {"url": "{{item.file}}", "data": {"n": "{{item.name}}"}, "into": "kept[]"}}]}]},
        {"goto": {"url": "/files"}},
        {"download": {"click": {"text": "Export"}, "into": "export"}},
        {"screenshot": {}},
        {"goto": {"url": "/idle"}},
        {"wait": {"all": [{"network_idle": true}, {"text": {"contains": "called"}}]}},
        {"goto": {"url": "/list", "until": "network_idle"}},
        {"set": {"many": {"names": "{{vars.names}}", "attempt": "{{run.attempt}}"}}},
        {"when": {"not": {"at_least": ["{{vars.many.names.length}}", 3]}}, "then": [{"extract": {"small": {"as": "exists", "from": {"css": "ul"}}}}]},
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_read_and_files_kept() {
    let (world, site) = (World::start(&[]).await, site().await);
    let program = json!({"steps": lists(&site), "output": {"all": "{{output}}", "many": "{{vars.many}}"}});
    let run = world.run_with(json!({}), program, Value::Null).await;
    let output = world.output(run).await;
    let file = |n: u32| site.url(&format!("/f/{n}.txt"));
    assert_eq!(
        output,
        json!({
            "all": {
                "rows": [{"no": "A1", "sum": 1234.5, "day": "2026-07-03"}, {"no": "A2", "sum": 7, "day": "2026-12-24"}],
                "total": 1241.5, "none": null, "there": true, "small": true,
                "items": [{"name": 1, "file": file(1)}, {"name": 2, "file": file(2)}, {"name": 3, "file": file(3)}],
                "kept": ["1.txt", "2.txt"], "export": "_x.csv"},
            "many": {"names": ["One", "Two"], "attempt": 1}})
    );
    let files = world.files(run);
    let short: Vec<(&str, u64)> =
        files.iter().map(|file| (file["path"].as_str().unwrap(), file["bytes"].as_u64().unwrap())).collect();
    assert_eq!(&short[..3], [("1.txt", 3), ("2.txt", 3), ("_x.csv", 4)]);
    assert_eq!((&files[0]["data"], short[3].0), (&json!({"n": 1}), "screenshot.png"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_see_the_world_that_the_settings_say() {
    let more =
        ["--viewport", "900x700", "--locale", "de-DE", "--time-zone", "Europe/Berlin", "--user-agent", "errand/1"];
    let (world, site) = (World::start(&more).await, site().await);
    let steps = json!([{"goto": {"url": site.url("/world")}}, {"extract": {"w": {"from": {"css": "#w"}}}}]);
    let own = world.run_with(json!({}), json!({"steps": steps}), Value::Null).await;
    let settings = json!({"viewport": {"width": 640, "height": 480}, "locale": "fr-FR", "time_zone": "Asia/Tokyo", "user_agent": "other/2"});
    let programs = world.run_with(json!({}), json!({"settings": settings, "steps": steps}), Value::Null).await;
    let odd = json!({"settings": {"time_zone": "Moon/Sea"}, "steps": steps});
    let odd = world.run_with(json!({}), odd, Value::Null).await;
    assert_eq!(world.output(own).await["w"], "900|700|de-DE|Europe/Berlin|errand/1|1,5");
    assert_eq!(world.output(programs).await["w"], "640|480|fr-FR|Asia/Tokyo|other/2|1,5");
    let error = world.error(odd).await;
    assert!(error.starts_with("task/agent_error: settings: "), "{error}");
    world.end().await;
}

/// Steps, and how the error of their run begins.
type Case = (Value, &'static str);

/// One step on a page, with little patience.
fn on(site: &Site, path: &str, mut step: Value) -> Value {
    step["timeout_ms"] = json!(400);
    json!([{"goto": {"url": site.url(path)}}, step])
}

fn pages(site: &Site) -> Vec<Case> {
    let goto = |url: String| json!([{"goto": {"url": url}}]);
    let dead = format!("http://127.0.0.1:{}/", errand_tests::pick_port());
    let never = json!([{"goto": {"url": site.url("/never")}, "timeout_ms": 400}]);
    let named = json!([{"name": "in", "goto": {"url": site.url("/broken")}}]);
    vec![
        (goto(site.url("/gone")), "source/source_error: steps[0].goto: the page answers 404"),
        (named, "source/source_not_available: steps[0].goto (in): the page answers 503"),
        (goto(site.url("/forbidden")), "source/source_blocked: steps[0].goto: the page answers 403"),
        (goto(dead), "source/source_not_available: steps[0].goto: 127.0.0.1 does not answer"),
        (
            goto("http://nowhere.invalid/".into()),
            "source/source_not_available: steps[0].goto: the name nowhere.invalid is not known",
        ),
        (never, "source/source_not_available: steps[0].goto: the page has not come within 400 ms"),
        (goto("file:///etc/passwd".into()), "source/source_invalid: steps[0].goto: the URL is neither http nor https"),
        (goto("{{input.x}}".into()), "task/agent_error: steps[0].goto: there is no input.x"),
        (goto(site.url("/file")), "source/source_error: steps[0].goto: the URL is a file's: use download"),
    ]
}

fn elements(site: &Site) -> Vec<Case> {
    let form = |step: Value| on(site, "/form", step);
    let fill = json!({"fill": {"target": {"css": "h1"}, "value": "x"}});
    let select = json!({"select": {"target": {"css": "select"}, "option": "Mars"}});
    vec![
        (
            form(json!({"click": {"css": "#none"}})),
            "source/source_error: steps[1].click: there is no css #none (looked for 400 ms)",
        ),
        (form(json!({"click": {"css": "#send"}})), "source/source_error: steps[1].click: css #send is disabled"),
        (form(json!({"click": {"css": "a["}})), "source/source_error: steps[1].click: there is no css a["),
        (
            on(site, "/covered", json!({"click": {"text": "Under"}})),
            "source/source_error: steps[1].click: text \"Under\" is covered",
        ),
        (form(fill), "source/source_error: steps[1].fill: css h1 is nothing that a text is entered into"),
        (form(select), "source/source_error: steps[1].select: css select has no such option"),
        (
            form(json!({"wait": {"text": {"contains": "nonsense"}}})),
            "source/source_error: steps[1].wait: what was waited for has not come",
        ),
        (
            form(json!({"assert": {"that": {"exists": {"css": "b"}}, "message": "no b"}})),
            "source/source_error: steps[1].assert: no b",
        ),
    ]
}

fn values(site: &Site) -> Vec<Case> {
    let list = |field: Value| on(site, "/list", json!({"extract": {"x": field}}));
    let download = |from: Value| json!([{"goto": {"url": site.url("/files")}}, {"download": from}]);
    vec![
        (
            list(json!({"as": "number", "from": {"css": "h1"}})),
            "source/source_error: steps[1].extract: x: there is no number in its text",
        ),
        (
            list(json!({"as": "table", "columns": {"q": {"heading": "Q"}}})),
            "source/source_error: steps[1].extract: x: there is no column q",
        ),
        (
            download(json!({"click": {"text": "Broken"}})),
            "source/source_not_available: steps[1].download: the page answers 503",
        ),
        (download(json!({"url": "/gone"})), "source/source_error: steps[1].download: the page answers 404"),
        (
            on(site, "/files", json!({"download": {"click": {"css": "title"}}})),
            "source/source_error: steps[1].download: there is no css title",
        ),
    ]
}

fn programs(site: &Site) -> Vec<Case> {
    let form = |step: Value| json!([{"goto": {"url": site.url("/form")}}, step]);
    let locked = json!({"type": "auth", "code": "auth_locked", "message": "as {{input.secret}}"});
    let deep = json!({"fail": {"type": "source", "code": "source_error", "message": "deep"}});
    vec![
        (form(json!({"use_credential": true})), "auth/auth_unsupported: steps[1].use_credential: "),
        (form(json!({"fail": locked})), "auth/auth_locked: steps[1].fail: as hunter2"),
        (
            form(json!({"for_each": {"in": 7}, "do": []})),
            "task/agent_error: steps[1].for_each: what it goes over is no list",
        ),
        (
            form(json!({"when": {"exists": {"css": "h1"}}, "then": [{"press": "Tab"}, deep]})),
            "source/source_error: steps[1].then[1].fail: deep",
        ),
        (
            form(json!({"ask": {"type": "mfa", "message": "?", "fields": []}})),
            "task/agent_error: the task's program is unusable: steps[1].ask: there must be 1..20 fields",
        ),
        (json!([{"dance": 1}]), "task/agent_error: the task's program is unusable: steps[0].dance: unknown field"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_fails_the_run_with_its_place() {
    let (world, site) = (World::start(&["--capacity", "3"]).await, site().await);
    // First, so that those behind it find a page that answers again.
    let hang = on(&site, "/hang", json!({"click": {"text": "Hang"}}));
    let mut cases = vec![(hang, "source/source_error: steps[1].click: the page does not respond")];
    cases.extend([pages(&site), elements(&site), values(&site), programs(&site)].concat());
    let mut runs = Vec::new();
    for (steps, expected) in cases {
        runs.push((world.run(steps.clone()).await, steps, expected));
    }
    for (run, steps, expected) in runs {
        let found = world.error(run).await;
        assert!(found.starts_with(expected), "{steps}\n   gave {found}\n    for {expected}");
        let field = world.ended(run).await.errors[0].field.clone();
        assert!(field.starts_with("program.steps["), "{field:?}");
        let shown = expected.contains("steps[1]") && !expected.contains("unusable") && !expected.contains("respond");
        assert!(!shown || world.names(run) == ["failure.png"], "{steps}");
    }
    world.end().await;
}
