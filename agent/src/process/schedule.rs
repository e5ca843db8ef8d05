//! When a process is restarted by the calendar: `cron_restart`. Pure but for the time zone of the host, which is read here.
//!
//! The wall clock may jump and the timers of the supervisor do not follow it: an [`Alarm`] says how long to wait at most
//! before the clock is looked at again. What an absent or stopped agent missed is not made up for.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Local, TimeZone, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// The longest wait before the clock is looked at again: a clock that was set is noticed within it.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The times of a cron expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    cron: Cron,
}

impl Schedule {
    /// `MINUTE HOUR DAY MONTH WEEKDAY`, or six fields of which the first are seconds, or `@daily` and the like.
    ///
    /// # Errors
    /// What is wrong with it, or that its time never comes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let form = "it is MINUTE HOUR DAY MONTH WEEKDAY like \"30 4 * * *\", with seconds before them if there are six";
        let cron = parser.parse(text).map_err(|error| format!("{text:?} is no cron expression: {error}; {form}"))?;
        let schedule = Self { cron };
        match schedule.after(SystemTime::UNIX_EPOCH, &Utc) {
            Some(_) => Ok(schedule),
            None => Err(format!("{text:?} is a time that never comes")),
        }
    }

    /// The first of its times after `time` by the clocks of `zone`.
    fn after<Z: TimeZone>(&self, time: SystemTime, zone: &Z) -> Option<SystemTime> {
        let time = DateTime::<Utc>::from(time).with_timezone(zone);
        self.cron.find_next_occurrence(&time, false).ok().map(SystemTime::from)
    }
}

/// The next time of a schedule, and when to look whether it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alarm {
    next: SystemTime,
    look: Instant,
}

impl Alarm {
    /// The alarm after `wall`, which the timers call `now`.
    pub fn after(schedule: &Schedule, wall: SystemTime, now: Instant) -> Option<Self> {
        let next = schedule.after(wall, &Local)?;
        Some(Self { next, look: look_at(next, wall, now) })
    }

    /// When it rings.
    pub fn next(&self) -> SystemTime {
        self.next
    }

    /// When to ask [`Self::rings`].
    pub fn look(&self) -> Instant {
        self.look
    }

    /// Whether its time has come; if not, there is another time to look.
    pub fn rings(&mut self, wall: SystemTime, now: Instant) -> bool {
        self.look = look_at(self.next, wall, now);
        wall >= self.next
    }
}

fn look_at(next: SystemTime, wall: SystemTime, now: Instant) -> Instant {
    now + next.duration_since(wall).unwrap_or_default().min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foundation::rfc3339;

    fn next(cron: &str, after: &str) -> String {
        let schedule = Schedule::parse(cron).expect("valid");
        let after = rfc3339::parse(after).expect("a time");
        rfc3339::format(schedule.after(after, &Utc).expect("it comes"))
    }

    #[test]
    fn five_fields_are_minutes_and_six_are_seconds() {
        assert!(next("30 4 * * *", "2026-03-01T04:29:59Z").starts_with("2026-03-01T04:30:00"));
        assert!(next("30 4 * * *", "2026-03-01T04:30:00Z").starts_with("2026-03-02T04:30:00"));
        assert!(next("*/10 * * * * *", "2026-03-01T04:30:01Z").starts_with("2026-03-01T04:30:10"));
        assert!(next("0 0 29 2 *", "2026-03-01T00:00:00Z").starts_with("2028-02-29T00:00:00"));
        assert!(next("@daily", "2026-03-01T04:30:01Z").starts_with("2026-03-02T00:00:00"));
    }

    #[test]
    fn hours_are_those_of_the_zone() {
        let zone = chrono::FixedOffset::east_opt(2 * 3600).expect("a zone");
        let after = rfc3339::parse("2026-03-01T01:00:00Z").expect("a time");
        let found = Schedule::parse("30 4 * * *").expect("valid").after(after, &zone).expect("it comes");
        assert!(rfc3339::format(found).starts_with("2026-03-01T02:30:00"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for wrong in ["", "x", "61 * * * *", "* * * *", "0 0 1 1 * * 2099 1", "0 0 0 1 1 * 2099"] {
            let why = Schedule::parse(wrong).expect_err(wrong);
            assert!(why.contains(&format!("{wrong:?} is no cron expression")) && why.contains("30 4 * * *"), "{why}");
        }
        assert_eq!(Schedule::parse("0 0 30 2 *"), Err("\"0 0 30 2 *\" is a time that never comes".to_owned()));
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_and_nothing_rings_early() {
        let schedule = Schedule::parse("0 0 0 * * *").expect("valid");
        let (wall, now) = (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000), Instant::now());
        let mut alarm = Alarm::after(&schedule, wall, now).expect("it comes");
        assert_eq!(alarm.look(), now + LONGEST_WAIT, "midnight is further away in every zone with whole hours");
        let hour = now + LONGEST_WAIT;
        assert!(!alarm.rings(wall + LONGEST_WAIT, hour));
        assert!(alarm.look() > hour && alarm.look() <= hour + LONGEST_WAIT);
        assert!(alarm.rings(alarm.next(), hour), "the clock was set forward");
        assert!(!alarm.rings(alarm.next() - Duration::from_millis(1), hour));
        assert_eq!(alarm.look(), hour + Duration::from_millis(1));
    }
}
