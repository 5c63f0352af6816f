//! Settings from a file, help and completions.

use crate::{Sandbox, Transcript, tokens};

#[test]
fn a_settings_file_is_the_same_as_flags_and_flags_win() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("exp/in")).unwrap();
    sandbox.npy("exp/in/seq.npy", &tokens(&[20, 4], 1));
    sandbox.file(
        "exp/run.toml",
        "data = \"in/seq.npy\"\nout = \"results\"\nheads = 2\nchunk_size = 5\nlearning_rate = 1\nmomentum = \"learned\"\n\
         decay_bias = -0.5\nno_plots = true\nno_probe = true\ndtype = \"f64\"\nseed = 3\n",
    );
    sandbox.ok("store --config exp/run.toml -q");
    assert_eq!(sandbox.names("."), ["exp"], "paths are relative to the file");
    assert_eq!(sandbox.names("exp/results"), ["memory.safetensors", "metrics.csv", "run.json"]);
    sandbox.ok(
        "store exp/in/seq.npy --heads 2 --chunk-size 5 --learning-rate 1 --decay-bias -0.5 --no-plots --no-probe \
         --dtype f64 --seed 3 --out flags -q",
    );
    for file in ["metrics.csv", "memory.safetensors"] {
        assert!(
            sandbox.bytes(&format!("exp/results/{file}")) == sandbox.bytes(&format!("flags/{file}")),
            "{file}"
        );
    }
    assert_eq!(sandbox.json("exp/results/run.json")["config"], sandbox.json("flags/run.json")["config"]);

    // The sequence and `--out` of a flag are relative to where one is.
    sandbox.npy("seq.npy", &tokens(&[9, 4], 2));
    sandbox.ok(
        "store seq.npy --config exp/run.toml --chunk-size 3 --no-plots=false --no-probe=false --out here -q",
    );
    let run = sandbox.json("here/run.json");
    assert_eq!(
        (&run["config"]["chunk_size"], &run["config"]["heads"], &run["tokens"]),
        (&3.into(), &2.into(), &9.into())
    );
    assert_eq!(run["config"]["probe"], true);
    assert!(sandbox.path("here/plots").exists());
    // A file may serve several commands: what one has no use for is no error in it.
    sandbox.ok("retrieve --config exp/run.toml --out read -q");
    assert_eq!(sandbox.names("read"), ["retrieved.npy", "run.json"]);
}

#[test]
fn help_says_what_surprises() {
    let sandbox = Sandbox::new();
    let mut said = Transcript::new();
    for command in ["store", "retrieve"] {
        let help = sandbox.ok(&format!("{command} --help")).out;
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let of_bias = words.split_once("--learning-rate-bias").expect(&help).1;
        let of_bias = of_bias.split_once(" --").expect(&help).0;
        said.entry(&format!("{command} --help"), Some(0), &format!("--learning-rate-bias{of_bias}"));
        assert!(words.contains("--force"), "{help}");
    }
    insta::assert_snapshot!(said);
    let [store, retrieve] = ["store", "retrieve"].map(|command| sandbox.ok(&format!("{command} --help")).out);
    assert!(
        !store.contains("--online") && retrieve.contains("--online"),
        "what has no effect is not offered"
    );
    assert!(store.contains("--no-probe") && !retrieve.contains("--no-probe"));
    for command in ["", "store", "retrieve", "scan-bench", "inspect", "completions", "man"] {
        let help = sandbox.ok(&format!("{command} -h"));
        assert!(help.out.contains("Usage: nmem") && help.err.is_empty(), "{command}");
    }
    let version = sandbox.ok("--version").out;
    assert!(version.starts_with(concat!("nmem ", env!("CARGO_PKG_VERSION"))), "{version}");
    let bare = sandbox.run("");
    assert_eq!((bare.code, &bare.out[..]), (Some(2), ""));
    assert!(bare.err.contains("Usage: nmem <COMMAND>"));
}

#[test]
fn completions_know_the_subcommands() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = sandbox.ok(&format!("completions {shell}"));
        assert_eq!(output.err, "");
        for word in ["store", "retrieve", "inspect", "completions", "learning-rate-bias"] {
            assert!(output.out.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let sandbox = Sandbox::new();
    let page = sandbox.ok("man").out;
    let listed: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("nmem\\-")?.strip_suffix("(1)")).collect();
    assert!(listed.contains(&"store"), "{page}");
    for name in listed.into_iter().filter(|&name| name != "help") {
        let name = name.replace('\\', "");
        let page = sandbox.ok(&format!("man {name}")).out;
        assert!(page.starts_with(".ie") && page.contains(&format!(".TH nmem-{name} 1")), "{page}");
    }
}

#[test]
fn a_flag_overrides_its_counterpart_in_the_file() {
    let sandbox = Sandbox::new();
    sandbox.npy("seq.npy", &tokens(&[20, 4], 1));
    sandbox.file(
        "run.toml",
        "data = \"seq.npy\"\nheads = 2\nseed = 1\nchunk_size = 5\ndecay = 0.25\nmomentum_bias = 1\n",
    );
    let gates = |out: &str| {
        let config = &sandbox.json(&format!("{out}/run.json"))["config"];
        (config["decay"].clone(), config["momentum"].clone())
    };
    sandbox.ok("store --config run.toml --out plain -q");
    assert_eq!(gates("plain"), (serde_json::json!({"pinned": 0.25}), serde_json::json!({"learned": 1.0})));
    sandbox.ok("store --config run.toml --decay-bias 1 --momentum 0 --out over -q");
    assert_eq!(gates("over"), (serde_json::json!({"learned": 1.0}), serde_json::json!({"pinned": 0.0})));
    // How the file would draw a memory means nothing where the command line names one.
    sandbox.ok("store --config run.toml --memory plain/memory.safetensors --out on -q");
    let inputs = &sandbox.json("on/run.json")["inputs"];
    let roles: Vec<_> =
        inputs.as_array().unwrap().iter().map(|input| input["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["data", "memory", "config"]);
}
