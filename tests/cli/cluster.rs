//! `nmem sweep` on more than one machine, as far as no Slurm is needed: shares, what an array's environment may say, the
//! script, `--collect`.

use super::{Desk, Ran, tokens};

const GRID: &str = "[fixed]\ndata = \"tokens.npy\"\n[grid]\nchunk_size = [2, 4]\nseed = [1, 2, 3]\n";

fn desk() -> Desk {
    let desk = Desk::new();
    desk.npy("tokens.npy", &tokens(&[40, 4], 1));
    desk.file("grid.toml", GRID);
    desk
}

/// In a task of an array.
fn task(desk: &Desk, line: &str, variables: &[(&str, &str)]) -> Ran {
    let mut command = desk.command(line);
    command.envs(variables.iter().copied());
    Desk::finish(command)
}

fn slurm<'a>(id: &'a str, min: &'a str, max: &'a str, count: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("SLURM_ARRAY_TASK_ID", id),
        ("SLURM_ARRAY_TASK_MIN", min),
        ("SLURM_ARRAY_TASK_MAX", max),
        ("SLURM_ARRAY_TASK_COUNT", count),
    ]
}

fn runs(desk: &Desk, folder: &str) -> usize {
    desk.csv(&format!("{folder}/results.csv")).rows.len()
}

#[test]
fn shares_make_the_whole() {
    let desk = desk();
    desk.ok("sweep grid.toml --out whole");
    desk.ok("sweep grid.toml --out shares --shard 2/2");
    assert_eq!(runs(&desk, "shares"), 3);
    let ran = desk.run("sweep --collect shares");
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.err.lines().filter(|line| line.starts_with("error: missing ")).count(), 3, "{}", ran.err);
    assert!(ran.err.contains("(chunk_size=2 seed=1)"), "{}", ran.err);
    assert!(ran.out.contains("6: 3 finished, 3 missing, 0 failed or diverged"), "{}", ran.out);
    let json = desk.run("sweep --collect shares --no-plots --format json");
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["missing"].as_array().unwrap().len(), 3);

    desk.ok("sweep grid.toml --out shares --shard 1/2");
    desk.ok("sweep --collect shares");
    assert!(desk.path("shares/plots/loss_before_mean.svg").is_file());
    let [whole, shares] = ["whole", "shares"].map(|folder| desk.csv(&format!("{folder}/results.csv")));
    assert_eq!(whole.header, shares.header);
    for column in whole.header.iter().filter(|name| !["tokens_per_s", "wall_s"].contains(&&name[..])) {
        assert_eq!(whole.texts(column), shares.texts(column), "{column}");
    }
}

#[test]
fn an_array_says_the_share() {
    let desk = desk();
    let ran = task(&desk, "sweep grid.toml --out a", &slurm("1", "0", "1", "2"));
    assert_eq!((ran.code, runs(&desk, "a")), (Some(0), 3), "{}", ran.err);
    assert_eq!(ran.err, "note: share 2/2: SLURM_ARRAY_TASK_ID is 1 (--no-shard does all runs)\n");
    // What is said outright counts.
    let ran = task(&desk, "sweep grid.toml --out b --shard 1/6", &slurm("3", "3", "7", "2"));
    assert_eq!((ran.code, &ran.err[..], runs(&desk, "b")), (Some(0), "", 1));
    let ran = task(&desk, "sweep grid.toml --out c --no-shard", &slurm("3", "3", "7", "2"));
    assert_eq!((ran.code, &ran.err[..], runs(&desk, "c")), (Some(0), "", 6));
    let ran = task(&desk, "sweep grid.toml --out d --shards 3", &[("HQ_TASK_ID", "3")]);
    assert_eq!((ran.code, runs(&desk, "d")), (Some(0), 2), "{}", ran.err);
    let ran = task(&desk, "sweep grid.toml --out e", &[("HQ_TASK_ID", "3")]);
    assert_eq!((ran.code, runs(&desk, "e")), (Some(0), 6));
    assert_eq!(ran.err, "note: HQ_TASK_ID is set, but not --shards N: this task does all runs\n");

    // HyperQueue's workers in a Slurm array: their tasks inherit its variables.
    let both: Vec<_> = slurm("1", "1", "4", "4").into_iter().chain([("HQ_TASK_ID", "2")]).collect();
    let ran = task(&desk, "sweep grid.toml --out g --shards 3", &both);
    assert_eq!(ran.err, "note: share 2/3: HQ_TASK_ID is 2 (--no-shard does all runs)\n");
    let ran = desk.ok("sweep grid.toml --shard 1/3 --dry-run");
    assert!(ran.out.ends_with("2 runs, 0 of them done\n"), "{}", ran.out);

    // --array=3,7
    let before = desk.contents();
    let ran = task(&desk, "sweep grid.toml --out f", &slurm("3", "3", "7", "2"));
    assert_eq!(
        desk.one_error(&ran, 2, "--array=3,7"),
        "SLURM_ARRAY_TASK_ID: expected an array without gaps, whose tasks are the shares, got task 3 of 2 between 3 and 7: \
         say --shard I/N, or --no-shard for all runs"
    );
    assert!(desk.contents() == before);
}

