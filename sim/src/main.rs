//! Many simulated lives of chains, one a seed: `cargo run --release -p corefs-sim -- --seeds 100000`.

use clap::Parser;
use corefs_sim::chain::Config;
use corefs_sim::lives::{Lives, all, replay, seed_here};
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

/// Simulates lives of chains of replicas under every kind of fault, and checks that nothing acknowledged is lost.
#[derive(Parser, Debug)]
#[command(name = "corefs-sim", version)]
struct Options {
    /// How many lives, each from a seed of its own.
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1, value_name = "N")]
    first: u64,
    /// Replays the life of this seed alone, bit for bit.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Lives at the same time; as many as there are cores if it isn't given.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let (first, seeds) = options.seed.map_or((options.first, options.seeds), |seed| (seed, 1));
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        if let Some(seed) = seed_here() {
            println!("FAILED: seed {seed} panicked\nreplay: {}", replay(seed));
        }
    }));
    let terminal = std::io::stderr().is_terminal();
    let lives = all(first, seeds, jobs, Config::default(), |over| {
        if terminal && (over % 10 == 0 || over == seeds) {
            // A line that can't be shown isn't worth a word.
            let _shown = write!(std::io::stderr(), "\r{over} of {seeds} lives");
        }
    });
    if terminal {
        eprintln!();
    }
    report(&lives, first, options.json)
}

fn report(lives: &Lives, first: u64, json: bool) -> ExitCode {
    if json {
        println!("{}", lives.json());
    } else {
        println!("first seed {first}");
        print!("{}", lives.table());
    }
    let Some((seed, what)) = &lives.failure else { return ExitCode::SUCCESS };
    if !json {
        println!("FAILED: {what}");
        println!("replay: {}", replay(*seed));
    }
    ExitCode::FAILURE
}
