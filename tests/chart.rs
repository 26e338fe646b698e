//! The Helm chart is made of the files that kustomize applies, so that neither has what the other
//! lacks (O3). `UPDATE=1 cargo test --test chart` (`make update`) writes its templates.

#![allow(clippy::panic, reason = "a helper of tests reports as a test does")]

use devcluster::tools::{self, Tool};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const CHART: &str = "deploy/helm/ksm-scale-operator";

/// Names in the operator's code have this namespace, so it is no value.
const NAMESPACE_GUARD: &str = "{{- if ne .Release.Namespace \"monitoring\" }}\n{{- fail \"the operator's namespace is monitoring: helm install --namespace monitoring --create-namespace\" }}\n{{- end }}\n";

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("YAML")
}

/// Text for `text` where the admission is one of `modes`.
fn only(modes: &[&str], text: &str) -> String {
    let is = |mode: &&str| format!("eq .Values.admission {mode:?}");
    let condition = match modes {
        [mode] => is(mode),
        modes => {
            let any = modes.iter().map(|mode| format!(" ({})", is(mode)));
            format!("or{}", any.collect::<String>())
        }
    };
    format!("{{{{- if {condition} }}}}\n{}\n{{{{- end }}}}\n", text.trim_end())
}

/// What a line of the Deployment becomes, by its start.
fn deployment_edits() -> Vec<(&'static str, String)> {
    let mounted = |text: &str| only(&["cert-manager"], text);
    vec![
        ("  replicas: ", "  replicas: {{ .Values.replicas }}\n".into()),
        (
            "          image: ",
            mounted(
                "          # The folder whole, never a subPath: the kubelet does not update those.\n          volumeMounts: [{name: webhook, mountPath: /etc/ksm-scale-operator/webhook, readOnly: true}]",
            ) + "          image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\n",
        ),
        (
            "          args: ",
            "          args:\n            - run\n".to_owned()
                + &mounted("            - --webhook=mounted")
                + &only(&["policies"], "            - --webhook=off")
                + "{{- range .Values.args }}\n            - {{ . | quote }}\n{{- end }}\n",
        ),
        (
            "        seccompProfile: ",
            "        seccompProfile: {type: RuntimeDefault}\n".to_owned()
                + &mounted(
                    "        # This group has to be able to read what only root owns.\n        fsGroup: 65532",
                ),
        ),
        (
            "          resources:",
            "          resources: {{ toJson .Values.resources }}\n".into(),
        ),
        ("            requests: ", String::new()),
        ("            limits: ", String::new()),
        (
            "      containers:",
            "      nodeSelector: {{ toJson .Values.nodeSelector }}\n      tolerations: {{ toJson .Values.tolerations }}\n".to_owned()
                + &mounted(
                    "      # 288 is 0440.\n      volumes: [{name: webhook, secret: {secretName: ksm-scale-operator-webhook-tls, defaultMode: 288}}]",
                )
                + "      containers:\n",
        ),
    ]
}

fn edited(text: &str, edits: Vec<(&str, String)>) -> String {
    let mut edited = text.to_owned();
    for (start, to) in edits {
        let lines: Vec<_> =
            edited.split_inclusive('\n').filter(|line| line.starts_with(start)).collect();
        let [line] = lines[..] else { panic!("{} lines begin with {start:?}", lines.len()) };
        edited = edited.replacen(line, &to, 1);
    }
    edited
}

/// The same, with what cert-manager's cainjector looks for.
fn webhook(path: &str) -> String {
    let inject =
        "  annotations:\n    cert-manager.io/inject-ca-from: monitoring/ksm-scale-operator-webhook";
    edited(
        &read(path),
        vec![("metadata:", format!("metadata:\n{}", only(&["cert-manager"], inject)))],
    )
}

/// Everything but the namespace, which is made before a chart is installed.
fn without_namespace(text: &str) -> String {
    let documents = text.split("---\n").filter(|text| !text.contains("\nkind: Namespace\n"));
    documents.collect::<Vec<_>>().join("---\n")
}

/// The chart's files that are made, by their paths in the chart.
fn made() -> BTreeMap<String, String> {
    let crd = "crds/ksmscales.monitor.example.com.yaml";
    let mut files = BTreeMap::from([(crd.to_owned(), read(crd))]);
    let mut template = |name: &str, text: String| {
        let head = "{{- /* Made by tests/chart.rs of what kustomize applies: make update */}}\n";
        files.insert(format!("templates/{name}"), format!("{head}{text}"));
    };
    for name in
        yaml(&read("deploy/base/kustomization.yaml"))["resources"].as_array().expect("a list")
    {
        let name = name.as_str().expect("text");
        match (name, format!("deploy/base/{name}")) {
            ("../../crds", _) => {}
            ("rbac.yaml", path) => {
                template(name, format!("{NAMESPACE_GUARD}{}", without_namespace(&read(&path))));
            }
            ("deployment.yaml", path) => template(name, edited(&read(&path), deployment_edits())),
            (_, path) => template(name, read(&path)),
        }
    }
    let webhooks =
        ["mutating", "validating"].map(|n| webhook(&format!("webhook-config/base/{n}.yaml")));
    template("webhooks.yaml", only(&["self-managed", "cert-manager"], &webhooks.join("---\n")));
    let policies =
        ["mutating", "validating"].map(|n| read(&format!("webhook-config/policies/{n}.yaml")));
    template("policies.yaml", only(&["policies"], &policies.join("---\n")));
    template("certificates.yaml", only(&["cert-manager"], &read("certs/cert-manager.yaml")));
    files
}

