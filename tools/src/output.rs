//! What people and programs read: errors, JSON, logs, sizes.

use corefs_wire::{Error, ErrorCode, Result};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// Starts the log on standard error.
pub fn start_log(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        Error::new(ErrorCode::BadConfig, format!("--log {filter}: {error}; try error, warn, info or debug"))
    })?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(true).init();
    Ok(())
}

/// Prints an error for a person and gives the exit code: 2 for bad flags and settings, 1 for everything else.
pub fn fail(error: &Error) -> ExitCode {
    eprintln!("corefs: {error}");
    ExitCode::from(if error.code == ErrorCode::BadConfig { 2 } else { 1 })
}

/// Prints a value as JSON on standard output.
pub fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        Error::new(ErrorCode::Internal, format!("this can't be written as JSON: {error}"))
    })?;
    line(&text)
}

/// Prints a line on standard output at once. A reader that has gone away (as in `| head`) is not our failure.
pub fn line(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints rows as a table: columns as wide as they must be, the last as it is.
pub fn table<const N: usize>(rows: &[[String; N]]) -> Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// A size for people: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (bytes.max(1).ilog2() as usize / 10).min(UNITS.len() - 1);
    if unit == 0 {
        return format!("{bytes} B");
    }
    format!("{:.1} {}", bytes as f64 / (1u64 << (10 * unit)) as f64, UNITS[unit])
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_well() {
        let read = [0, 1023, 1024, 1536 << 20, u64::MAX].map(super::size);
        assert_eq!(read, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB", "16384.0 PiB"]);
    }
}
