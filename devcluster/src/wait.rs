//! Waiting for what happens elsewhere.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

const POLL: Duration = Duration::from_millis(50);

/// Asks `condition` twenty times a second until it answers with a value, and returns that. After
/// `deadline` this is an error that says `what` did not happen.
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}
