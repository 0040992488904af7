//! Throws hostile frames at the listeners of a running cluster, while a well-behaved neighbour at each of them must be answered
//! all the time. `ci/e2e/fuzz.sh` starts the cluster and looks at it afterwards.
//!
//! `corefs-fuzz --frames N --seed S ADDRESS...` exits with 0 if every listener was alive to the end, every neighbour was
//! answered, and every connection that broke the protocol was closed when that was looked at.

mod attack;
mod link;
mod run;

use corefs_net::Address;
use std::process::ExitCode;

struct Options {
    frames: u64,
    seed: u64,
    listeners: Vec<Address>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { frames: 10_000, seed: 1, listeners: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(word) = args.next() {
        let place = match word.as_str() {
            "--frames" => &mut options.frames,
            "--seed" => &mut options.seed,
            address => {
                options.listeners.push(address.parse().map_err(|error| format!("{error}"))?);
                continue;
            }
        };
        let value = args.next().ok_or_else(|| format!("{word} needs a number"))?;
        *place = value.parse().map_err(|_| format!("{word} {value} is not a number"))?;
    }
    if options.listeners.is_empty() {
        return Err("usage: corefs-fuzz [--frames N] [--seed N] ADDRESS...".into());
    }
    Ok(options)
}

fn main() -> ExitCode {
    let outcome = options().and_then(|options| run::all(&options.listeners, options.frames, options.seed));
    match outcome {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("corefs-fuzz: {why}");
            ExitCode::FAILURE
        }
    }
}
