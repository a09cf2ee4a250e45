//! What is counted, and the port where Prometheus reads it (OpenMetrics text).

use std::{convert::Infallible, sync::Arc};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::io::ACCEPT_PAUSE;

/// Scrapes answered at once.
const MAX_SCRAPES: usize = 4;

/// Which service a session is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the names are the values of the label")]
pub enum Protocol {
    smtp,
    imap,
    pop3,
}

impl Protocol {
    /// The name, as in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::smtp => "smtp",
            Self::imap => "imap",
            Self::pop3 => "pop3",
        }
    }
}

/// A protocol.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProtocol {
    pub protocol: Protocol,
}

/// A protocol, and how something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    pub protocol: Protocol,
    pub outcome: &'static str,
}

/// How something ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    pub outcome: &'static str,
}

/// Everything the daemon's own drivers count.
#[derive(Debug, Default)]
pub struct Metrics {
    pub connections: Family<ByProtocol, Counter>,
    pub sessions: Family<ByProtocol, Gauge>,
    /// Ends that were not the ordinary one: timeouts, broken connections, failed handshakes, limits.
    pub session_errors: Family<ByOutcome, Counter>,
    pub recipients: Family<Outcome, Counter>,
    pub messages: Family<Outcome, Counter>,
    pub message_bytes: Counter,
    pub logins: Family<ByOutcome, Counter>,
    pub proxied_bytes: Family<ByOutcome, Counter>,
}

impl Metrics {
    /// Counts one session error.
    pub fn session_error(&self, protocol: Protocol, outcome: &'static str) {
        self.session_errors.get_or_create(&ByOutcome { protocol, outcome }).inc();
    }

    /// Sessions open now.
    #[must_use]
    pub fn open_sessions(&self, protocol: Protocol) -> i64 {
        self.sessions.get_or_create(&ByProtocol { protocol }).get()
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Connections accepted", self.connections.clone());
        registry.register("sessions", "Sessions open now", self.sessions.clone());
        registry.register("session_errors", "Sessions that ended badly, by cause", self.session_errors.clone());
        registry.register("recipients", "RCPT commands, by answer", self.recipients.clone());
        registry.register("messages", "Messages, by the reply after their content", self.messages.clone());
        registry.register("message_bytes", "Octets of message content received", self.message_bytes.clone());
        registry.register("logins", "Logins through the proxy, by outcome", self.logins.clone());
        registry.register("proxied_bytes", "Octets of proxied sessions, by direction", self.proxied_bytes.clone());
    }
}

/// All that a scrape reads: the drivers' counters and what `collectors` find at that moment.
#[must_use]
pub fn registry(metrics: &Metrics, collectors: Vec<Box<dyn Collector>>) -> Registry {
    let mut registry = Registry::with_prefix("autocluster");
    metrics.register(&mut registry);
    for collector in collectors {
        registry.register_collector(collector);
    }
    registry
}

/// Answers `GET /metrics` until the task is dropped.
pub async fn serve(listener: TcpListener, registry: Registry) {
    let registry = Arc::new(registry);
    let scrapes = Arc::new(Semaphore::new(MAX_SCRAPES));
    loop {
        let Ok(permit) = Arc::clone(&scrapes).acquire_owned().await else { return };
        let Ok((stream, _peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&request, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            // A scraper that hangs up is its own problem.
            let _served = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.method() != Method::GET || request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => {
            let kind = header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            *response.body_mut() = Full::from(text);
        }
        Err(_e) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_names_every_family() {
        let metrics = Metrics::default();
        metrics.session_error(Protocol::imap, "timeout");
        metrics.message_bytes.inc_by(7);
        let registry = registry(&metrics, vec![]);
        let get = |path: &str| answer(&Request::get(path).body(()).unwrap(), &registry);
        assert_eq!(get("/metrics").status(), StatusCode::OK);
        assert_eq!(get("/").status(), StatusCode::NOT_FOUND);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("autocluster_session_errors_total{protocol=\"imap\",outcome=\"timeout\"} 1"), "{text}");
        assert!(text.contains("autocluster_message_bytes_total 7"), "{text}");
    }
}
