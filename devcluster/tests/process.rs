//! Children and the guard that keeps them from outliving their parent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use devcluster::{Process, Signal, eventually};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);
const NO_ENV: [(&str, &str); 0] = [];

fn spawn(dir: &TempDir, program: &str, args: &[&str]) -> Process {
    Process::spawn(program, program, args, NO_ENV, &dir.path().join("child.log")).unwrap()
}

fn exists(pid: u32) -> bool {
    let kill = Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status();
    kill.unwrap().success()
}

/// One letter, `T` for stopped, as in ps(1).
fn state(pid: u32) -> String {
    let output =
        Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn gone(pid: u32) {
    eventually("the child is gone", DEADLINE, || async { (!exists(pid)).then_some(()) })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_child_that_ends_by_itself_hands_on_its_code_output_and_environment() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("child.log");
    let script = "echo out $GREETING; echo err >&2; cat; exit 7";
    let mut child =
        Process::spawn("child", "sh", ["-c", script], [("GREETING", "hello")], &log).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    assert_eq!(child.log_tail(10), "out hello\nerr");
    assert!(child.signal(Signal::Term).is_err() || child.try_wait().unwrap().is_some());
}

#[tokio::test]
async fn a_program_that_does_not_exist_ends_with_127() {
    let dir = TempDir::new().unwrap();
    let mut child = spawn(&dir, "/no/such/program", &[]);
    assert_eq!(child.wait().await.unwrap().code(), Some(127));
    assert!(child.log_tail(5).contains("not found"), "{}", child.log_tail(5));
}

#[tokio::test]
async fn terminate_lets_a_child_clean_up() {
    let dir = TempDir::new().unwrap();
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = spawn(&dir, "sh", &["-c", script]);
    eventually("it is up", DEADLINE, || async { (child.log_tail(1) == "up").then_some(()) })
        .await
        .unwrap();
    assert_eq!(child.terminate(DEADLINE).await.unwrap().code(), Some(3));
    assert_eq!(child.log_tail(1), "bye");
}

#[tokio::test]
async fn terminate_kills_a_child_that_ignores_it() {
    let dir = TempDir::new().unwrap();
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = spawn(&dir, "sh", &["-c", script]);
    eventually("it is up", DEADLINE, || async { (child.log_tail(1) == "up").then_some(()) })
        .await
        .unwrap();
    let status = child.terminate(Duration::from_millis(100)).await.unwrap();
    assert_eq!(status.signal(), Some(9));
    gone(child.pid()).await;
}

#[tokio::test]
async fn a_child_can_be_frozen_and_thawed() {
    let dir = TempDir::new().unwrap();
    let mut child = spawn(&dir, "sleep", &["600"]);
    let pid = child.pid();
    let in_state = |wanted: &'static str| async move {
        eventually(wanted, DEADLINE, || async { state(pid).starts_with(wanted).then_some(()) })
            .await
            .unwrap();
    };
    child.signal(Signal::Stop).unwrap();
    in_state("T").await;
    assert!(child.try_wait().unwrap().is_none());
    child.signal(Signal::Cont).unwrap();
    in_state("S").await;
    child.signal(Signal::Term).unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(143));
}

#[tokio::test]
async fn dropping_a_process_kills_the_child_even_when_it_is_frozen() {
    let dir = TempDir::new().unwrap();
    let mut child = spawn(&dir, "sleep", &["600"]);
    let pid = child.pid();
    child.signal(Signal::Stop).unwrap();
    drop(child);
    assert!(!exists(pid));
}

#[tokio::test]
async fn a_killed_parent_takes_its_children_with_it() {
    // This binary is the parent, too: it runs the test below.
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_of_a_sleeping_child", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(parent.stdout.take().unwrap());
    let pid: u32 = output
        .lines()
        .find_map(|line| line.unwrap().strip_prefix("child ").map(|pid| pid.parse().unwrap()))
        .unwrap();
    assert!(exists(pid));
    // SIGKILL: the parent has no chance to do anything about it.
    parent.kill().unwrap();
    parent.wait().unwrap();
    gone(pid).await;
}

#[test]
#[ignore = "the helper process of another test"]
fn parent_of_a_sleeping_child() {
    let dir = TempDir::new().unwrap();
    let child = spawn(&dir, "sleep", &["600"]);
    println!("\nchild {}", child.pid());
    // Until it is killed, or until the other test ends.
    std::io::stdin().lines().for_each(drop);
}
