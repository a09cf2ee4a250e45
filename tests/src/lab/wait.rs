//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Pause between two looks at a condition: short beside every time that the tests measure.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Looks until `probe` has a value; how long that took.
///
/// # Errors
/// When `limit` has passed, with the reason that the last look gave.
pub fn until_some<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let seen = probe();
        if let Ok(Some(value)) = seen {
            return Ok((value, start.elapsed()));
        }
        if start.elapsed() >= limit {
            match seen {
                Err(error) => bail!("{what}: not within {limit:?}: {error:#}"),
                Ok(_) => bail!("{what}: not within {limit:?}"),
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Looks until `probe` is true; how long that took.
///
/// # Errors
/// When `limit` has passed.
pub fn until(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let ((), took) = until_some(what, limit, || Ok(probe().then_some(())))?;
    Ok(took)
}
