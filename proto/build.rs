//! Compiles `errand/v1/*.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<String> = [
        "common", "run", "task", "event", "session", "pool", "runner", "watcher", "notifier", "gateway", "vault",
        "storage",
    ]
    .iter()
    .map(|name| format!("errand/v1/{name}.proto"))
    .collect();
    for file in &files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(&files, ["."])?;
    prost_build::Config::new()
        // Payloads are handed on as they came, without a copy.
        .bytes(["."])
        // One order of entries: equal messages have equal bytes.
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
