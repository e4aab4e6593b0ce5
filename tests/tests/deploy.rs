//! What is in `deploy/`: the Kubernetes manifests against Kubernetes' schemas, the dashboard and the alerts against the
//! metrics that the code exports, the compose file against itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn deploy() -> PathBuf {
    root().join("deploy")
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The documents of a YAML file, anchors and `<<` resolved.
fn documents(file: &Path) -> Vec<Value> {
    let text = read(file);
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(|document| {
        let mut value =
            serde_yaml_ng::Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        value.apply_merge().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        serde_json::to_value(value).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    });
    documents.collect()
}

/// What `kubectl apply -k` would send: the resources, in the namespace, with the images.
fn rendered() -> Vec<Value> {
    let base = deploy().join("kubernetes/base");
    let kustomization = documents(&base.join("kustomization.yml")).remove(0);
    let resources = kustomization["resources"].as_array().expect("resources");
    let listed: BTreeSet<&str> = resources.iter().filter_map(Value::as_str).collect();
    let there: BTreeSet<String> = std::fs::read_dir(&base)
        .expect("a folder")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "kustomization.yml")
        .collect();
    assert_eq!(listed, there.iter().map(String::as_str).collect(), "kustomization.yml lists what there is");
    let mut all: Vec<Value> = listed.iter().flat_map(|name| documents(&base.join(name))).collect();
    for resource in &mut all {
        resource["metadata"]["namespace"] = kustomization["namespace"].clone();
        let containers = resource.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let images = kustomization["images"].as_array().expect("images");
            let image = images.iter().find(|image| image["name"] == container["image"]).expect("each image is named");
            container["image"] = json!(format!("{}:{}", text(&image["newName"]), text(&image["newTag"])));
        }
    }
    all
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[test]
fn kubernetes_takes_the_manifests() {
    let schemas: Value = serde_json::from_str(&read(&deploy().join("kubernetes/test/schemas.json"))).unwrap();
    let mut kinds = BTreeMap::<String, usize>::new();
    for resource in rendered() {
        let kind = text(&resource["kind"]).to_owned();
        let mut schema = schemas["kinds"][&kind].clone();
        assert!(schema.is_object(), "there is no schema of a {kind}");
        schema["definitions"] = schemas["definitions"].clone();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&resource).map(|error| format!("{} at {}", error, error.instance_path())).collect();
        assert!(errors.is_empty(), "{kind} {}: {errors:#?}", resource["metadata"]["name"]);
        *kinds.entry(kind).or_default() += 1;
    }
    assert_eq!((kinds["Deployment"], kinds["PodDisruptionBudget"], kinds["HorizontalPodAutoscaler"]), (8, 8, 2));
}

#[test]
fn each_deployment_is_probed_limited_and_not_root() {
    for resource in rendered().iter().filter(|resource| resource["kind"] == "Deployment") {
        let name = text(&resource["metadata"]["name"]);
        let pod = &resource["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
        let container = &pod["containers"][0];
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert!(container[probe]["httpGet"]["path"].is_string(), "{name} has no {probe}");
        }
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name} has no limit");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true, "{name}");
        assert!(resource["spec"]["replicas"].as_u64() >= Some(2), "{name} is one alone");
    }
}

/// The names that the code exports, as Prometheus has them.
fn exported() -> BTreeSet<String> {
    let code = read(&root().join("crates/kit/src/metrics.rs"));
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("\"errand.") {
        let name = code[at + 1..].split('"').next().unwrap_or_default();
        let before = code[..at].rsplit(['(', '{', '=']).next().unwrap_or_default();
        assert!(before.trim().is_empty(), "{name}: {before}");
        let prometheus = name.replace('.', "_");
        names.extend(["", "_total", "_seconds"].map(|suffix| format!("{prometheus}{suffix}")));
        names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{prometheus}{suffix}")));
        names.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{prometheus}_seconds{suffix}")));
    }
    assert!(names.len() > 100, "{names:?}");
    names
}

/// The metrics that an expression names.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("errand_")).map(str::to_owned).collect()
}

fn check_expressions(of: &str, expressions: &[String]) {
    let exported = exported();
    let named: BTreeSet<String> = expressions.iter().flat_map(|expression| named(expression)).collect();
    assert!(named.len() > 8, "{of} names only {named:?}");
    let unknown: Vec<&String> = named.difference(&exported).collect();
    assert!(unknown.is_empty(), "{of} names what nobody exports: {unknown:?}");
}

#[test]
fn the_dashboard_and_the_alerts_name_metrics_that_there_are() {
    let dashboard = deploy().join("observability/grafana/dashboards/errand.json");
    let dashboard: Value = serde_json::from_str(&read(&dashboard)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let shown: Vec<String> = targets.map(|target| text(&target["expr"]).to_owned()).collect();
    check_expressions("the dashboard", &shown);

    let alerts = documents(&deploy().join("observability/alerts.yml")).remove(0);
    let rules = alerts["groups"][0]["rules"].as_array().unwrap();
    let told: Vec<String> = rules.iter().map(|rule| text(&rule["expr"]).to_owned()).collect();
    check_expressions("the alerts", &told);
    let manual = read(&root().join("docs/operations.md"));
    for rule in rules {
        let name = text(&rule["alert"]);
        assert!(manual.contains(name), "docs/operations.md does not say what to do at {name}");
        assert!(rule["labels"]["severity"].is_string() && rule["annotations"]["summary"].is_string(), "{name}");
    }
    // An autoscaler goes by a metric, too.
    for scaler in rendered().iter().filter(|resource| resource["kind"] == "HorizontalPodAutoscaler") {
        let name = text(&scaler["spec"]["metrics"][0]["external"]["metric"]["name"]).to_owned();
        assert!(exported().contains(&name), "{name}");
    }
}

#[test]
fn each_service_of_the_compose_file_is_kept_in_its_bounds() {
    let compose = documents(&root().join("docker-compose.yml")).remove(0);
    let example = read(&root().join(".env.example"));
    for (name, service) in compose["services"].as_object().unwrap() {
        assert!(service["mem_limit"].is_string(), "{name} may take all memory");
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        let image = text(&service["image"]);
        assert!(!image.ends_with(":latest") && image.contains(':'), "{name}: {image} is not pinned");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert!(text(port).starts_with("${BIND:-127.0.0.1}:"), "{name}: {port} is open to everyone");
        }
        let ours = image.starts_with("${ERRAND_IMAGE");
        assert!(!ours || service["read_only"] == true, "{name} may write to its root");
        assert!(!ours || service["healthcheck"]["test"].is_array(), "{name} has no health check");
    }
    // Every setting is in the example.
    for setting in
        read(&root().join("docker-compose.yml")).split("${").skip(1).filter_map(|rest| rest.split(':').next())
    {
        let internal = ["PROGRAM", "ERRAND_NATS_URL", "ERRAND_REPLICAS", "NATS_CONF"].contains(&setting);
        assert!(internal || example.contains(&format!("{setting}=")), "{setting} is not in .env.example");
    }
}
