//! Generated files stand in the repository as generated. `UPDATE=1 cargo test --test golden`
//! (`make update`) writes them.

use ksm_scale_operator::manifests;
use std::{fmt::Write, path::Path, process::Command};

fn golden(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    #[expect(clippy::disallowed_methods, reason = "the variable is this test's interface")]
    if std::env::var("UPDATE").is_ok() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("the folder can be made");
        std::fs::write(&file, text).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == text,
        "{path} is not as generated: run `make update` and look at the diff"
    );
}

#[test]
fn r11_o4_t1_committed_manifests_are_as_generated() {
    let all = manifests::all().expect("manifests can be generated");
    for manifest in all.into_iter().chain(manifests::certs().expect("manifests too")) {
        golden(manifest.path, &manifest.text);
    }
}

/// Who finds an option missing here has changed the command line.
#[test]
fn o1_help_texts_are_as_committed() {
    use clap::CommandFactory;
    let mut command = ksm_scale_operator::cli::Cli::command();
    let mut text = command.render_long_help().to_string();
    let names = ["run", "validate", "plan", "certs", "crd", "manifests", "policies", "completions"];
    for name in names {
        let sub = command.find_subcommand_mut(name).expect("a subcommand");
        let _ = write!(text, "\n---- {name}\n{}", sub.render_long_help());
    }
    golden("tests/golden/help.txt", &text);
}

/// Runs the operator's command line in the repository: exit code, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ksm-scale-operator"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .output()
        .expect("the operator runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn o2_plans_are_as_committed() {
    let sharded = "deploy/samples/sharded.yaml";
    let five = "tests/golden/five-shards.yaml";
    let cases: [(&str, &[&str]); 4] = [
        ("plan-75-nodes.txt", &["-f", sharded, "--nodes", "75"]),
        ("plan-3-to-5.txt", &["-f", five, "--from", sharded, "--nodes", "4"]),
        ("plan-range.txt", &["-f", "deploy/samples/production.yaml", "--nodes", "1..300"]),
        ("plan-5-to-3.json", &["-f", sharded, "--from", five, "--nodes", "4", "-o", "json"]),
    ];
    for (file, args) in cases {
        let (code, stdout, stderr) = run(&[&["plan"], args].concat());
        assert_eq!(code, Some(0), "{stderr}");
        golden(&format!("tests/golden/{file}"), &stdout);
    }
}

#[test]
fn o2_what_cannot_be_planned_is_refused_with_the_cause() {
    let sample = "deploy/samples/sharded.yaml";
    let cases: [(&[&str], &str); 5] = [
        (&["-f", sample, "--nodes", "4", "--allowed-images", "ksm"], "--allowed-images"),
        (&["-f", "deploy/samples", "--nodes", "4"], "holds 3 KSMScales"),
        (&["-f", "examples/demo/mistakes.yaml", "--nodes", "4"], "spec.nodesPerMonitor: Invalid"),
        (&["-f", sample, "--nodes", "4..3"], "the range is empty"),
        (
            &["-f", sample, "--from", "deploy/samples/production.yaml", "--nodes", "4"],
            "of the same",
        ),
    ];
    for (args, cause) in cases {
        let (code, stdout, stderr) = run(&[&["plan"], args].concat());
        assert!(
            code != Some(0) && stdout.is_empty() && stderr.contains(cause),
            "{args:?}: {stderr}"
        );
    }
}

#[test]
fn o2_validate_tells_each_fault_with_its_line_and_by_its_exit_code() {
    let (code, stdout, stderr) = run(&[
        "validate",
        "-f",
        "examples/demo/mistakes.yaml",
        "crds/ksmscales.monitor.example.com.yaml",
    ]);
    assert_eq!(code, Some(1));
    golden("tests/golden/validate-mistakes.txt", &stdout);
    assert_eq!(stderr, "1 KSMScales checked: 3 errors, 0 warnings; 1 other objects skipped\n");
    let mistakes = ["validate", "-f", "examples/demo/mistakes.yaml", "-o", "sarif"];
    let (code, stdout, _) = run(&mistakes);
    assert_eq!(code, Some(1));
    golden("tests/golden/validate-mistakes.sarif", &stdout);
    let sample = ["validate", "-f", "deploy/samples/sharded.yaml"];
    let (code, stdout, _) = run(&sample);
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("sharded.yaml:6: warning: KSMScale test-sharded-ksm: spec.monitorImage"),
        "{stdout}"
    );
    let (code, ..) = run(&[&sample[..], &["--warnings-as-errors"]].concat());
    assert_eq!(code, Some(1));
    let (code, stdout, _) = run(&[&sample[..], &["-o", "json"]].concat());
    assert_eq!(code, Some(0));
    let findings: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(findings[0]["rule"], "old-image-with-sharding");
    let (code, _, stderr) = run(&["validate", "-f", "nowhere.yaml"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("nowhere.yaml"), "{stderr}");
}

/// What the operator would refuse by its flags is refused offline by the same flags.
#[test]
fn w5_o2_validate_refuses_what_is_not_allowed() {
    let sample = ["validate", "-f", "deploy/samples/development.yaml"];
    let (code, stdout, stderr) = run(&sample);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let flags = ["--allowed-namespaces", "team-*", "--allowed-images", "ksm,evil/*"];
    let (code, stdout, _) = run(&[&sample[..], &flags].concat());
    assert_eq!(code, Some(1));
    for cause in ["spec.namespace: Forbidden: ", "spec.monitorImage: Forbidden: "] {
        assert!(stdout.contains(cause), "{stdout}");
    }
    let flags = ["--allowed-namespaces", "Team"];
    let (code, _, stderr) = run(&[&sample[..], &flags].concat());
    assert_eq!(code, Some(2));
    assert!(stderr.contains("a prefix such as team-*"), "{stderr}");
}

/// Policies for other flags than the default ones need no hand on generated files.
#[test]
fn w5_the_policies_are_printed_for_what_is_allowed() {
    let (code, stdout, stderr) = run(&["policies", "--allowed-namespaces", "team-*,a"]);
    assert_eq!(code, Some(0), "{stderr}");
    let allowed = "object.spec.namespace.startsWith('team-') || object.spec.namespace == 'a'";
    assert!(stdout.contains(allowed), "{stdout}");
    let (_, stdout, _) = run(&["manifests"]);
    assert!(!stdout.contains("Webhook") && !stdout.contains("kind: ValidatingAdmission"));
}
