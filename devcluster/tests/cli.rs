//! The command, from `up` to `down`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use devcluster::eventually;

const DEADLINE: Duration = Duration::from_secs(30);

/// A control plane of this test's own, down when the test is over.
struct Instance(String);

impl Instance {
    fn new(purpose: &str) -> Self {
        Self(format!("test-{purpose}-{}", std::process::id()))
    }

    fn run(&self, command: &str, args: &[&str]) -> Output {
        let mut devcluster = Command::new(env!("CARGO_BIN_EXE_devcluster"));
        devcluster.args([command, "--name", &self.0]).args(args).output().unwrap()
    }

    /// Standard output of a run that must succeed.
    fn output(&self, command: &str, args: &[&str]) -> String {
        let output = self.run(command, args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.run("down", &[]);
    }
}

#[test]
fn a_control_plane_goes_up_and_down() {
    let instance = Instance::new("up");
    let early = instance.run("kubeconfig", &[]);
    assert_eq!(early.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&early.stderr).contains("is not up"), "{early:?}");

    let up = instance.output("up", &["--nodes", "2"]);
    assert!(up.contains("is up with 2 nodes"), "{up}");
    let again = instance.output("up", &[]);
    assert!(again.contains("is up already"), "{again}");

    let nodes = instance.output("kubectl", &["--", "get", "nodes", "-o", "name"]);
    assert_eq!(nodes, "node/node-0\nnode/node-1\n");
    let unknown = instance.run("kubectl", &["--", "get", "nonsense"]);
    assert_eq!(unknown.status.code(), Some(1));

    assert!(instance.output("down", &[]).contains("is down"));
    assert!(instance.output("down", &[]).contains("was not up"));
    assert!(!instance.run("kubectl", &["--", "get", "nodes"]).status.success());
}

#[tokio::test]
async fn a_killed_supervisor_leaves_nothing_running() {
    let instance = Instance::new("killed");
    instance.output("up", &["--nodes", "0"]);
    let kubeconfig = PathBuf::from(instance.output("kubeconfig", &[]).trim());
    let content: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&kubeconfig).unwrap()).unwrap();
    let cluster = &content["clusters"][0]["cluster"];
    let data = PathBuf::from(cluster["certificate-authority"].as_str().unwrap());
    let data = data.parent().unwrap();
    assert!(data.is_dir());

    let pid = fs::read_to_string(kubeconfig.with_file_name("pid")).unwrap();
    assert!(Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());

    // Every process has the data directory on its command line.
    eventually("all processes are gone", DEADLINE, || async {
        let list = Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        (!list.contains(data.to_str().unwrap())).then_some(())
    })
    .await
    .unwrap();
    eventually("the data is gone", DEADLINE, || async { (!data.exists()).then_some(()) })
        .await
        .unwrap();
    assert!(!instance.run("kubeconfig", &[]).status.success());
}

#[test]
fn a_folder_of_binaries_without_one_of_them_is_an_error_that_names_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_devcluster"))
        .arg("build")
        .env("DEVCLUSTER_BIN_DIR", "/no/such/folder")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("/no/such/folder/etcd is missing"), "{error}");
}
