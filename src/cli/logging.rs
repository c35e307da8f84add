//! Log lines on stderr, as JSON or text, from the relay's own events and no library's.
//!
//! Writing never blocks the relay: lines wait for a thread that writes them. Lines that were dropped because stderr did
//! not take them are counted in a metric, and a log line reports them once stderr takes lines again.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use super::log_writer::{LineWriter, LogLines};
use crate::config::Format;

/// The log of this process; dropped, it writes the remaining lines.
#[derive(Debug)]
pub struct Log {
    filter: reload::Handle<Targets, Registry>,
    writer: LineWriter,
}

impl Log {
    /// Starts the log, once in a process.
    ///
    /// # Errors
    /// If it was started before, or the thread cannot be started.
    pub fn start(format: Format, level: Level) -> anyhow::Result<Log> {
        let writer = LineWriter::start(stderr())?;
        let (filter, handle) = reload::Layer::new(own(level));
        tracing_subscriber::registry().with(filter).with(layer(format, writer.lines())).try_init()?;
        Ok(Log { filter: handle, writer })
    }

    /// The number of dropped lines, as it grows.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        self.writer.dropped()
    }

    /// Changes the least important level that is written.
    pub fn set_level(&self, level: Level) {
        // This fails only if the subscriber is gone, and the log with it.
        let _ = self.filter.reload(own(level));
    }
}

fn own(level: Level) -> Targets {
    Targets::new().with_target(env!("CARGO_CRATE_NAME"), LevelFilter::from_level(level))
}

fn layer<S>(format: Format, lines: LogLines) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_target(false);
    match format {
        Format::Json => layer.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
        Format::Text => layer.with_ansi(stderr().is_terminal()).boxed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use tracing::{info, subscriber::with_default};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn line_is_one_flat_object_and_libraries_log_nothing() {
        let page = Page::default();
        let writer = LineWriter::start(page.clone()).unwrap();
        let lines = layer(Format::Json, writer.lines());
        let subscriber = tracing_subscriber::registry().with(own(Level::INFO)).with(lines);
        with_default(subscriber, || {
            let _span = tracing::info_span!("noise").entered();
            info!(event = "accepted", message_id = %"9f86d081-42", attempt = 3, trace_id = None::<&str>, "accepted");
            tracing::debug!("below the level");
            tracing::error!(target: "hyper", "a library");
        });
        drop(writer);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let mut line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text.trim_end()).unwrap();
        assert!(line.remove("timestamp").is_some_and(|time| time.as_str().unwrap().ends_with('Z')));
        let expected = serde_json::json!({
            "level": "INFO", "event": "accepted", "message_id": "9f86d081-42", "attempt": 3, "message": "accepted",
        });
        assert_eq!(serde_json::Value::from(line), expected);
    }
}
