//! From the file to the log: reads when the file changed, believes what the core's intake believes.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use proxy_core::directory::passwd_file::PasswdFile;
use proxy_core::directory::{Epoch, Fingerprint, Held, Intake, Log, Reading, Users};
use tokio::sync::watch as channel;

use super::config::PasswdFileSource;
use super::watch::FileWatch;

/// Writes that follow one another so closely are read at once.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// A file that looks cut short is read again after so long, and so is the first reading.
const RECHECK: Duration = Duration::from_millis(100);
/// The file is looked at so often even if nobody said that it changed: a network file system does not say.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Longest file that is read, in octets.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// The log of this back end, shared by its one writer and everyone who sends it.
#[derive(Debug)]
pub struct SharedLog {
    state: Mutex<State>,
    changed: channel::Sender<()>,
}

#[derive(Debug)]
struct State {
    log: Log,
    /// The source was read at least once.
    ready: bool,
    /// The source could be read the last time.
    current: bool,
}

impl SharedLog {
    /// An empty log that nobody may see yet.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        let state = State { log: Log::new(epoch), ready: false, current: false };
        Self { state: Mutex::new(state), changed: channel::Sender::new(()) }
    }

    /// Lets `look` see the log and whether it is current. Keep it short.
    pub fn with<T>(&self, look: impl FnOnce(&Log, bool) -> T) -> T {
        let state = self.lock();
        look(&state.log, state.current)
    }

    /// Wakes whenever the log has changed.
    #[must_use]
    pub fn subscribe(&self) -> channel::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until the source was read for the first time: an empty log must not reach a front end.
    pub async fn ready(&self) {
        let mut changed = self.subscribe();
        while !self.lock().ready {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, update: impl FnOnce(&mut State)) {
        update(&mut self.lock());
        self.changed.send_replace(());
    }
}

/// What a file was when it was read.
struct Content {
    users: Users,
    fingerprint: Fingerprint,
    summary: Summary,
}

/// What is worth a line in the log.
#[derive(PartialEq, Eq, Default)]
struct Summary {
    bare_names: usize,
    problem_count: usize,
    first_problems: String,
}

/// Keeps the log at what the file says.
///
/// # Errors
/// If the file cannot be watched.
pub(super) async fn follow(source: PasswdFileSource, log: Arc<SharedLog>) -> Result<Infallible> {
    let watch = FileWatch::new(&source.path)?;
    let source = Arc::new(source);
    let mut reader = FileReader { source, log, intake: Intake::default(), last: None, told: Told::default() };
    reader.begin().await;
    loop {
        let pause = match reader.read().await {
            Next::Recheck => {
                // No event shortens it: a file being written makes many.
                tokio::time::sleep(RECHECK).await;
                continue;
            }
            Next::Wait(pause) => pause,
        };
        tokio::select! {
            () = watch.changed() => tokio::time::sleep(DEBOUNCE.max(pause)).await,
            () = reader.looks_changed() => {}
        }
    }
}

/// When to read again.
enum Next {
    /// In any case, soon.
    Recheck,
    /// When the file has changed, and then no sooner than this.
    Wait(Duration),
}

/// What was said last, so that it is said once.
#[derive(Default)]
struct Told {
    error: Option<String>,
    held: Vec<Held>,
    summary: Summary,
}

struct FileReader {
    source: Arc<PasswdFileSource>,
    log: Arc<SharedLog>,
    intake: Intake,
    /// Length and time of change of the file when it was last read.
    last: Option<Stamp>,
    told: Told,
}

type Stamp = (u64, Option<std::time::SystemTime>, u64);

impl FileReader {
    /// Waits for the first content that stays the same for a moment: there is nothing yet to compare it with, and a
    /// front end may hold a good copy of the last life's log.
    async fn begin(&mut self) {
        let mut before = None;
        loop {
            let content = self.load().await;
            let fingerprint = content.as_ref().ok().map(|content| content.fingerprint);
            self.tell_error(content.as_ref().err());
            if before.is_some() && before == fingerprint {
                return;
            }
            before = fingerprint;
            tokio::time::sleep(RECHECK).await;
        }
    }

