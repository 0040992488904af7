//! Simulated power cuts of the chunk store, and the canaries that show that the checks can fail.
//!
//! `power_cuts --cuts 10000 --seed 1` runs that many cuts (in runs of 20 from consecutive seeds) and then each
//! canary until it is caught. `--replay SEED --cuts N [--canary NAME]` runs one seed again.

use corefs_sim::store::{Canary, Counts, run};
use std::process::ExitCode;

/// Cuts of one run: enough that damage done by one recovery meets the next.
const CUTS_PER_RUN: u64 = 20;
/// Runs that a canary may survive.
const CANARY_RUNS_MAX: u64 = 500;

const CANARIES: [Canary; 4] = [
    Canary::FlushRemoved,
    Canary::AcknowledgedBeforeFlush,
    Canary::BlockReusedEarly,
    Canary::PinReleasedEarly,
];

struct Options {
    cuts: u64,
    seed: u64,
    replay: bool,
    canary: Option<Canary>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { cuts: 1000, seed: 1, replay: false, canary: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value} is not a number"));
        match name.as_str() {
            "--cuts" => options.cuts = number()?,
            "--seed" => options.seed = number()?,
            "--replay" => (options.replay, options.seed) = (true, number()?),
            "--canary" => {
                let known = CANARIES.into_iter().find(|canary| format!("{canary:?}") == value);
                options.canary = Some(known.ok_or_else(|| format!("canaries are {CANARIES:?}"))?);
            }
            _ => return Err(format!("unknown option {name}; known are --cuts, --seed, --replay, --canary")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| work(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn work(options: &Options) -> Result<(), String> {
    if options.replay {
        let counts =
            run(options.seed, options.cuts, options.canary).map_err(|failure| failure.to_string())?;
        println!("{counts:#?}");
        return Ok(());
    }
    let mut counts = Counts::default();
    let mut seed = options.seed;
    while counts.cuts < options.cuts {
        let cuts = CUTS_PER_RUN.min(options.cuts - counts.cuts);
        counts.add(&run(seed, cuts, None).map_err(|failure| failure.to_string())?);
        seed += 1;
    }
    println!("{counts:#?}");
    println!("{} power cuts: nothing lost, nothing torn, nothing back from the dead", counts.cuts);
    CANARIES.into_iter().try_for_each(|canary| catch(canary, options.seed))
}

fn catch(canary: Canary, seed: u64) -> Result<(), String> {
    let caught = (seed..seed + CANARY_RUNS_MAX).find_map(|seed| run(seed, CUTS_PER_RUN, Some(canary)).err());
    let failure = caught.ok_or_else(|| format!("the canary {canary:?} lives: the checks are blind to it"))?;
    let runs = failure.seed - seed + 1;
    println!("canary {canary:?} caught in run {runs}, cut {}: {}", failure.cut, failure.what);
    Ok(())
}
