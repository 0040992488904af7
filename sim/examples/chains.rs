//! Many simulated lives of a chain, one a seed: `cargo run --release -p corefs-sim --example chains -- --seeds 1000`.
//!
//! `--first N` begins with another seed than 1, `--seed N` replays one, bit for bit.

use corefs_sim::chain::{Config, Counts, run};
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let (mut first, mut seeds) = (1, 100);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--seeds", Some(value)) => seeds = value,
            ("--first", Some(value)) => first = value,
            ("--seed", Some(value)) => (first, seeds) = (value, 1),
            _ => {
                eprintln!("usage: chains [--seeds N] [--first N] | --seed N");
                return ExitCode::from(2);
            }
        }
    }
    let began = Instant::now();
    let mut lives = Vec::new();
    for seed in first..first + seeds {
        let outcome = std::panic::catch_unwind(|| run(seed, Config::default()));
        let failed = match outcome {
            Ok(Ok(counts)) => {
                lives.push(counts);
                continue;
            }
            Ok(Err(what)) => what,
            Err(_) => "it panicked, see above".into(),
        };
        println!("FAILED: {failed}");
        println!("replay: cargo run --release -p corefs-sim --example chains -- --seed {seed}");
        return ExitCode::from(1);
    }
    report(&lives, began.elapsed().as_secs_f64());
    ExitCode::SUCCESS
}

fn report(lives: &[Counts], took: f64) {
    let lists: Vec<_> = lives.iter().map(Counts::list).collect();
    let seconds: f64 = lives.iter().map(|counts| counts.milliseconds as f64 / 1000.0).sum();
    println!(
        "{} lives, {seconds:.0} simulated seconds in {took:.1}: {:.0} a second",
        lives.len(),
        seconds / took
    );
    println!("{:<20} {:>10} {:>10} {:>10} {:>10}", "of one life", "least", "median", "most", "sum");
    for (at, (name, _)) in Counts::default().list().iter().enumerate() {
        let mut values: Vec<u64> = lists.iter().map(|list| list[at].1).collect();
        values.sort_unstable();
        let (least, most) = (values.first().copied().unwrap_or(0), values.last().copied().unwrap_or(0));
        let (median, sum) = (values.get(values.len() / 2).copied().unwrap_or(0), values.iter().sum::<u64>());
        println!("{name:<20} {least:>10} {median:>10} {most:>10} {sum:>10}");
    }
}