#[test]
fn o3_the_chart_is_made_of_what_kustomize_applies() {
    for (path, text) in made() {
        let path = format!("{CHART}/{path}");
        #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
        if std::env::var("UPDATE").is_ok() {
            fs::write(file(&path), &text).expect("the file can be written");
        }
        let committed = fs::read_to_string(file(&path)).unwrap_or_default();
        assert!(committed == text, "{path} is not as made: run `make update`");
    }
    let files = fs::read_dir(file(CHART).join("templates")).expect("a folder");
    assert_eq!(files.count(), made().len(), "NOTES.txt, and those that are made but for the CRD");
}

#[test]
fn o3_the_chart_has_the_version_of_the_operator_and_values_that_its_schema_knows() {
    let chart = yaml(&read(&format!("{CHART}/Chart.yaml")));
    for version in ["version", "appVersion"] {
        assert_eq!(chart[version], env!("CARGO_PKG_VERSION"));
    }
    let values = yaml(&read(&format!("{CHART}/values.yaml")));
    let schema = yaml(&read(&format!("{CHART}/values.schema.json")));
    for name in values.as_object().expect("values").keys() {
        assert!(schema["properties"].get(name).is_some(), "values.schema.json lacks {name}");
    }
    let deployment = yaml(&read("deploy/base/deployment.yaml"))["spec"].clone();
    let container = &deployment["template"]["spec"]["containers"][0];
    assert_eq!(values["replicas"], deployment["replicas"], "values.yaml");
    assert_eq!(values["resources"], container["resources"], "values.yaml");
    let image = values["image"]["repository"].as_str().expect("a repository");
    assert_eq!(container["image"], format!("{image}:{}", env!("CARGO_PKG_VERSION")));
}

fn stdout(tool: Tool, args: &[&str]) -> Result<String, String> {
    let program = tools::path(tool).expect("a program");
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.unwrap_or_else(|error| panic!("{tool:?}: {error}"));
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn helm(namespace: &str, sets: &[&str]) -> Result<String, String> {
    let mut args = vec!["template", "ksm-scale-operator", CHART, "--namespace", namespace];
    args.extend(["--include-crds", "--kube-version", "1.36.0"]);
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    stdout(Tool::Helm, &args)
}

/// 9 where 9.0 is written.
fn with_whole_numbers(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(with_whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(with_whole_numbers),
        Value::Number(number) => {
            let text = number.to_string();
            if let Some(whole) = text.strip_suffix(".0").and_then(|text| text.parse::<i64>().ok()) {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

/// Objects by kind, namespace and name, without fields that are empty and so say nothing.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let documents = text.split("\n---\n").map(|text| text.trim_start_matches("---\n"));
    let objects = documents.map(yaml).filter(|object| object["kind"].is_string());
    let named = objects.map(|mut object| {
        with_whole_numbers(&mut object);
        let meta = &object["metadata"];
        let name = format!("{} {}/{}", object["kind"], meta["namespace"], meta["name"]);
        for field in ["nodeSelector", "tolerations"] {
            let spec = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut);
            let is_empty = |value: &mut Value| {
                value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty)
            };
            if let Some(spec) = spec
                && spec.get_mut(field).is_some_and(is_empty)
            {
                spec.remove(field);
            }
        }
        (name, object)
    });
    named.collect()
}

#[test]
#[ignore = "needs helm and kubectl, which make tools builds: make cluster-test"]
fn o3_helm_renders_the_same_objects_as_kustomize() {
    let same = |overlay: &str, sets: &[&str]| {
        let folder = format!("deploy/overlays/{overlay}");
        let kustomize = stdout(Tool::Kubectl, &["kustomize", &folder]);
        let mut expected = objects(&kustomize.expect("kustomize builds"));
        expected.retain(|name, _| !name.starts_with("\"Namespace\""));
        let rendered = objects(&helm("monitoring", sets).expect("helm renders"));
        assert!(expected.len() > 10, "{} objects", expected.len());
        assert!(
            rendered.keys().eq(expected.keys()),
            "{:#?}\n{:#?}",
            rendered.keys(),
            expected.keys()
        );
        for (name, object) in rendered {
            assert_eq!(object, expected[&name], "{overlay}: {name}");
        }
    };
    same("self-managed", &[]);
    same("cert-manager", &["admission=cert-manager"]);
    same("policies", &["admission=policies"]);
}

#[test]
#[ignore = "needs helm and kubectl, which make tools builds: make cluster-test"]
fn o3_helm_takes_values_and_refuses_wrong_ones() {
    let sets = ["args[0]=--log-format=json", "image.tag=v9", "replicas=3", "nodeSelector.disk=ssd"];
    let rendered = objects(&helm("monitoring", &sets).expect("helm renders"));
    let deployment = &rendered["\"Deployment\" \"monitoring\"/\"ksm-scale-operator\""]["spec"];
    let pod = &deployment["template"]["spec"];
    assert_eq!(deployment["replicas"], 3);
    assert_eq!(pod["containers"][0]["image"], "ksm-scale-operator:v9");
    assert_eq!(pod["containers"][0]["args"][1], "--log-format=json");
    assert_eq!(pod["nodeSelector"]["disk"], "ssd");
    for (wrong, cause) in
        [("admission=none", "admission"), ("replica=2", "replica"), ("args[0]=x", "args")]
    {
        let error = helm("monitoring", &[wrong]).expect_err("refused");
        assert!(error.contains(cause), "{wrong}: {error}");
    }
    let error = helm("default", &[]).expect_err("refused");
    assert!(error.contains("namespace is monitoring"), "{error}");
}
