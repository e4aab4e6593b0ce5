//! The bills of the portal, in each of its modes.

use errand_client::{RunId, v1};
use errand_core::task::Definition;
use serde_json::{Value, json};

use crate::world::{Portal, World, example};

fn task() -> Definition {
    serde_json::from_str(&std::fs::read_to_string(example("portal/bills-browser.task.json")).unwrap()).unwrap()
}

async fn bills(world: &World, portal: &Portal, email: &str, more: Value) -> RunId {
    let mut input = json!({"portal_url": portal.url(), "email": email, "limit": 9});
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut task = task();
    // A fresh session each, unless a test wants otherwise.
    task.settings.reuse_session = false;
    world.run_task(task, input).await
}

fn check(output: &Value, files: &[Value], bills: usize) {
    assert!(output["account"]["number"].as_str().unwrap().starts_with("BW"), "{output}");
    assert!(output["account"]["address"].as_str().unwrap().contains("Reservoir Road"), "{output}");
    let list = output["bills"].as_array().unwrap();
    assert_eq!(list.len(), bills);
    assert_eq!(
        (&list[0]["period"], &list[0]["currency"], &list[0]["status"]),
        (&json!("2026-06"), &json!("EUR"), &json!("open"))
    );
    assert_eq!((&list[0]["issued"], &list[0]["due"]), (&json!("2026-07-03"), &json!("2026-07-24")));
    assert!(list.iter().all(|bill| bill["amount"].as_f64().unwrap() > 30.0), "{list:?}");
    // A picture, the bills, the export.
    assert_eq!(files.len(), bills + 2, "{files:?}");
    let pdfs: Vec<&Value> = files.iter().filter(|file| file["path"].as_str().unwrap().ends_with(".pdf")).collect();
    assert_eq!(pdfs.len(), bills);
    assert_eq!(pdfs[0]["data"], json!({"number": list[0]["number"], "period": "2026-06", "amount": list[0]["amount"]}));
    assert!(
        files.iter().any(|file| file["path"] == "bills.csv") && files.iter().any(|file| file["path"] == "bills.png")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bills_come_home_from_every_layout_and_through_a_slow_portal() {
    let world = World::start(&["--capacity", "3"]).await;
    let portal = Portal::start(&world, &["--delay", "0.3"]).await;
    let mails = ["ada@example.com", "ada+slow@example.com", "ada+changed-layout@example.com"];
    let mut runs = Vec::new();
    for email in mails {
        runs.push(bills(&world, &portal, email, json!({})).await);
    }
    for (run, email) in runs.iter().zip(mails) {
        // The source refuses the first code, and a new question comes.
        if email == mails[0] {
            let first = portal.answer(&world, *run, email, false).await;
            errand_tests::eventually("another question", crate::world::PATIENCE, async || {
                let asked = world.client.get_run(*run).await.ok()?.interaction?;
                (asked.id != first).then_some(())
            })
            .await;
        }
        portal.answer(&world, *run, email, true).await;
    }
    for run in runs {
        let output = world.output(run).await;
        check(&output, &world.files(run), 9);
        let pdf = world
            .run_folder(run)
            .unwrap()
            .join("files")
            .join(format!("{}.pdf", output["bills"][0]["number"].as_str().unwrap()));
        assert!(std::fs::read(pdf).unwrap().starts_with(b"%PDF-1.4"));
        // All of it is kept, and read where the program did not say what stands in it.
        let kept = world.kept(run).await;
        assert_eq!(kept.iter().map(|file| &file.name).collect::<Vec<_>>(), world.names(run).iter().collect::<Vec<_>>());
        let csv = kept.iter().find(|file| file.name == "bills.csv").unwrap();
        let data: Value = serde_json::from_slice(csv.data.as_deref().unwrap()).unwrap();
        assert_eq!(data["rows"][0]["currency"], "EUR", "{data}");
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_portal_refuses_is_the_runs_error() {
    let world = World::start(&["--capacity", "3"]).await;
    let portal = Portal::start(&world, &[]).await;
    let failing = bills(&world, &portal, "ada+failing@example.com", json!({})).await;
    let spent = bills(&world, &portal, "eve@example.com", json!({})).await;
    let no_address = bills(&world, &portal, "x@y@z", json!({})).await;
    portal.answer(&world, failing, "ada+failing@example.com", true).await;
    for _ in 0..5 {
        let asked = portal.answer(&world, spent, "eve@example.com", false).await;
        errand_tests::eventually("the next question, or the end", crate::world::PATIENCE, async || {
            let run = world.client.get_run(spent).await.ok()?;
            let over = run.finished_at_ms.is_some();
            (over || run.interaction.is_some_and(|next| next.id != asked)).then_some(())
        })
        .await;
    }
    let error = world.error(failing).await;
    assert!(
        error.starts_with("source/source_not_available: steps[2].wait (bills there?)")
            && error.ends_with("the page answers 503"),
        "{error}"
    );
    assert_eq!(world.names(failing), ["failure.png"]);
    let kept = world.kept(failing).await;
    assert!(
        kept.len() == 1 && kept[0].kind() == v1::ArtifactKind::Screenshot,
        "a failed run keeps what it saw: {kept:?}"
    );
    assert!(world.error(spent).await.starts_with("auth/auth_invalid: "));
    assert!(world.error(no_address).await.starts_with("auth/auth_invalid: "));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_used_again_is_still_signed_in() {
    let world = World::start(&[]).await;
    let portal = Portal::start(&world, &[]).await;
    let input = json!({"portal_url": portal.url(), "email": "ada@example.com", "limit": 2, "download": false});
    let first = world.run_task(task(), input.clone()).await;
    portal.answer(&world, first, "ada@example.com", true).await;
    world.output(first).await;
    // It would wait for an answer for ten minutes.
    let second = world.run_task(task(), input).await;
    let output = world.output(second).await;
    assert_eq!(output["bills"].as_array().unwrap().len(), 2);
    let [first, second] = [world.ended(first).await, world.ended(second).await];
    assert_eq!(first.session_id, second.session_id);
    world.end().await;
}