#[test]
fn the_script_is_shown() {
    let desk = desk();
    let before = desk.contents();
    let ran = desk.ok(
        "sweep grid.toml seed=1,2 --out s --slurm-dry-run --shards 3 --cpus-per-task 8 --sbatch-arg=--mem=2G",
    );
    assert!(desk.contents() == before, "nothing is written");
    let here = desk.path(".").canonicalize().unwrap();
    for line in [
        "#SBATCH --array=1-3".to_owned(),
        "#SBATCH --cpus-per-task=8".to_owned(),
        "#SBATCH --mem=2G".to_owned(),
        format!("cd -- {} || exit 2", here.display()),
    ] {
        assert!(ran.out.lines().any(|other| other == line), "{line} in {}", ran.out);
    }
    let last = ran.out.lines().last().unwrap();
    assert!(last.contains(&format!(" sweep {}/grid.toml seed=1,2 ", here.display())), "{last}");
    assert!(last.ends_with("--shard \"$SLURM_ARRAY_TASK_ID/3\" -j \"${SLURM_CPUS_PER_TASK:-1}\""), "{last}");
}

#[test]
fn refused() {
    let desk = desk();
    for (arguments, expected) in [
        (
            "grid.toml --shards 3",
            "--shards: expected a task of an array, or --slurm, got no SLURM_ARRAY_TASK_ID and no HQ_TASK_ID (say --shard I/N)",
        ),
        ("grid.toml --time 3", "--time: expected --slurm or --slurm-dry-run beside it, got neither"),
        (
            "grid.toml --shard 1/2 --force",
            "--force: share 1/2 would remove the results of the others; use --force without shares",
        ),
        (
            "grid.toml --slurm-dry-run --sbatch-arg=-a1-9",
            "--sbatch-arg: expected an option of sbatch that is not this command's own, as --mem=4G, got -a1-9",
        ),
        ("grid.toml --slurm-dry-run --shards 0", "--shards: expected at least 1, got 0"),
        ("grid.toml --slurm-dry-run -j 2", "--jobs: expected --cpus-per-task beside --slurm, got --jobs"),
        (
            "grid.toml --shard 3/2",
            "invalid value '3/2' for '--shard <I/N>': expected I/N with I from 1 to N (see --help)",
        ),
        (
            "--collect absent --shard 1/2",
            "--collect: expected neither shares nor --slurm beside it, got a share",
        ),
    ] {
        assert_eq!(desk.refused(&format!("sweep {arguments}")), expected, "{arguments}");
    }
    let message = desk.refused("sweep --collect absent");
    assert!(message.starts_with("absent: expected the folder of a sweep"), "{message}");
    let mut command = desk.command("sweep grid.toml --out s --slurm");
    command.env("PATH", desk.path("."));
    let message = desk.one_error(&Desk::finish(command), 2, "--slurm");
    assert!(
        message.starts_with("--slurm: expected sbatch to submit the job (--slurm-dry-run prints it), got "),
        "{message}"
    );
}
