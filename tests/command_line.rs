//! The command line as other programs see it: exit codes, streams, SARIF, completions, and what
//! pre-commit calls.

use clap::CommandFactory;
use ksm_scale_operator::cli::Cli;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

const GOOD: &str =
    "apiVersion: monitor.example.com/v1alpha1\nkind: KSMScale\nmetadata: {name: good}\nspec: {}\n";
const BAD: &str = "apiVersion: monitor.example.com/v1alpha1\nkind: KSMScale\nmetadata: {name: bad}\nspec: {nodesPerMonitor: 5}\n";
const WARNED: &str = "apiVersion: monitor.example.com/v1alpha1\nkind: KSMScale\nmetadata: {name: warned}\nspec: {sharding: {enabled: true, shardCount: 3}}\n";
const OTHER: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n";

/// What a run of the operator gave.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn said(&self) -> (Option<i32>, &str) {
        (self.code, self.stderr.trim_end())
    }
}

/// Runs a program in a folder, with a text on its standard input.
fn run_in(folder: &Path, program: &str, args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(program)
        .current_dir(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // Who does not read it has ended, and that shows.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

const OPERATOR: &str = env!("CARGO_BIN_EXE_ksm-scale-operator");

fn validate(folder: &Path, args: &[&str], stdin: &str) -> Ran {
    run_in(folder, OPERATOR, &[&["validate"], args].concat(), stdin)
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn o2_a_stream_of_many_objects_is_judged_whole_and_others_are_counted() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret}\n- {apiVersion: monitor.example.com/v1alpha1, kind: KSMScale, metadata: {name: in-list}, spec: {nodesPerMonitor: 1}}\n";
    let stream = [GOOD, OTHER, "# nothing\n", BAD, "", OTHER, list].join("---\n");
    let ran = validate(top(), &["-f", "-"], &stream);
    assert_eq!(
        ran.said(),
        (Some(1), "3 KSMScales checked: 2 errors, 1 warnings; 3 other objects skipped")
    );
    let heads: Vec<_> = ran.stdout.lines().filter_map(|l| l.split_once(": spec.")).collect();
    let heads: Vec<_> = heads.into_iter().map(|(head, _)| head).collect();
    assert_eq!(
        heads,
        ["<stdin>:15: error: KSMScale bad", "<stdin>:26: error: KSMScale in-list"],
        "{}",
        ran.stdout
    );
}

#[test]
fn o2_a_folder_is_read_to_its_depth_and_only_what_is_yaml_or_json_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
    fs::create_dir_all(folder.path().join("a/b")).expect("folders");
    write("z.yaml", GOOD);
    write("a/b/deep.yml", BAD);
    let json = r#"{"apiVersion": "monitor.example.com/v1alpha1", "kind": "KSMScale", "metadata": {"name": "json"}, "spec": {"nodesPerMonitor": 2}}"#;
    write("a/one.json", json);
    write("README.md", "no: [yaml\n");
    let ran = validate(folder.path(), &["-f", "."], "");
    assert_eq!(
        ran.said(),
        (Some(1), "3 KSMScales checked: 2 errors, 1 warnings; 0 other objects skipped")
    );
    let files: Vec<_> = ran.stdout.lines().filter_map(|line| line.split(':').next()).collect();
    // The last one is good, and warned of the others.
    assert_eq!(files, ["./a/b/deep.yml", "./a/one.json", "./z.yaml"]);
}

#[test]
fn o2_the_exit_code_tells_valid_from_violated_from_unreadable() {
    let args = ["-f", "-"];
    let code = |args: &[&str], text: &str| validate(top(), args, text).code;
    assert_eq!(code(&args, GOOD), Some(0));
    assert_eq!(code(&args, OTHER), Some(0), "nothing to check is nothing wrong");
    assert_eq!(code(&args, ""), Some(0));
    assert_eq!(code(&args, WARNED), Some(0), "a warning is no violation");
    assert_eq!(code(&["-f", "-", "--warnings-as-errors"], WARNED), Some(1));
    assert_eq!(code(&["-f", "-", "--warnings-as-errors"], GOOD), Some(0));
    assert_eq!(code(&args, BAD), Some(1));
    for (cause, args, text) in [
        ("<stdin> is not YAML", &["-f", "-"][..], "a: [1,\n"),
        ("cannot read nowhere.yaml", &["-f", "-", "nowhere.yaml"], BAD),
    ] {
        let ran = validate(top(), args, text);
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains(cause) && ran.stdout.is_empty(), "{}", ran.stderr);
    }
}

/// The members that the specification requires of what is written, and GitHub on top of it.
fn check_sarif(log: &Value) {
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    assert_eq!(log["version"], "2.1.0");
    assert!(text(&log["$schema"]));
    let [run] = &log["runs"].as_array().expect("runs")[..] else { unreachable!("one run") };
    let driver = &run["tool"]["driver"];
    assert!(text(&driver["name"]) && text(&driver["semanticVersion"]), "{driver}");
    let rules = driver["rules"].as_array().expect("rules");
    let ids: BTreeSet<_> = rules.iter().map(|rule| rule["id"].as_str().expect("an id")).collect();
    assert_eq!(ids.len(), rules.len(), "a rule stands once");
    for rule in rules {
        for part in ["shortDescription", "fullDescription", "help"] {
            assert!(text(&rule[part]["text"]), "{rule}");
        }
        assert_ne!(rule["shortDescription"]["text"], rule["id"], "every rule is explained");
    }
    let results = run["results"].as_array().expect("results, if there are none too");
    for result in results {
        let at = usize::try_from(result["ruleIndex"].as_u64().expect("an index")).expect("small");
        assert_eq!(rules[at]["id"], result["ruleId"]);
        assert!(["error", "warning"].contains(&result["level"].as_str().expect("a level")));
        assert!(text(&result["message"]["text"]));
        let [location] = &result["locations"].as_array().expect("locations")[..] else {
            unreachable!("one location")
        };
        let physical = &location["physicalLocation"];
        let uri = physical["artifactLocation"]["uri"].as_str().expect("a URI");
        uri.parse::<http::Uri>().or_else(|_| format!("/{uri}").parse()).expect("a URI reference");
        let count = |name: &str| physical["region"][name].as_u64().expect("a number");
        assert!(count("startLine") >= 1 && count("startColumn") >= 1);
    }
    let used: BTreeSet<_> = results.iter().filter_map(|r| r["ruleId"].as_str()).collect();
    assert_eq!(ids, used, "rules that are used");
}

