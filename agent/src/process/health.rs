//! The health of one instance: what its checks said, and what follows. Pure; [`probe`] asks.
//!
//! Until the first success an instance is starting: its checks come often, failures are no news, and after the start timeout it
//! is unfit. Afterwards so many failures in a row as `retries` says make it unhealthy, one success makes it healthy.

pub mod probe;

use std::time::{Duration, Instant, SystemTime};

use super::definition::health::{HealthCheck, Kind};
use super::view::{Checked, Health, HealthStatus};

/// How often a starting instance is asked at most.
const EAGER: Duration = Duration::from_millis(500);
/// So many checks of an instance are remembered.
pub const HISTORY: usize = 20;
/// The longest reason that is remembered with each.
const REASON_BYTES: usize = 200;

/// A check of a definition, checked itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub kind: Kind,
    /// With `{port}` in it.
    pub target: String,
    pub timeout: Duration,
    pub interval: Duration,
    pub start_timeout: Duration,
    pub retries: u32,
    pub restart: bool,
}

impl Check {
    /// The check that `written` asks for; `None`: it is not enabled.
    ///
    /// # Errors
    /// What is wrong, after the name of the key.
    pub fn of(written: &HealthCheck) -> Result<Option<Self>, String> {
        let (kind, target) = written.kind_and_target();
        let key = match kind {
            Kind::Http => "url",
            Kind::Tcp => "address",
            Kind::Script => "script",
        };
        let Some(target) = target.filter(|target| !target.trim().is_empty()) else {
            return Err(format!("a check of type {} needs {key}", kind.as_str()));
        };
        let sample = target.replace("{port}", "1");
        match kind {
            Kind::Http => probe::Url::parse(&sample).map(drop)?,
            Kind::Tcp => probe::check_address(&sample)?,
            Kind::Script => super::quantity::split(target).map(drop)?,
        }
        for (key, pause) in [("timeout", written.timeout), ("interval", written.interval)] {
            let millis = pause.0.0.as_millis();
            if millis < 100 {
                return Err(format!("{key} is {millis} ms, less than 100 ms; seconds are written \"{millis}s\""));
            }
        }
        if written.retries == 0 {
            return Err("retries is 0; 1 or more failures in a row make an instance unhealthy".to_owned());
        }
        Ok(written.enabled.then(|| Self {
            kind,
            target: target.to_owned(),
            timeout: written.timeout.0.0,
            interval: written.interval.0.0,
            start_timeout: written.start_timeout.0.0,
            retries: written.retries,
            restart: written.restart,
        }))
    }

    /// What is asked of the instance that has `port`.
    pub fn target_for(&self, port: Option<u16>) -> String {
        self.target.replace("{port}", &port.map(|port| port.to_string()).unwrap_or_default())
    }
}

/// What follows from a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Nothing,
    /// Its health changed.
    Changed,
    /// It is healthy for the first time.
    Ready,
    /// It is to be restarted.
    Unfit,
}

/// The checks of one running process.
#[derive(Debug, Clone)]
pub struct Monitor {
    check: Check,
    began: Instant,
    due: Option<Instant>,
    /// When the check that is under way was begun.
    asked: Option<Instant>,
    was_healthy: bool,
    failures: u32,
    pub view: Health,
}

impl Monitor {
    /// Begins with a process; counts go on from `before`. One that was `adopted` is not starting.
    pub fn new(check: Check, port: Option<u16>, before: &Health, adopted: bool, now: Instant) -> Self {
        let view = Health {
            status: HealthStatus::Unknown,
            kind: Some(check.kind.as_str()),
            target: Some(check.target_for(port).into()),
            last_error: None,
            ..before.clone()
        };
        Self { check, began: now, due: Some(now), asked: None, was_healthy: adopted, failures: 0, view }
    }

    /// When the next check is to begin; `None` while one is under way.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A check begins: what to ask, and for how long.
    pub fn begin(&mut self, now: Instant) -> (Kind, String, Duration) {
        self.due = None;
        self.asked = Some(now);
        let target = self.view.target.as_deref().unwrap_or_default().to_owned();
        (self.check.kind, target, self.check.timeout)
    }

    /// A check has ended.
    pub fn result(&mut self, result: Result<(), String>, now: Instant, at: SystemTime) -> Verdict {
        self.view.total += 1;
        self.view.last_check = Some(at);
        let asked = self.asked.take().unwrap_or(now);
        let error = result.as_ref().err().map(|why| clipped(why).into());
        self.remember(Checked { at, took: now.saturating_duration_since(asked), error });
        let pause = if self.was_healthy { self.check.interval } else { EAGER.min(self.check.interval) };
        self.due = Some(now + pause);
        match result {
            Ok(()) => self.succeeded(now),
            Err(why) => self.failed(why, now),
        }
    }

    fn remember(&mut self, checked: Checked) {
        let old = &self.view.history;
        let kept = old.get(old.len().saturating_sub(HISTORY - 1)..).unwrap_or_default();
        self.view.history = kept.iter().cloned().chain([checked]).collect();
    }

    fn succeeded(&mut self, now: Instant) -> Verdict {
        self.view.successful += 1;
        self.view.last_error = None;
        self.failures = 0;
        self.due = Some(now + self.check.interval);
        let before = std::mem::replace(&mut self.view.status, HealthStatus::Healthy);
        if !std::mem::replace(&mut self.was_healthy, true) {
            return Verdict::Ready;
        }
        if before == HealthStatus::Healthy { Verdict::Nothing } else { Verdict::Changed }
    }

