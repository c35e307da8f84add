//! Rate against time, as an SVG: no dependency, some lines and words.

use std::fmt::Write as _;

/// One curve.
#[derive(Debug)]
pub struct Curve {
    /// Its content.
    pub name: &'static str,
    /// Its colour.
    pub colour: &'static str,
    /// A value for each step of time.
    pub values: Vec<f64>,
}

/// One picture below another.
#[derive(Debug)]
pub struct Panel {
    /// The events.
    pub title: &'static str,
    /// Seconds between two values.
    pub step: f64,
    /// Messages per second at the top.
    pub top: f64,
    /// The curves.
    pub curves: Vec<Curve>,
}

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const ABOVE: f64 = 26.0;
const BELOW: f64 = 24.0;

/// The whole drawing.
pub fn svg(panels: &[Panel]) -> String {
    let height = panels.len() as f64 * HEIGHT;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        // Writing to a String does not fail.
        let _ = draw(&mut text, panel, index as f64 * HEIGHT);
    }
    text + "</svg>\n"
}

fn draw(text: &mut String, panel: &Panel, down: f64) -> std::fmt::Result {
    let steps = panel.curves.iter().map(|curve| curve.values.len()).max().unwrap_or(1).max(1) as f64;
    let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - ABOVE - BELOW);
    let x = |step: f64| LEFT + width * step / steps;
    let y = |value: f64| down + ABOVE + height * (1.0 - (value / panel.top).min(1.0));
    writeln!(text, "<text x=\"{LEFT}\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", down + 16.0, panel.title)?;
    let mut right = WIDTH - RIGHT;
    for curve in panel.curves.iter().rev() {
        right -= 6.4 * curve.name.len() as f64 + 12.0;
        writeln!(
            text,
            "<text x=\"{right:.0}\" y=\"{:.0}\" fill=\"{}\">{}</text>",
            down + 16.0,
            curve.colour,
            curve.name
        )?;
    }
    for part in 0..=4 {
        let value = panel.top * f64::from(part) / 4.0;
        let at = y(value);
        writeln!(text, "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT)?;
        writeln!(text, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", LEFT - 5.0, at + 4.0)?;
    }
    let minutes = steps * panel.step / 60.0;
    for minute in (0..=minutes as u32).step_by(2) {
        let at = x(f64::from(minute) * 60.0 / panel.step);
        writeln!(
            text,
            "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{minute} min</text>",
            down + HEIGHT - 8.0
        )?;
    }
    for curve in &panel.curves {
        let mut path = String::new();
        for (step, value) in curve.values.iter().enumerate() {
            write!(path, "{}{:.1} {:.1}", if step == 0 { 'M' } else { 'L' }, x(step as f64 + 0.5), y(*value))?;
        }
        writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.3\"/>", curve.colour)?;
    }
    Ok(())
}