#[test]
fn o2_sarif_holds_what_the_text_says_for_code_review() {
    let files = ["examples/demo/mistakes.yaml", "deploy/samples"];
    let args = ["-f", files[0], files[1], "--nodes", "4"];
    let ran = validate(top(), &[&args[..], &["-o", "sarif"]].concat(), "");
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let log: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    check_sarif(&log);
    let results = log["runs"][0]["results"].as_array().expect("results");
    let lines = validate(top(), &args, "").stdout;
    let said: Vec<_> = results
        .iter()
        .map(|result| {
            let physical = &result["locations"][0]["physicalLocation"];
            format!(
                "{}:{}: {}: {}",
                physical["artifactLocation"]["uri"].as_str().expect("a URI"),
                physical["region"]["startLine"],
                result["level"].as_str().expect("a level"),
                result["message"]["text"].as_str().expect("a text")
            )
        })
        .collect();
    assert_eq!(said, lines.lines().collect::<Vec<_>>());
    let rules: BTreeSet<_> = results.iter().filter_map(|r| r["ruleId"].as_str()).collect();
    assert!(
        rules.is_superset(&["FieldValueInvalid", "replica-bounds-ordered", "scope-overlap"].into()),
        "{rules:?}"
    );
    let none = validate(top(), &["-f", "-", "-o", "sarif"], GOOD);
    assert_eq!(none.code, Some(0));
    check_sarif(&serde_json::from_str(&none.stdout).expect("JSON"));
}

#[test]
fn o1_every_shell_gets_a_script_that_knows_every_command() {
    let command = Cli::command();
    let names: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert!(names.contains(&"completions") && names.len() > 6, "{names:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = run_in(top(), OPERATOR, &["completions", shell], "");
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        for name in &names {
            assert!(ran.stdout.contains(name), "{shell} does not know {name}");
        }
    }
}

#[test]
fn o1_bash_completes_a_command_a_flag_and_a_value() {
    let script = run_in(top(), OPERATOR, &["completions", "bash"], "").stdout;
    // What bash does on the tab key: words and position in, COMPREPLY out.
    let complete = |line: &str| {
        let words = line.replace(' ', "' '");
        let last = line.split(' ').count() - 1;
        let ask = format!(
            "{script}\nset -e; COMP_WORDS=('{words}'); COMP_CWORD={last}\n\
             registered=$(complete -p ksm-scale-operator); f=${{registered#*-F }}; f=${{f%% *}}\n\
             \"$f\" ksm-scale-operator \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             echo \"${{COMPREPLY[@]}}\""
        );
        let ran = run_in(top(), "bash", &["--norc", "-s"], &ask);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        ran.stdout.trim_end().to_owned()
    };
    assert_eq!(complete("ksm-scale-operator val"), "validate");
    assert_eq!(complete("ksm-scale-operator validate --warn"), "--warnings-as-errors");
    assert_eq!(complete("ksm-scale-operator validate --output s"), "sarif");
}

/// Calls the hook as pre-commit does: its entry and arguments, and after them names of files.
#[test]
fn o2_the_pre_commit_hook_judges_the_files_that_it_is_given() {
    let text = fs::read_to_string(top().join(".pre-commit-hooks.yaml")).expect("the hooks");
    let hooks: Value = serde_saphyr::from_str(&text).expect("YAML");
    let [hook] = &hooks.as_array().expect("a list")[..] else { unreachable!("one hook") };
    let text = |key: &str| hook[key].as_str().expect("a text");
    assert_eq!((text("id"), text("language")), ("ksmscale-validate", "rust"));
    assert_ne!(hook["pass_filenames"], false);
    let files = regex::Regex::new(text("files")).expect("a pattern");
    assert!(files.is_match("a/b.yaml") && files.is_match("c.yml") && files.is_match("d.json"));
    assert!(!files.is_match("README.md"));
    let mut entry: Vec<_> = text("entry").split(' ').collect();
    entry.extend(hook["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
    assert_eq!(entry.remove(0), "ksm-scale-operator");
    let call = |files: &[&str]| run_in(top(), OPERATOR, &[&entry[..], files].concat(), "");
    let good = "deploy/samples/development.yaml";
    assert_eq!(call(&[good]).code, Some(0));
    let bad = call(&[good, "examples/demo/mistakes.yaml", "deploy/base/rbac.yaml"]);
    assert_eq!(bad.code, Some(1));
    assert!(bad.stdout.contains("mistakes.yaml:7: error: "), "{}", bad.stdout);
    assert!(bad.stderr.starts_with("2 KSMScales checked: 3 errors"), "{}", bad.stderr);
}