    fn failed(&mut self, why: String, now: Instant) -> Verdict {
        self.view.last_error = Some(why.into());
        self.failures += 1;
        if !self.was_healthy {
            let is_late = now.saturating_duration_since(self.began) >= self.check.start_timeout;
            return if is_late { Verdict::Unfit } else { Verdict::Nothing };
        }
        if self.failures < self.check.retries {
            return Verdict::Nothing;
        }
        let before = std::mem::replace(&mut self.view.status, HealthStatus::Unhealthy);
        match (self.check.restart, before == HealthStatus::Unhealthy) {
            (true, _) => Verdict::Unfit,
            (false, true) => Verdict::Nothing,
            (false, false) => Verdict::Changed,
        }
    }
}

/// The beginning of a reason.
fn clipped(why: &str) -> &str {
    &why[..why.floor_char_boundary(REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<Option<Check>, String> {
        Check::of(&serde_json::from_str(json).expect("a health check"))
    }

    fn monitor(restart: bool, adopted: bool, now: Instant) -> Monitor {
        let json = format!(
            r#"{{"check_type":"tcp","address":"127.0.0.1:{{port}}","interval":"10s","retries":2,"restart":{restart}}}"#
        );
        let check = check(&json).expect("valid").expect("enabled");
        Monitor::new(check, Some(3000), &Health::default(), adopted, now)
    }

    #[test]
    fn a_starting_instance_is_asked_often_and_given_its_time() {
        let start = Instant::now();
        let mut monitor = monitor(true, false, start);
        assert_eq!(monitor.begin(start).1, "127.0.0.1:3000");
        assert_eq!(monitor.result(Err("refused".to_owned()), start, SystemTime::now()), Verdict::Nothing);
        assert_eq!(monitor.due(), Some(start + EAGER));
        assert_eq!(monitor.result(Ok(()), start, SystemTime::now()), Verdict::Ready);
        assert_eq!(monitor.due(), Some(start + Duration::from_secs(10)));
        assert_eq!((monitor.view.total, monitor.view.successful), (2, 1));
    }

    #[test]
    fn the_last_checks_are_remembered_over_processes_with_their_time_duration_and_reason() {
        let (start, at) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut first = monitor(true, true, start);
        for number in 0..HISTORY as u64 + 3 {
            let began = start + Duration::from_secs(number);
            first.begin(began);
            let result = if number % 2 == 0 { Ok(()) } else { Err(format!("{number} {}", "é".repeat(300))) };
            first.result(result, began + Duration::from_millis(number), at + Duration::from_secs(number));
        }
        let history = &first.view.history;
        assert_eq!(history.len(), HISTORY);
        let expected = Checked { at: at + Duration::from_secs(22), took: Duration::from_millis(22), error: None };
        assert_eq!((&history[HISTORY - 1], history[0].at), (&expected, at + Duration::from_secs(3)));
        let reason = history[0].error.as_deref().expect("it failed");
        assert!(reason.starts_with("3 é") && reason.len() <= REASON_BYTES, "{reason}");
        let json = r#"{"check_type":"tcp","address":"127.0.0.1:1"}"#;
        let check = check(json).expect("valid").expect("enabled");
        let mut next = Monitor::new(check, None, &first.view, false, start);
        next.begin(start);
        next.result(Ok(()), start, at + Duration::from_secs(99));
        let (oldest, newest) = (next.view.history[0].at, next.view.history[HISTORY - 1].at);
        assert_eq!((oldest, newest), (at + Duration::from_secs(4), at + Duration::from_secs(99)));
    }

    #[test]
    fn one_that_never_becomes_healthy_is_unfit() {
        let start = Instant::now();
        let mut monitor = monitor(true, false, start);
        let late = start + Duration::from_secs(30);
        assert_eq!(monitor.result(Err("refused".to_owned()), late, SystemTime::now()), Verdict::Unfit);
    }

    #[test]
    fn so_many_failures_in_a_row_make_it_unhealthy() {
        let now = Instant::now();
        let run = |restart: bool, results: &[bool]| -> Vec<Verdict> {
            let mut monitor = monitor(restart, true, now);
            let result = |ok: &bool| if *ok { Ok(()) } else { Err("refused".to_owned()) };
            results.iter().map(|ok| monitor.result(result(ok), now, SystemTime::now())).collect()
        };
        use Verdict::{Changed, Nothing, Unfit};
        assert_eq!(run(true, &[true, false, true, false, false]), [Changed, Nothing, Nothing, Nothing, Unfit]);
        assert_eq!(run(false, &[false, false, false, true]), [Nothing, Changed, Nothing, Changed]);
    }

    #[test]
    fn a_check_that_cannot_work_is_refused() {
        let refused = |json: &str, expected: &str| {
            assert!(check(json).is_err_and(|error| error.contains(expected)), "{json}");
        };
        refused(r#"{"check_type":"http"}"#, "needs url");
        refused(r#"{"check_type":"http","url":"https://x"}"#, "http://");
        refused(r#"{"check_type":"tcp","address":"x"}"#, "HOST:PORT");
        refused(r#"{"check_type":"tcp","address":"x:1","timeout":5}"#, "\"5s\"");
        refused(r#"{"check_type":"script","script":"a 'b"}"#, "quote");
        assert_eq!(check(r#"{"check_type":"tcp","address":"x:1","enabled":false}"#), Ok(None));
    }
}
