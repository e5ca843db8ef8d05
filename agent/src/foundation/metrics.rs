//! The Prometheus registry of the agent.
//!
//! Counters that live elsewhere (BPF maps, the WireGuard device) are read at scrape: their domain registers a
//! collector over a snapshot and a [`Refresh`] that renews the snapshot just before it is encoded.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Renews a snapshot before a scrape. It must return within a second; a failure shows in the domain's status.
pub type Refresh = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The registry; every domain registers its `Metrics` here once, at start. All names begin with `weft_`.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    refreshes: Arc<Mutex<Vec<Arc<Refresh>>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self { registry: Arc::new(Mutex::new(Registry::with_prefix("weft"))), refreshes: Arc::default() }
    }
}

impl Metrics {
    /// Lets a domain register its metrics.
    pub fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Runs `refresh` before every scrape.
    pub fn before_scrape(&self, refresh: Refresh) {
        self.refreshes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(refresh));
    }

    /// The exposition text (OpenMetrics 1.0), after every refresh has run.
    ///
    /// # Errors
    /// Only if a collector fails to format, which is a defect of it.
    pub async fn scrape(&self) -> Result<String, fmt::Error> {
        let refreshes = self.refreshes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        futures_util::future::join_all(refreshes.iter().map(|refresh| refresh())).await;
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[tokio::test]
    async fn a_scrape_refreshes_first() {
        let metrics = Metrics::default();
        let counter: Counter<u64, AtomicU64> = Counter::default();
        metrics.register(|registry| registry.register("scrapes", "Scrapes seen", counter.clone()));
        let seen = counter.clone();
        metrics.before_scrape(Box::new(move || {
            let seen = seen.clone();
            Box::pin(async move {
                seen.inner().fetch_add(1, Ordering::Relaxed);
            })
        }));
        let text = metrics.scrape().await.expect("the counter formats");
        assert!(text.contains("weft_scrapes_total 1"), "{text}");
    }
}
