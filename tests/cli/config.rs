//! Settings from a file, help and completions.

use crate::{Desk, tokens};

#[test]
fn a_settings_file_is_the_same_as_flags_and_flags_win() {
    let desk = Desk::new();
    std::fs::create_dir_all(desk.path("exp/in")).unwrap();
    desk.npy("exp/in/seq.npy", &tokens(&[20, 4], 1));
    desk.file(
        "exp/run.toml",
        "data = \"in/seq.npy\"\nout = \"results\"\nheads = 2\nchunk_size = 5\nlearning_rate = 1\nmomentum = \"learned\"\n\
         decay_bias = -0.5\nno_plots = true\nno_probe = true\ndtype = \"f64\"\nseed = 3\n",
    );
    desk.ok("store --config exp/run.toml -q");
    assert_eq!(desk.names("."), ["exp"], "paths are relative to the file");
    assert_eq!(desk.names("exp/results"), ["memory.safetensors", "metrics.csv", "run.json"]);
    desk.ok(
        "store exp/in/seq.npy --heads 2 --chunk-size 5 --learning-rate 1 --decay-bias -0.5 --no-plots --no-probe \
         --dtype f64 --seed 3 --out flags -q",
    );
    for file in ["metrics.csv", "memory.safetensors"] {
        assert!(desk.bytes(&format!("exp/results/{file}")) == desk.bytes(&format!("flags/{file}")), "{file}");
    }
    assert_eq!(desk.json("exp/results/run.json")["config"], desk.json("flags/run.json")["config"]);

    // The sequence and `--out` of a flag are relative to where one is.
    desk.npy("seq.npy", &tokens(&[9, 4], 2));
    desk.ok(
        "store seq.npy --config exp/run.toml --chunk-size 3 --no-plots=false --no-probe=false --out here -q",
    );
    let run = desk.json("here/run.json");
    assert_eq!(
        (&run["config"]["chunk_size"], &run["config"]["heads"], &run["tokens"]),
        (&3.into(), &2.into(), &9.into())
    );
    assert_eq!(run["config"]["probe"], true);
    assert!(desk.path("here/plots").exists());
    // A file may serve several commands: what one has no use for is no error in it.
    desk.ok("retrieve --config exp/run.toml --out read -q");
    assert_eq!(desk.names("read"), ["retrieved.npy", "run.json"]);
}

#[test]
fn help_says_what_surprises() {
    let desk = Desk::new();
    for command in ["store", "retrieve"] {
        let help = desk.ok(&format!("{command} --help")).out;
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("--learning-rate-bias <B> Added to the logit of θ = exp(−15 · sigmoid(logit)): a larger logit is a SMALLER rate"), "{help}");
        assert!(words.contains("--force"), "{help}");
    }
    let [store, retrieve] = ["store", "retrieve"].map(|command| desk.ok(&format!("{command} --help")).out);
    assert!(
        !store.contains("--online") && retrieve.contains("--online"),
        "what has no effect is not offered"
    );
    assert!(store.contains("--no-probe") && !retrieve.contains("--no-probe"));
    for command in ["", "store", "retrieve", "scan-bench", "inspect", "completions", "man"] {
        let help = desk.ok(&format!("{command} -h"));
        assert!(help.out.contains("Usage: nmem") && help.err.is_empty(), "{command}");
    }
    let version = desk.ok("--version").out;
    assert!(version.starts_with(concat!("nmem ", env!("CARGO_PKG_VERSION"))), "{version}");
    let bare = desk.run("");
    assert_eq!((bare.code, &bare.out[..]), (Some(2), ""));
    assert!(bare.err.contains("Usage: nmem <COMMAND>"));
}

#[test]
fn completions_know_the_subcommands() {
    let desk = Desk::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = desk.ok(&format!("completions {shell}"));
        assert_eq!(ran.err, "");
        for word in ["store", "retrieve", "inspect", "completions", "learning-rate-bias"] {
            assert!(ran.out.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let desk = Desk::new();
    let page = desk.ok("man").out;
    let listed: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("nmem\\-")?.strip_suffix("(1)")).collect();
    assert!(listed.contains(&"store"), "{page}");
    for name in listed.into_iter().filter(|&name| name != "help") {
        let name = name.replace('\\', "");
        let page = desk.ok(&format!("man {name}")).out;
        assert!(page.starts_with(".ie") && page.contains(&format!(".TH nmem-{name} 1")), "{page}");
    }
}

#[test]
fn a_flag_overrides_its_counterpart_in_the_file() {
    let desk = Desk::new();
    desk.npy("seq.npy", &tokens(&[20, 4], 1));
    desk.file(
        "run.toml",
        "data = \"seq.npy\"\nheads = 2\nseed = 1\nchunk_size = 5\ndecay = 0.25\nmomentum_bias = 1\n",
    );
    let gates = |out: &str| {
        let config = &desk.json(&format!("{out}/run.json"))["config"];
        (config["decay"].clone(), config["momentum"].clone())
    };
    desk.ok("store --config run.toml --out plain -q");
    assert_eq!(gates("plain"), (serde_json::json!({"pinned": 0.25}), serde_json::json!({"learned": 1.0})));
    desk.ok("store --config run.toml --decay-bias 1 --momentum 0 --out over -q");
    assert_eq!(gates("over"), (serde_json::json!({"learned": 1.0}), serde_json::json!({"pinned": 0.0})));
    // How the file would draw a memory means nothing where the command line names one.
    desk.ok("store --config run.toml --memory plain/memory.safetensors --out on -q");
    let inputs = &desk.json("on/run.json")["inputs"];
    let roles: Vec<_> =
        inputs.as_array().unwrap().iter().map(|input| input["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["data", "memory", "config"]);
}
