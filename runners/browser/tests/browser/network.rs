//! What browsers reach, and what they do not.

use serde_json::{Value, json};

use crate::site::{Answer, Site, html};
use crate::world::World;

async fn site() -> Site {
    let elsewhere = "<h1>Here</h1><img src=http://127.0.0.2:PORT/picture><iframe src=http://localhost.:PORT/frame></iframe>\
        <script>fetch('http://127.0.0.2:PORT/fetch').catch(() => document.body.append('refused'))\n\
        new WebSocket('ws://127.0.0.2:PORT/socket')</script><a href='http://127.0.0.2:PORT/link'>Link</a>";
    Site::start([
        ("/", html(elsewhere)),
        ("/redirect", Answer(302, "location: http://127.0.0.2:PORT/redirected\r\n", String::new())),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn private_networks_are_reached_by_no_way_unless_allowed() {
    let site = site().await;
    let world = World::with(&["--allow-network", "127.0.0.1", "--capacity", "2"]).await;
    let elsewhere = format!("http://127.0.0.2:{}/direct", site.port);
    let refused = |at: usize, word: &str| {
        format!(
            "source/source_invalid: steps[{at}].{word}: 127.0.0.2 is in a private network, which this runner does \
                 not allow (--allow-network)"
        )
    };
    let mut runs = Vec::new();
    for (steps, expected) in [
        (json!([{"goto": {"url": elsewhere}}]), refused(0, "goto")),
        (json!([{"goto": {"url": site.url("/redirect")}}]), String::new()),
        (json!([{"goto": {"url": site.url("/")}}, {"click": {"text": "Link"}}]), refused(1, "click")),
        (json!([{"goto": {"url": site.url("/")}}, {"download": {"url": elsewhere}}]), refused(1, "download")),
        // The cloud's own addresses.
        (json!([{"goto": {"url": "http://169.254.169.254/latest"}}]), String::new()),
        (json!([{"goto": {"url": "http://[::1]/"}}]), String::new()),
        (json!([{"goto": {"url": "http://0x7f000002/"}}]), String::new()),
    ] {
        runs.push((world.run(steps).await, expected));
    }
    let inside =
        world.run(json!([{"goto": {"url": site.url("/")}}, {"wait": {"text": {"contains": "refused"}}}])).await;
    assert_eq!(world.output(inside).await, Value::Null);
    for (run, expected) in runs {
        let error = world.error(run).await;
        assert!(error.starts_with("source/source_invalid: ") && error.starts_with(&expected), "{error}");
    }
    let other: Vec<String> = site.asked().into_iter().filter(|asked| asked.starts_with("127.0.0.2")).collect();
    assert_eq!(other, [""; 0], "neither links, redirects, pictures, scripts nor sockets");
    world.end().await;
}
