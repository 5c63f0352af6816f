//! `nmem sweep` on more than one machine, as far as no Slurm is needed: shards, what an array's environment may say, the
//! script, `--collect`.

use super::{CommandOutput, Sandbox, Transcript, counts, tokens, without_runs};

const GRID: &str = "[fixed]\ndata = \"tokens.npy\"\n[grid]\nchunk_size = [2, 4]\nseed = [1, 2, 3]\n";

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.npy("tokens.npy", &tokens(&[40, 4], 1));
    sandbox.file("grid.toml", GRID);
    sandbox
}

/// In a task of an array.
fn task(sandbox: &Sandbox, line: &str, variables: &[(&str, &str)]) -> CommandOutput {
    let mut command = sandbox.command(line);
    command.envs(variables.iter().copied());
    Sandbox::finish(command)
}

fn slurm<'a>(id: &'a str, min: &'a str, max: &'a str, count: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("SLURM_ARRAY_TASK_ID", id),
        ("SLURM_ARRAY_TASK_MIN", min),
        ("SLURM_ARRAY_TASK_MAX", max),
        ("SLURM_ARRAY_TASK_COUNT", count),
    ]
}

fn runs(sandbox: &Sandbox, directory: &str) -> usize {
    sandbox.csv(&format!("{directory}/results.csv")).rows.len()
}

#[test]
fn shards_make_the_whole() {
    let sandbox = sandbox();
    sandbox.ok("sweep grid.toml --out whole");
    sandbox.ok("sweep grid.toml --out shares --shard 2/2");
    assert_eq!(runs(&sandbox, "shares"), 3);
    let output = sandbox.run("sweep --collect shares");
    assert_eq!(output.code, Some(1));
    assert_eq!(output.err.lines().count(), 3, "{}", output.err);
    let mut said = Transcript::new();
    said.entry("sweep --collect shares", output.code, &without_runs(&output.err));
    insta::assert_snapshot!(said);
    assert_eq!(counts(output.out.lines().next().unwrap()), [6, 3, 3, 0], "{}", output.out);
    let json = sandbox.run("sweep --collect shares --no-plots --format json");
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(json["missing"].as_array().unwrap().len(), 3);

    sandbox.ok("sweep grid.toml --out shares --shard 1/2");
    sandbox.ok("sweep --collect shares");
    assert!(sandbox.path("shares/plots/loss_before_mean.svg").is_file());
    let [whole, sharded] =
        ["whole", "shares"].map(|directory| sandbox.csv(&format!("{directory}/results.csv")));
    assert_eq!(whole.header, sharded.header);
    for column in whole.header.iter().filter(|name| !["tokens_per_s", "wall_s"].contains(&&name[..])) {
        assert_eq!(whole.texts(column), sharded.texts(column), "{column}");
    }
}

#[test]
fn an_array_task_runs_its_shard() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    let output = task(&sandbox, "sweep grid.toml --out a", &slurm("1", "0", "1", "2"));
    assert_eq!((output.code, runs(&sandbox, "a")), (Some(0), 3), "{}", output.err);
    said.given("SLURM_ARRAY_TASK_ID=1 of 0-1");
    said.ran(&sandbox, "sweep grid.toml --out a", &output);
    // What is said outright counts.
    let output = task(&sandbox, "sweep grid.toml --out b --shard 1/6", &slurm("3", "3", "7", "2"));
    assert_eq!((output.code, &output.err[..], runs(&sandbox, "b")), (Some(0), "", 1));
    let output = task(&sandbox, "sweep grid.toml --out c --no-shard", &slurm("3", "3", "7", "2"));
    assert_eq!((output.code, &output.err[..], runs(&sandbox, "c")), (Some(0), "", 6));
    let output = task(&sandbox, "sweep grid.toml --out d --shards 3", &[("HQ_TASK_ID", "3")]);
    assert_eq!((output.code, runs(&sandbox, "d")), (Some(0), 2), "{}", output.err);
    let output = task(&sandbox, "sweep grid.toml --out e", &[("HQ_TASK_ID", "3")]);
    assert_eq!((output.code, runs(&sandbox, "e")), (Some(0), 6));
    said.given("HQ_TASK_ID=3");
    said.ran(&sandbox, "sweep grid.toml --out e", &output);

    // HyperQueue's workers in a Slurm array: their tasks inherit its variables.
    let both: Vec<_> = slurm("1", "1", "4", "4").into_iter().chain([("HQ_TASK_ID", "2")]).collect();
    let output = task(&sandbox, "sweep grid.toml --out g --shards 3", &both);
    said.given("HQ_TASK_ID=2 SLURM_ARRAY_TASK_ID=1 of 1-4");
    said.ran(&sandbox, "sweep grid.toml --out g --shards 3", &output);
    let output = sandbox.ok("sweep grid.toml --shard 1/3 --dry-run");
    assert_eq!(counts(output.out.lines().last().unwrap()), [2, 0], "{}", output.out);

    // --array=3,7
    let before = sandbox.contents();
    let output = task(&sandbox, "sweep grid.toml --out f", &slurm("3", "3", "7", "2"));
    said.given("SLURM_ARRAY_TASK_ID=3 of 3,7");
    said.error("sweep grid.toml --out f", 2, &sandbox.one_error(&output, 2, "--array=3,7"));
    assert!(sandbox.contents() == before);
    insta::assert_snapshot!(said);
}

