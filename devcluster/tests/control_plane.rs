//! Control planes at every level, and their nodes.

use devcluster::{ControlPlane, Level};

#[tokio::test]
async fn an_api_server_starts() {
    let start = std::time::Instant::now();
    let plane = ControlPlane::start(Level::ApiServer).await.unwrap();
    eprintln!("{:?}", start.elapsed());
    plane.add_nodes(0..3).await.unwrap();
    let out = plane.kubectl().args(["get", "nodes"]).output().await.unwrap();
    eprintln!("{}", String::from_utf8_lossy(&out.stdout));
}

#[tokio::test]
async fn nodes() {
    let start = std::time::Instant::now();
    let plane = ControlPlane::start(Level::Nodes).await.unwrap();
    eprintln!("{:?}", start.elapsed());
    plane.add_kwok_nodes(0..3).await.unwrap();
    let out = plane.kubectl().args(["wait", "--for=condition=Ready", "nodes", "--all", "--timeout=30s"]).output().await.unwrap();
    eprintln!("{out:?} {:?}", start.elapsed());
}
