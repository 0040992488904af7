//! Flags as people type them.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

fn parse(line: &str) -> std::result::Result<Verb, String> {
    let words = std::iter::once("perf").chain(line.split(' '));
    Cli::try_parse_from(words).map(|cli| cli.verb).map_err(|error| error.to_string())
}

fn access(verb: &Verb) -> Access {
    match verb {
        Verb::Randread(_) => Access::Randread,
        Verb::Randwrite(_) => Access::Randwrite,
        Verb::Seqread(_) => Access::Seqread,
        _ => Access::Seqwrite,
    }
}

fn load(line: &str) -> Result<Workload> {
    let verb = parse(line).unwrap();
    if let Verb::Mixed(args) = &verb {
        return args.workload(args.load.run.size.map_or(2 << 30, |size| size.0));
    }
    let (Verb::Randread(args) | Verb::Randwrite(args) | Verb::Seqread(args) | Verb::Seqwrite(args)) = &verb
    else {
        panic!("{line} isn't a load");
    };
    args.workload(access(&verb), args.run.size.map_or(2 << 30, |size| size.0))
}

#[test]
fn the_defaults_are_the_main_measurement() {
    let run = load("randread --manager 127.0.0.1:7400").unwrap();
    assert_eq!((run.block, run.depth, run.batch, run.lanes()), (4096, 128, 1, 128));
    let run = load("seqwrite").unwrap();
    assert_eq!((run.block, run.depth, run.batch), (1 << 20, 8, 1));
    assert_eq!(load("randread --depth 4 --batch 4").unwrap().lanes(), 1);
    assert_eq!(load("randread --size 10000").unwrap().working_set, 8192);
}

#[test]
fn every_flag_of_the_command_is_there() {
    let line = "randread --manager 10.0.0.1:1,10.0.0.2:1 --path /x --size 8GiB --block 8KiB --depth 64 --batch 8 \
                --cores 2 --seconds 0.5 --runtime-warmup 0 --rate 1000 --verify --seed 9 --json out.json";
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let run = load(&line).unwrap();
    assert_eq!((run.working_set, run.block, run.depth, run.batch, run.cores), (8 << 30, 8192, 64, 8, 2));
    assert!(run.verify && run.rate == Some(1000.0) && run.seed == 9);
    let Verb::Randread(args) = parse(&line).unwrap() else { panic!() };
    assert_eq!(args.managers().unwrap().len(), 2);
    assert!(args.verify);
    assert_eq!(parse(&line).unwrap().json(), Json::File(Path::new("out.json")));
    assert_eq!(parse("disk --json").unwrap().json(), Json::Stdout);
    assert_eq!(parse("meta --local .").unwrap().json(), Json::Nowhere);
    assert_eq!(parse("diff a b --json").unwrap().json(), Json::Stdout);
    for line in
        ["disk --html x", "mixed --html x", "meta --html x", "compare disk --html x", "report a --html x"]
    {
        let verb = parse(line).unwrap();
        assert_eq!(verb.outputs().unwrap().html.as_deref(), Some(Path::new("x")), "{line}");
    }
}

#[test]
fn what_the_native_client_can_do_a_mounted_file_cannot() {
    for (line, block) in [
        ("randread --block 512", 512),
        ("randwrite --block 12345 --unaligned", 12345),
        ("seqread --block 16MiB --files 3", 16 << 20),
    ] {
        assert_eq!(load(&format!("{line} --manager a:1")).unwrap().block, block);
        assert!(load(line).unwrap_err().message.contains("--manager"), "{line}");
        assert!(load(&format!("{line} --manager a:1 --mounted")).is_err(), "{line}");
    }
    let run = load("mixed --reads 30 --files 7 --size 1MiB --zipf 0.99 --zipf-over files").unwrap();
    assert_eq!((run.direction, run.files), (Direction::Mixed { reads: 30 }, 7));
    assert_eq!(run.working_set, (1 << 20) / 7 / 4096 * 4096 * 7);
    assert_eq!(run.skew, Some(Skew { theta: 0.99, over: Over::Files }));
    assert_eq!(load("mixed").unwrap().direction, Direction::Mixed { reads: 70 });
}

