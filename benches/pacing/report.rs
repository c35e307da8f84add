//! The table, printed as Markdown with the bounds of its figures; docs/rate-control.md has the figures.

use crate::rows::{Bound, Figure, Row, Unit};

/// A row played with all its seeds: the means of its figures, and the worst of each.
#[derive(Debug)]
pub struct Played {
    /// The row's name.
    pub name: &'static str,
    /// Its floor.
    pub floor: Option<f64>,
    /// The means.
    pub means: Vec<Figure>,
    /// The worst, as the bound sees it.
    pub worst: Vec<f64>,
}

impl Played {
    /// Plays a row.
    pub fn new(row: &Row, seeds: u64) -> Played {
        let runs: Vec<Vec<Figure>> = (1..=seeds).map(row.play).collect();
        let of = |index: usize| runs.iter().map(move |run| run[index].value);
        let mean =
            |(index, figure): (usize, &Figure)| Figure { value: of(index).sum::<f64>() / seeds as f64, ..*figure };
        let worst = |(index, figure): (usize, &Figure)| match figure.bound {
            Bound::AtLeast(_) => of(index).fold(f64::INFINITY, f64::min),
            _ => of(index).fold(f64::NEG_INFINITY, f64::max),
        };
        Played {
            name: row.name,
            floor: row.floor,
            means: runs[0].iter().enumerate().map(mean).collect(),
            worst: runs[0].iter().enumerate().map(worst).collect(),
        }
    }

    /// The figures whose mean misses its bound.
    pub fn missed(&self) -> impl Iterator<Item = &Figure> {
        self.means.iter().filter(|figure| !figure.bound.holds(figure.value))
    }
}

/// One line of the table.
pub fn line(played: &Played) -> String {
    let figure = |(figure, worst): (&Figure, &f64)| {
        let value = written(figure.unit, figure.value);
        match figure.bound {
            Bound::Reported => format!("{} {value}", figure.name),
            Bound::AtLeast(bound) => bounded(figure, &value, '≥', bound, *worst),
            Bound::AtMost(bound) => bounded(figure, &value, '≤', bound, *worst),
        }
    };
    let figures: Vec<String> = played.means.iter().zip(&played.worst).map(figure).collect();
    let floor = played.floor.map_or_else(String::new, |floor| written(Unit::Percent, floor));
    format!("| {} | {} | {floor} |", played.name, figures.join("; "))
}

fn bounded(figure: &Figure, value: &str, sign: char, bound: f64, worst: f64) -> String {
    let mark = if figure.bound.holds(figure.value) { "" } else { " MISSED" };
    let (bound, worst) = (written(figure.unit, bound), written(figure.unit, worst));
    format!("{} **{value}**{mark} ({sign} {bound}; {worst})", figure.name)
}

fn written(unit: Unit, value: f64) -> String {
    match unit {
        _ if value.is_infinite() => "never".to_owned(),
        Unit::Share => format!("{value:.3}"),
        Unit::Percent => format!("{:.2} %", 100.0 * value),
        Unit::Seconds => format!("{value:.0} s"),
    }
}