    async fn read(&mut self) -> Next {
        let begun = Instant::now();
        self.last = stamp(&self.source.path);
        let content = self.load().await;
        self.tell_error(content.as_ref().err());
        let Ok(Content { users, fingerprint, summary }) = content else {
            self.log.update(|state| state.current = false);
            return Next::Wait(DEBOUNCE);
        };
        self.tell_summary(summary);
        let reading = match self.judge(users, fingerprint).await {
            Ok(reading) => reading,
            Err(error) => {
                self.tell_error(Some(&error));
                return Next::Recheck;
            }
        };
        let changes = reading.changes.len();
        self.log.update(|state| {
            state.log.append(reading.changes);
            state.ready = true;
            state.current = true;
        });
        if changes > 0 {
            let (users, seq) = self.log.with(|log, _| (log.users().len(), log.position().seq));
            tracing::info!(changes, users, seq = seq.0, "the users have changed");
        }
        self.tell_held(reading.held, reading.emptied);
        if self.told.held.is_empty() || reading.emptied { Next::Wait(begun.elapsed()) } else { Next::Recheck }
    }

    async fn load(&self) -> Result<Content> {
        let source = Arc::clone(&self.source);
        tokio::task::spawn_blocking(move || load(&source)).await.context("failed to read the source")?
    }

    /// Compares without the lock: with a million users it takes a second.
    async fn judge(&mut self, fresh: Users, fingerprint: Fingerprint) -> Result<Reading> {
        let mut intake = std::mem::take(&mut self.intake);
        let users = self.log.with(|log, _| log.users().clone());
        let judge = move || (intake.handle_reading(&users, &fresh, fingerprint), intake);
        let (reading, intake) = tokio::task::spawn_blocking(judge).await.context("failed to compare the users")?;
        self.intake = intake;
        Ok(reading)
    }

    /// Ready when the file is not what it was when it was last read.
    async fn looks_changed(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.last.is_none() || stamp(&self.source.path) != self.last {
                return;
            }
        }
    }

    fn tell_error(&mut self, error: Option<&anyhow::Error>) {
        let error = error.map(|error| format!("{error:#}"));
        if error != self.told.error {
            match &error {
                Some(error) => tracing::error!("{error}; the users stay what they were"),
                None => tracing::info!("the source can be read again"),
            }
            self.told.error = error;
        }
    }

    fn tell_summary(&mut self, summary: Summary) {
        if summary == self.told.summary {
            return;
        }
        if summary.problem_count > 0 {
            let (file, lines) = (self.source.path.display(), summary.problem_count);
            tracing::warn!("{file}: {lines} lines are no users: {}", summary.first_problems);
        }
        if summary.bare_names > 0 {
            let (file, names) = (self.source.path.display(), summary.bare_names);
            tracing::warn!("{file}: {names} users have no domain and there is no default_domain: passed over");
        }
        self.told.summary = summary;
    }

    fn tell_held(&mut self, held: Vec<Held>, emptied: bool) {
        if held == self.told.held {
            return;
        }
        if emptied {
            tracing::error!("the source has no users any more: held back until it has; restart the agent if it is so");
        }
        for held in &held {
            let Held { domain, users, removals } = held;
            tracing::warn!(domain, users, removals, "too many users are gone at once: held back until the file rests");
        }
        if held.is_empty() {
            tracing::warn!("what was held back is settled");
        }
        self.told.held = held;
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok(), metadata.ino()))
}

fn load(source: &PasswdFileSource) -> Result<Content> {
    let file = source.path.display();
    let length = fs::metadata(&source.path).with_context(|| format!("failed to read {file}"))?.len();
    ensure!(length <= MAX_FILE_BYTES, "failed to read {file}: longer than {MAX_FILE_BYTES} octets");
    let content = fs::read(&source.path).with_context(|| format!("failed to read {file}"))?;
    let parsed = PasswdFile::parse(&content, source.default_domain.as_deref());
    let first: Vec<String> = parsed.problems.iter().take(10).map(ToString::to_string).collect();
    let summary = Summary {
        bare_names: parsed.bare_names,
        problem_count: parsed.problem_count,
        first_problems: first.join("; "),
    };
    let users = parsed.users.into_iter().collect();
    Ok(Content { users, fingerprint: Fingerprint::of(&content), summary })
}
