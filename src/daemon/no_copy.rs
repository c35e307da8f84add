//! A build without the cargo feature `fleet`: no queue has a copy. The types have no value.

use std::convert::Infallible;
use std::time::Duration;

use super::failure::Failure;
use crate::fleet::CopyOptions;
use crate::health::Obstacle;
use crate::metrics::Metrics;
use crate::queue::{self, Queue, QueueThread};
use crate::time::Clock;

/// Never made.
#[derive(Debug)]
pub struct Prepared(Infallible);

/// Never made.
#[derive(Debug)]
pub struct Copy(Infallible);

impl Prepared {
    /// There is nothing to prepare: the configuration refuses `fleet.servers`.
    #[expect(clippy::unused_async, reason = "as in a build with a fleet")]
    pub async fn new(_: Option<&CopyOptions>, _: u64, _: &Clock, _: &Metrics) -> Result<Option<Prepared>, Failure> {
        Ok(None)
    }

    pub async fn again(&mut self) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn start(self, _: &mut QueueThread) -> Result<Copy, Failure> {
        match self.0 {}
    }
}

impl Copy {
    pub async fn ready(&self, _: &Queue) {
        match self.0 {}
    }

    pub fn accept_late(&self, _: Queue, _: &queue::Options) -> impl Future<Output = ()> + Send + use<> {
        match self.0 {}
        #[expect(unreachable_code, reason = "the type of the future")]
        std::future::pending()
    }

    pub fn obstacle(&self) -> Obstacle {
        match self.0 {}
    }

    pub fn grace(&self) -> Duration {
        match self.0 {}
    }

    pub async fn finish(self) {
        match self.0 {}
    }
}