#[test]
fn nonsense_is_refused_with_its_flag() {
    for (line, flag) in [
        ("randread --block 5000", "--block"),
        ("randread --block 4MiB", "--block"),
        ("randread --depth 0", "--depth"),
        ("randread --depth 5000", "--depth"),
        ("randread --depth 2 --cores 4", "--depth"),
        ("randread --cores 0", "--cores"),
        ("randread --size 100", "--size"),
        ("randread --batch 0", "--batch"),
        ("randread --batch 257", "--batch"),
        ("randread --batch 64 --depth 32", "--batch"),
        ("randwrite --batch 2", "--batch"),
        ("randread --seconds 0", "--seconds"),
        ("randread --seconds NaN", "--seconds"),
        ("randread --seconds 1e300", "--seconds"),
        ("randread --runtime-warmup=-1", "--runtime-warmup"),
        ("randread --rate 0", "--rate"),
        ("randread --rate inf", "--rate"),
        ("randwrite --verify --size 1MiB", "--verify"),
        ("mixed --verify --size 1MiB", "--verify"),
        ("mixed --batch 2", "--batch"),
        ("randread --manager a:1 --block 511", "--block"),
        ("randread --manager a:1 --block 17MiB", "--block"),
        ("randread --unaligned", "--unaligned"),
        ("randread --manager a:1 --unaligned --size 4KiB", "--size"),
        ("randread --files 0", "--files"),
        ("randread --files 65537", "--files"),
        ("randread --files 1000 --size 1MiB", "--size"),
        ("randread --zipf 0", "--zipf"),
        ("randread --zipf NaN", "--zipf"),
        ("seqread --zipf 1", "--zipf"),
        ("randread --zipf 1 --zipf-over files", "--files"),
        ("randwrite --zipf 1 --zipf-over files --files 2 --cores 3", "--files"),
    ] {
        let error = load(line).expect_err(line);
        assert!(error.code == ErrorCode::BadConfig && error.message.contains(flag), "{line}: {error}");
    }
    for (line, what) in [
        ("randread --size 0", "makes no sense"),
        ("randread --size=-1", "negative"),
        ("randread --size 99999999PiB", "16EiB"),
        ("randread --size 4furlongs", "no unit"),
        ("randread --sise 4KiB", "unexpected argument"),
        ("disk --access backwards", "possible values"),
        ("disk --zipf 1", "unexpected argument"),
        ("mixed --reads 0", "1..=99"),
        ("mixed --reads 100", "1..=99"),
        ("randread --zipf-over files", "--zipf"),
        ("diff one.json", "BASELINE"),
    ] {
        let error = parse(line).expect_err(line);
        assert!(error.contains(what), "{line}: {error}");
    }
}

#[test]
fn trees_are_planned_or_refused() {
    let plan = |line: &str| match parse(line).unwrap() {
        Verb::Meta(args) => args.plan(),
        _ => panic!("{line}"),
    };
    let line = "meta --local /x --files 100 --directories 5 --deep 3 --threads 8 --bytes 4KiB";
    assert_eq!(
        plan(line),
        Ok(Plan { files: 100, directories: 5, deep: 3, lanes: 8, shuffle: false, bytes: 4096 })
    );
    for (line, flag) in [
        ("meta --local /x --files 0", "--files"),
        ("meta --local /x --files 10 --directories 11", "--directories"),
        ("meta --local /x --directories 0", "--directories"),
        ("meta --local /x --deep 101", "--deep"),
        ("meta --local /x --threads 0", "--threads"),
        ("meta --local /x --threads 513", "--threads"),
        ("meta --manager a:1 --cores 0", "--cores"),
        ("meta --local /x --phases stat", "--phases"),
        ("meta --local /x --phases mkdir,create,read", "--bytes"),
        ("meta --local /x --bytes 1GiB", "--bytes"),
        ("meta --local /x --phases mkdir,create,unlink", "--phases"),
        ("meta", "--local"),
    ] {
        let error = plan(line).expect_err(line);
        assert!(error.code == ErrorCode::BadConfig && error.message.contains(flag), "{line}: {error}");
    }
}

#[test]
fn secrets_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let Verb::Randread(mut args) = parse("randread").unwrap() else { panic!() };
    assert_eq!(args.secret(), Ok(None));
    args.secret_file = Some(path.clone());
    assert!(args.secret().is_err());
    std::fs::write(&path, "ab".repeat(32) + "\n").unwrap();
    assert!(args.secret().unwrap().is_some());
    std::fs::write(&path, "short").unwrap();
    assert_eq!(args.secret().unwrap_err().code, ErrorCode::BadConfig);
}
