//! The two text formats of Prometheus.
//!
//! Our library writes OpenMetrics 1.0. Tools that ask for nothing in particular (`curl`, `promtool check metrics`) read
//! the older format 0.0.4, where a counter's metadata carries the name of its samples and `UNIT` and `EOF` do not exist.

use crate::foundation::metrics::Metrics;

/// Content type of OpenMetrics text.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of the older text format.
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics now, as OpenMetrics for those who accept it, else in the older text format; with the content type.
///
/// # Errors
/// A collector that fails to write.
pub async fn scrape(metrics: &Metrics, accept: &str) -> Result<(&'static str, String), std::fmt::Error> {
    let text = metrics.scrape().await?;
    Ok(if accepts_openmetrics(accept) { (OPENMETRICS, text) } else { (TEXT, to_text(&text)) })
}

/// Whether an `Accept` header asks for OpenMetrics 1.0, which we prefer when it does.
pub fn accepts_openmetrics(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_openmetrics =
            parts.next().is_some_and(|media| media.eq_ignore_ascii_case("application/openmetrics-text"));
        let is_refused = |part: &str| matches!(part.strip_prefix("q="), Some("0" | "0.0" | "0.00" | "0.000"));
        let is_other_version = |part: &str| part.strip_prefix("version=").is_some_and(|v| v != "1.0.0" && v != "0.0.1");
        is_openmetrics && !parts.any(|part| is_refused(part) || is_other_version(part))
    })
}

/// OpenMetrics text as text format 0.0.4.
pub fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help: Option<(&str, &str)> = None;
    for line in openmetrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name), explanation) => help = Some((name, explanation.unwrap_or_default())),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = older(kind);
                if let Some((_, explanation)) = help.take().filter(|(of, _)| *of == name) {
                    push(&mut text, &["# HELP ", name, suffix, " ", explanation]);
                }
                push(&mut text, &["# TYPE ", name, suffix, " ", kind]);
            }
            (Some("#"), Some("UNIT" | "EOF"), _, _) => {}
            _ => push(&mut text, &[line]),
        }
    }
    text
}

/// What the older format calls a type, and what the names of its samples end in.
fn older(kind: &str) -> (&'static str, &str) {
    match kind {
        "counter" => ("_total", "counter"),
        "info" => ("_info", "gauge"),
        "stateset" => ("", "gauge"),
        "unknown" => ("", "untyped"),
        other => ("", other),
    }
}

fn push(text: &mut String, parts: &[&str]) {
    text.extend(parts.iter().copied());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_gets_the_name_of_its_samples() {
        let openmetrics = "# HELP weft_rx_bytes Bytes received.\n# TYPE weft_rx_bytes counter\n# UNIT weft_rx_bytes bytes\n\
                           weft_rx_bytes_total{peer=\"b\"} 7\n# EOF\n";
        let text = "# HELP weft_rx_bytes_total Bytes received.\n# TYPE weft_rx_bytes_total counter\n\
                    weft_rx_bytes_total{peer=\"b\"} 7\n";
        assert_eq!(to_text(openmetrics), text);
    }

    #[test]
    fn gauges_and_infos_keep_their_samples() {
        let openmetrics = "# HELP a A.\n# TYPE a gauge\na 1\n# HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n# EOF\n";
        let text = "# HELP a A.\n# TYPE a gauge\na 1\n# HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n";
        assert_eq!(to_text(openmetrics), text);
    }

    #[test]
    fn openmetrics_is_for_those_who_ask() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert!(accepts_openmetrics(prometheus));
        for other in
            ["", "*/*", "text/plain", "application/openmetrics-text;q=0", "application/openmetrics-text;version=2.0.0"]
        {
            assert!(!accepts_openmetrics(other), "{other}");
        }
    }
}
