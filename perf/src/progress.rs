//! A bar for what takes longer than a moment; nothing where nobody looks.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A bar comes only after this time: what is over sooner needs none.
const AFTER: Duration = Duration::from_millis(700);

/// Who watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Watch {
    Bars,
    Nothing,
}

impl Watch {
    /// Bars on standard error if that is a terminal.
    pub fn terminal() -> Self {
        if std::io::stderr().is_terminal() { Self::Bars } else { Self::Nothing }
    }
}

/// What the bar counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    Bytes,
    Milliseconds,
}

/// The progress of one step. Gone from the screen when dropped.
pub struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    what: String,
    told: String,
    total: u64,
    unit: Unit,
    watch: Watch,
}

impl Progress {
    pub fn new(watch: Watch, what: impl Into<String>, total: u64, unit: Unit) -> Self {
        let (what, told) = (what.into(), String::new());
        Self { bar: None, started: Instant::now(), what, told, total, unit, watch }
    }

    /// `done` of the total is done.
    pub fn at(&mut self, done: u64) {
        self.tell(done, String::new);
    }

    /// The same, and how it goes, which is put behind what is done.
    pub fn tell(&mut self, done: u64, how: impl FnOnce() -> String) {
        if self.watch == Watch::Nothing || (self.bar.is_none() && self.started.elapsed() < AFTER) {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(self.total).with_message(self.what.clone());
            bar.set_style(style(self.unit));
            bar
        });
        let how = how();
        if how != self.told {
            bar.set_message(format!("{}{how}", self.what));
            self.told = how;
        }
        bar.set_position(done.min(self.total));
    }
}

fn style(unit: Unit) -> ProgressStyle {
    let template = match unit {
        Unit::Bytes => "{msg} [{wide_bar}] {binary_bytes} of {binary_total_bytes}, {eta} to go",
        Unit::Milliseconds => "{msg} [{wide_bar}] {eta} to go",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
