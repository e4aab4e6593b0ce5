//! A web site of the test's own: fixed pages, and a note of what was asked for.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Serves until dropped.
pub(crate) struct Site {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _serving: AbortOnDropHandle<()>,
}

/// Status, headers and body of a page.
#[derive(Clone)]
pub(crate) struct Answer(pub(crate) u16, pub(crate) &'static str, pub(crate) String);

pub(crate) fn html(body: &str) -> Answer {
    Answer(200, "content-type: text/html; charset=utf-8\r\n", format!("<!doctype html><title>t</title>{body}"))
}

impl Site {
    /// These pages, on every address of this machine. A path that is not among them is a 404; `/never` never answers.
    pub(crate) async fn start(pages: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let pages: Arc<BTreeMap<&str, Answer>> = Arc::new(pages.into_iter().collect());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (pages, noted) = (Arc::clone(&pages), Arc::clone(&noted));
                tokio::spawn(async move {
                    // A browser that goes away is no matter.
                    let _ = serve(client, &pages, &noted).await;
                });
            }
        });
        Self { port, asked, _serving: AbortOnDropHandle::new(serving) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// `HOST PATH` of all that was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        // Whether a browser wants an icon is its own affair.
        asked.iter().filter(|asked| !asked.contains("favicon")).cloned().collect()
    }
}

async fn serve(client: TcpStream, pages: &BTreeMap<&str, Answer>, noted: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let (mut first, mut host, mut cookie, mut length) = (String::new(), String::new(), String::new(), 0);
    client.read_line(&mut first).await?;
    loop {
        let mut line = String::new();
        client.read_line(&mut line).await?;
        match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())) {
            Some((name, value)) if name == "host" => host = value,
            Some((name, value)) if name == "cookie" => cookie = value,
            Some((name, value)) if name == "content-length" => length = value.parse().unwrap_or(0),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    client.read_exact(&mut body).await?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    noted.lock().unwrap().push(format!("{host} {path}"));
    let plain = path.split('?').next().unwrap_or_default();
    if plain == "/never" {
        std::future::pending::<()>().await;
    }
    let Answer(status, headers, text) = match plain {
        // What the browser has sent.
        "/echo" => html(&format!(
            "<p id=cookie>{cookie}</p><p id=path>{path}</p><p id=body>{}</p>",
            String::from_utf8_lossy(&body).replace('&', "&amp;")
        )),
        plain => pages.get(plain).cloned().unwrap_or_else(|| Answer(404, "", "<h1>not here</h1>".into())),
    };
    let text = text.replace("PORT", host.rsplit(':').next().unwrap_or_default());
    let headers = headers.replace("PORT", host.rsplit(':').next().unwrap_or_default());
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", text.len());
    client.write_all(head.as_bytes()).await?;
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}
