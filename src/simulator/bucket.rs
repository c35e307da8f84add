//! Quotas as in the gateway: a token bucket for each kind of request.

use crate::time::Timestamp;

use super::request::Operation;

/// AWS's default quotas for the operations that have one of their own: rate and burst.
const CONNECTION: (f64, f64) = (6.0, 9.0);
const DISCONNECT: (f64, f64) = (3.0, 5.0);
const TRANSCRIPT: (f64, f64) = (8.0, 12.0);
/// The default quota of messages, to which those above belong.
const MESSAGES: (f64, f64) = (10.0, 15.0);

/// One bucket for messages and events together, one for each other operation.
#[derive(Debug)]
pub(super) struct Quotas {
    messages: Bucket,
    connections: Bucket,
    disconnects: Bucket,
    transcripts: Bucket,
}

impl Quotas {
    /// Full buckets. A larger quota of messages raises the others in proportion; a smaller one leaves them.
    pub(super) fn new(rate: f64, burst: u32, now: Timestamp) -> Quotas {
        let burst = f64::from(burst);
        let (faster, deeper) = ((rate / MESSAGES.0).max(1.0), (burst / MESSAGES.1).max(1.0));
        let scaled = |(rate, burst): (f64, f64)| Bucket::new(rate * faster, burst * deeper, now);
        Quotas {
            messages: Bucket::new(rate, burst, now),
            connections: scaled(CONNECTION),
            disconnects: scaled(DISCONNECT),
            transcripts: scaled(TRANSCRIPT),
        }
    }

    /// Returns true if one more request may pass; one that may not takes no token.
    pub(super) fn take(&mut self, operation: Operation, now: Timestamp) -> bool {
        match operation {
            Operation::Message | Operation::Event => self.messages.take(now),
            Operation::Connection => self.connections.take(now),
            Operation::Disconnect => self.disconnects.take(now),
            Operation::Transcript => self.transcripts.take(now),
        }
    }
}

#[derive(Debug)]
struct Bucket {
    rate: f64,
    most: f64,
    tokens: f64,
    filled_at: Timestamp,
}

impl Bucket {
    /// A full bucket, never smaller than the refill of one tick of the clock: at a million a second and a burst of 15
    /// the burst would be the limit otherwise.
    fn new(rate: f64, burst: f64, now: Timestamp) -> Bucket {
        let most = burst.max(rate / 1000.0);
        Bucket { rate, most, tokens: most, filled_at: now }
    }

    fn take(&mut self, now: Timestamp) -> bool {
        self.tokens = (self.tokens + self.rate * now.since(self.filled_at).as_secs_f64()).min(self.most);
        self.filled_at = self.filled_at.max(now);
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_000_000);

    fn passed(quotas: &mut Quotas, operation: Operation, now: Timestamp) -> usize {
        (0..1000).filter(|_| quotas.take(operation, now)).count()
    }

    #[test]
    fn burst_passes_at_once_and_the_rate_afterwards() {
        let mut quotas = Quotas::new(10.0, 15, START);
        assert_eq!(passed(&mut quotas, Operation::Message, START), 15);
        assert_eq!(passed(&mut quotas, Operation::Event, START), 0, "events draw on the same bucket");
        assert_eq!(passed(&mut quotas, Operation::Message, Timestamp(START.0 + 500)), 5);
        assert_eq!(passed(&mut quotas, Operation::Message, Timestamp(START.0 + 60_000)), 15);
    }

    #[test]
    fn connections_and_disconnects_have_quotas_of_their_own_that_grow_with_a_larger_one() {
        for (rate, burst, connections, disconnects) in [(10.0, 15, 9, 5), (1.0, 1, 9, 5), (40.0, 60, 36, 20)] {
            let mut quotas = Quotas::new(rate, burst, START);
            assert_eq!(passed(&mut quotas, Operation::Connection, START), connections);
            assert_eq!(passed(&mut quotas, Operation::Disconnect, START), disconnects);
        }
    }

    #[test]
    fn enormous_rate_is_no_limit() {
        let mut quotas = Quotas::new(1e9, 15, START);
        assert_eq!(passed(&mut quotas, Operation::Message, START), 1000);
    }

    #[test]
    fn rate_of_zero_lets_the_burst_pass_and_nothing_more() {
        let mut quotas = Quotas::new(0.0, 15, START);
        assert_eq!(passed(&mut quotas, Operation::Message, START), 15);
        assert_eq!(passed(&mut quotas, Operation::Message, Timestamp(START.0 + 3_600_000)), 0);
    }
}
