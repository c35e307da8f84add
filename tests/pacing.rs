//! The table of `cargo bench --bench pacing`, held as bounds: the same code, in virtual time.
//!
//! A bound holds for the mean of the seeds, as in the table. Nothing here depends on how fast this machine is.

use crate::report::Played;
use crate::rows::{BASELINES, ROWS, Row, Who};
use crate::world::{Millis, Upstream};

#[path = "../benches/pacing/measure.rs"]
mod measure;
#[path = "../benches/pacing/others.rs"]
mod others;
#[path = "../benches/pacing/relay.rs"]
mod relay;
#[path = "../benches/pacing/report.rs"]
mod report;
#[path = "../benches/pacing/rows.rs"]
mod rows;
#[path = "../benches/pacing/world.rs"]
mod world;

/// Runs per row: as many as the table has by default, but for those of an hour and more.
const SEEDS: u64 = 48;
const SEEDS_OF_LONG: u64 = 6;
const LONG: &[&str] = &["1 relay, an hour at a tenth of the quota", "the same with plain turns"];
/// A fleet's messages take time to simulate: the runs of a row by the number of relays. Its figures vary less.
const SEEDS_OF_FLEET: &[(&str, u64)] = &[("fleet of 100", 1), ("fleet of 20", 3), ("fleet of ", 12)];

fn row(name: &str) -> &'static Row {
    ROWS.iter().chain(BASELINES).find(|row| row.name == name).expect("a row of that name")
}

/// What falls short of its goal, and what is held instead. Where one of five was there before the others it gives way
/// within a minute; what is left is chance: a relay is hit some fifteen times in ten minutes, and learns from nothing else.
const SHORT: &[(&str, &str, f64)] = &[("5 relays, started 0.3 s apart", "fairness", 0.93)];

fn holds(name: &str) {
    let of_fleet = SEEDS_OF_FLEET.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, seeds)| *seeds);
    let seeds = of_fleet.unwrap_or(if LONG.contains(&name) { SEEDS_OF_LONG } else { SEEDS });
    let played = Played::new(row(name), seeds);
    for missed in played.missed() {
        let held = SHORT.iter().find(|(row, figure, _)| *row == name && *figure == missed.name);
        assert!(held.is_some_and(|(_, _, least)| missed.value >= *least), "{}", report::line(&played));
    }
}

/// A test for each row that has bounds.
macro_rules! rows {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test]
        fn $test() {
            holds($name);
        })*

        #[test]
        fn every_row_is_held() {
            let tested = [$($name),*];
            assert_eq!(ROWS.iter().map(|row| row.name).collect::<Vec<_>>(), tested);
        }
    };
}

rows! {
    one_relay_uses_the_quota: "1 relay, configured with the true quota",
    one_relay_finds_a_smaller_quota: "1 relay, configured 10, true quota 4",
    one_relay_finds_a_larger_quota: "1 relay, configured 10, true quota 30",
    larger_quota_is_found_soon: "1 relay, configured 10, true quota 30, burst 15",
    five_relays_share: "5 relays",
    relays_started_apart_share: "5 relays, started 0.3 s apart",
    twenty_relays_share: "20 relays",
    hundred_relays_share: "100 relays",
    fleet_of_five_shares_exactly: "fleet of 5",
    fleet_of_twenty_shares_exactly: "fleet of 20",
    fleet_of_a_hundred_shares_exactly: "fleet of 100",
    fleet_of_five_shares_exactly_by_default: "fleet of 5, all settings at their defaults",
    fleet_of_twenty_shares_exactly_by_default: "fleet of 20, all settings at their defaults",
    fleet_of_a_hundred_shares_exactly_by_default: "fleet of 100, all settings at their defaults",
    fleet_of_one_is_as_alone: "fleet of 1",
    fleet_follows_a_changing_quota: "fleet of 5, quota halves, later doubles",
    fleet_finds_the_quota_that_its_relays_disagree_on: "fleet of 5, configured 4 to 30, true quota 10",
    fleet_finds_a_larger_quota: "fleet of 5, configured 10, true quota 30",
    fleet_shares_with_a_relay_that_joins_and_leaves: "fleet of 4, one joins, then leaves",
    fleet_uses_what_idle_relays_leave: "fleet of 5, 4 fall idle, then wake",
    fleet_survives_a_stopped_relay: "fleet of 5, one stopped for a minute",
    fleet_survives_the_loss_of_its_server: "fleet of 5, no server for a minute",
    fleet_survives_a_split: "fleet of 5, split for two minutes",
    fleet_goes_on_beside_callers: "fleet of 5 beside direct callers at 0.5 of the quota",
    headroom_is_left_to_people_by_a_fleet: "fleet of 20, headroom 0.1, beside people",
    changing_quota_is_followed: "quota halves, later doubles, 5 relays",
    what_others_leave_is_taken: "20 busy for 5 minutes, then 19 fall idle",
    outage_ends_without_a_herd: "5-minute outage, 20 relays",
    restart_of_all_with_kept_rates_is_no_herd: "all 20 restart at once, rate kept",
    restart_of_all_with_nothing_is_no_herd: "all 20 restart at once, nothing kept",
    headroom_is_left_to_people_by_one: "1 relay, headroom 0.1, beside people",
    headroom_is_left_to_people_by_twenty: "20 relays, headroom 0.1, beside people",
    raised_quota_is_found_beside_people_by_one: "1 relay, headroom 0.1, the quota doubles",
    raised_quota_is_found_beside_people_by_twenty: "20 relays, headroom 0.1, the quota doubles",
    relay_goes_on_beside_callers_at_0_8: "1 relay beside direct callers at 0.8 of the quota",
    relay_goes_on_beside_callers_at_1_0: "1 relay beside direct callers at 1.0 of the quota",
    relay_goes_on_beside_callers_at_1_2: "1 relay beside direct callers at 1.2 of the quota",
    new_chats_do_not_wait_for_an_old_backlog: "1 relay, an hour at a tenth of the quota",
    plain_turns_are_played_beside_it: "the same with plain turns",
}

#[test]
fn two_runs_of_one_seed_are_the_same_and_those_of_two_are_not() {
    let play = |seed| {
        let mut crowd = rows::crowd(Who::Relays, 5, Millis::MAX, 0.0, seed);
        world::run(&Upstream::plain(), &mut crowd, 120_000, seed)
    };
    assert_eq!(play(1), play(1));
    assert_ne!(play(1), play(2));
}

/// The baselines are what was measured of the real SDKs: standard mode spends nearly all on throttles, adaptive mode
/// some with one client and many with five.
#[test]
fn baselines_behave_as_the_sdks_were_measured_to() {
    let throttled = |name| Played::new(row(name), SEEDS_OF_LONG).means[1].value;
    let (backoff, one, five) =
        (throttled("1 × backoff, full jitter"), throttled("1 × AWS adaptive"), throttled("5 × AWS adaptive"));
    assert!(backoff > 0.3, "{backoff}");
    assert!(one < five && five > 0.1, "{one} {five}");
}