#[test]
fn the_script_is_shown() {
    let sandbox = sandbox();
    let before = sandbox.contents();
    let output = sandbox.ok(
        "sweep grid.toml seed=1,2 --out s --slurm-dry-run --shards 3 --cpus-per-task 8 --sbatch-arg=--mem=2G",
    );
    assert!(sandbox.contents() == before, "nothing is written");
    let here = sandbox.path(".").canonicalize().unwrap();
    for line in [
        "#SBATCH --array=1-3".to_owned(),
        "#SBATCH --cpus-per-task=8".to_owned(),
        "#SBATCH --mem=2G".to_owned(),
        format!("cd -- {} || exit 2", here.display()),
    ] {
        assert!(output.out.lines().any(|other| other == line), "{line} in {}", output.out);
    }
    let last = output.out.lines().last().unwrap();
    assert!(last.contains(&format!(" sweep {}/grid.toml seed=1,2 ", here.display())), "{last}");
    assert!(last.ends_with("--shard \"$SLURM_ARRAY_TASK_ID/3\" -j \"${SLURM_CPUS_PER_TASK:-1}\""), "{last}");
}

#[test]
fn rejected() {
    let sandbox = sandbox();
    let mut said = Transcript::new();
    for arguments in [
        "grid.toml --shards 3",
        "grid.toml --time 3",
        "grid.toml --shard 1/2 --force",
        "grid.toml --slurm-dry-run --sbatch-arg=-a1-9",
        "grid.toml --slurm-dry-run --shards 0",
        "grid.toml --slurm-dry-run -j 2",
        "grid.toml --shard 3/2",
        "--collect absent --shard 1/2",
        "--collect absent",
    ] {
        said.reject(&sandbox, &format!("sweep {arguments}"));
    }
    let mut command = sandbox.command("sweep grid.toml --out s --slurm");
    command.env("PATH", sandbox.path("."));
    let message = sandbox.one_error(&Sandbox::finish(command), 2, "--slurm");
    said.error("sweep grid.toml --out s --slurm", 2, &message);
    insta::assert_snapshot!(said);
}

/// A script in the place of `sbatch`: what it prints is a job's id only if it succeeds and prints one.
#[test]
#[cfg(unix)]
fn answers_of_sbatch() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = sandbox();
    std::fs::create_dir(sandbox.path("bin")).unwrap();
    let programs = std::env::join_paths([sandbox.path("bin"), "/usr/bin".into(), "/bin".into()]).unwrap();
    for (i, (answer, submitted)) in [
        ("echo 17", true),
        ("echo '17;cluster'", true),
        ("exit 0", false),
        ("echo 17; exit 1", false),
        ("echo Submitted", false),
        ("echo 'no such partition' >&2; exit 1", false),
    ]
    .into_iter()
    .enumerate()
    {
        sandbox.file("bin/sbatch", format!("#!/bin/sh\n{answer}\n"));
        std::fs::set_permissions(sandbox.path("bin/sbatch"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = sandbox.command(&format!("sweep grid.toml --slurm --out out-{i}"));
        command.env("PATH", &programs);
        let output = Sandbox::finish(command);
        let text = &output.err;
        assert_eq!(output.code == Some(0), submitted, "{answer}: {text}");
        assert_eq!(text.contains("--slurm: sbatch failed: "), !submitted, "{answer}: {text}");
        assert_eq!(output.out.contains("17"), submitted, "{answer}: {}", output.out);
    }
}
