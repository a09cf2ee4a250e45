//! What the control socket asks for.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use proxy_core::abuse::{Denial, DenyError, DenyList, FloodSwitch, Limit, Mode, Prefix, Reason, Record, Word};

use super::list::unix_now;
use super::{Abuse, lock};
use crate::control::{CookiesRequest, DenyRequest, LimitRequest, MAX_PREFIXES, PAGE};
use crate::status::abuse::{AbuseStatus, CookiesMode, CookiesStatus, DenyEntry, DenyResponse, LimitStatus};

impl Abuse {
    /// Changes or shows the pool's deny list.
    ///
    /// # Errors
    /// What cannot be done, and how much was done before.
    pub fn answer_deny(&self, request: DenyRequest) -> Result<DenyResponse> {
        let now = unix_now();
        match request {
            DenyRequest::Add { prefixes, for_seconds, reason } => {
                let until = for_seconds.map(|seconds| now.saturating_add(seconds.saturating_mul(1_000)));
                let denial = Denial { until, reason: Reason::parse(&reason)? };
                self.each(&prefixes, |list, prefix| list.deny(now, prefix, denial.clone(), &self.origin))
            }
            DenyRequest::Remove { prefixes } => {
                self.each(&prefixes, |list, prefix| list.allow(now, prefix, &self.origin))
            }
            DenyRequest::List { after } => {
                let after = after.map(|text| parse(&text)).transpose()?;
                let list = self.list.lock();
                let page = list.entries(after).take(PAGE);
                Ok(DenyResponse::Entries(page.filter_map(|record| entry(record, now)).collect()))
            }
            DenyRequest::Test { address } => {
                let address: IpAddr = address.parse().with_context(|| format!("{address}: is no IP address"))?;
                let list = self.list.lock();
                Ok(DenyResponse::Tested(list.covering(address).and_then(|record| entry(record, now))))
            }
        }
    }

    /// All are read before the first is changed.
    fn each(
        &self,
        prefixes: &[String],
        mut change: impl FnMut(&mut DenyList, Prefix) -> Result<(), DenyError>,
    ) -> Result<DenyResponse> {
        ensure!(prefixes.len() <= MAX_PREFIXES, "more than {MAX_PREFIXES} prefixes in one request");
        let prefixes: Vec<Prefix> = prefixes.iter().map(|text| parse(text)).collect::<Result<_>>()?;
        self.list.change(|list| {
            for (done, prefix) in prefixes.iter().enumerate() {
                change(list, *prefix).map_err(|error| explain(list, *prefix, error, done))?;
            }
            Ok(DenyResponse::Changed(prefixes.len()))
        })
    }

    /// Shows or changes this front end's limit of new connections.
    ///
    /// # Errors
    /// There can be no such limit.
    pub fn answer_limit(&self, request: &LimitRequest) -> Result<LimitStatus> {
        match request {
            LimitRequest::Show => {}
            LimitRequest::Set(rate) => self.set_limit(self.configured.limit.with_rate(*rate)?),
            LimitRequest::Default => self.set_limit(self.configured.limit),
        }
        Ok(self.limit_status())
    }

    fn set_limit(&self, limit: Limit) {
        *lock(&self.limit) = limit;
        self.dataplane.lock().set_limit(limit);
        let rate = limit.per_second.map_or(0, NonZeroU32::get);
        tracing::info!(new_connections_per_second = rate, "the limit was changed, until the next restart");
    }

    fn limit_status(&self) -> LimitStatus {
        let limit = *lock(&self.limit);
        let rate = |rate: Option<NonZeroU32>| rate.map_or(0, NonZeroU32::get);
        LimitStatus {
            new_connections_per_second: rate(limit.per_second),
            configured: rate(self.configured.limit.per_second),
            prefix_v4: limit.prefix_v4,
            prefix_v6: limit.prefix_v6,
        }
    }

    /// Shows or changes whether this front end answers by SYN cookies.
    pub fn answer_cookies(&self, request: &CookiesRequest) -> CookiesStatus {
        let mut flood = lock(&self.flood);
        if let CookiesRequest::Set(mode) = request {
            let now = Instant::now();
            flood.set_mode(now, core_mode(*mode));
            self.obey(flood.cookies(now));
            tracing::info!(?mode, "SYN cookies were told what to do, until the next restart");
        }
        cookies_status(&flood)
    }

    /// All of it, for the status and the metrics.
    #[must_use]
    pub fn status(&self) -> AbuseStatus {
        AbuseStatus {
            denied_prefixes: self.list.lock().len(),
            limit: self.limit_status(),
            cookies: cookies_status(&lock(&self.flood)),
        }
    }
}

fn parse(text: &str) -> Result<Prefix> {
    text.parse().map_err(|error| anyhow!("{text}: {error}"))
}

fn explain(list: &DenyList, prefix: Prefix, error: DenyError, done: usize) -> anyhow::Error {
    let before = if done > 0 { format!(" ({done} prefixes before it were done)") } else { String::new() };
    let covering = list.covering(prefix.address()).filter(|_| error == DenyError::NotDenied);
    match covering {
        Some(longer) => anyhow!("{prefix}: {error}, but {} is{before}", longer.prefix),
        None => anyhow!("{prefix}: {error}{before}"),
    }
}

fn entry(record: &Record, now: u64) -> Option<DenyEntry> {
    let Word::Denied(denial) = &record.word else { return None };
    Some(DenyEntry {
        prefix: record.prefix.to_string(),
        until_ms: denial.until,
        seconds_left: denial.until.map(|until| until.saturating_sub(now).div_ceil(1_000)),
        reason: denial.reason.to_string(),
        set_by: record.set_by.to_string(),
        changed_ms: record.changed,
    })
}

fn core_mode(mode: CookiesMode) -> Mode {
    match mode {
        CookiesMode::Auto => Mode::Auto,
        CookiesMode::On => Mode::On,
        CookiesMode::Off => Mode::Off,
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive; huge ones may saturate"
)]
fn cookies_status(flood: &FloodSwitch) -> CookiesStatus {
    let cookies = flood.cookies(Instant::now());
    let mode = match flood.mode() {
        Mode::Auto => CookiesMode::Auto,
        Mode::On => CookiesMode::On,
        Mode::Off => CookiesMode::Off,
    };
    CookiesStatus {
        mode,
        sending: cookies.send,
        out: cookies.out,
        syns_per_second: flood.rate().round() as u64,
        above: flood.above(),
    }
}
