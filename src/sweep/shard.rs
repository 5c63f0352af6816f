//! Shards of a sweep. A process runs one shard, named by a flag or by the array environment of a scheduler. Shards divide the
//! whole plan, including finished runs, so that they do not depend on when a process starts.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A shard of a sweep: the runs I, I + N, I + 2 N …, with I = 1 … N. Neighbouring runs, which take similar times, go to
/// different shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Index I, from 1 to N.
    pub index: usize,
    /// Number N of shards.
    pub count: usize,
}

impl Shard {
    /// The whole sweep as one shard.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Creates a shard; `None` unless 1 ≤ index ≤ count.
    pub fn new(index: usize, count: usize) -> Option<Self> {
        (1..=count).contains(&index).then_some(Self { index, count })
    }

    /// Returns whether the run at this place of the plan (from 0) belongs to the shard.
    pub fn holds(self, place: usize) -> bool {
        place % self.count == self.index - 1
    }

    /// Returns the shard that the environment selects for this process, and a note for the user. The environment is that of
    /// a task in a Slurm array numbered without gaps or, if `shards` is given, of a HyperQueue task numbered from 1.
    pub fn of_environment(
        shards: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<(Self, String)>> {
        // HyperQueue's workers may themselves be tasks of a Slurm array, whose variables their tasks inherit.
        let of_hyper_queue = shards.zip(variable("HQ_TASK_ID"));
        if let (None, Some(task)) = (&of_hyper_queue, variable("SLURM_ARRAY_TASK_ID")) {
            return Self::of_slurm(&task, shards, variable).map(Some);
        }
        if shards.is_none() {
            return Ok(None);
        }
        let Some((count, task)) = of_hyper_queue else {
            let reason = "needs --slurm or a task of an array (SLURM_ARRAY_TASK_ID or HQ_TASK_ID); pass --shard I/N instead";
            return Err(Error::rejected("--shards", reason));
        };
        let shard = task.parse().ok().and_then(|index| Self::new(index, count)).ok_or_else(|| {
            let expected = format!("1 to {count}, the number of --shards (hq submit --array 1-{count})");
            Error::setting(
                "HQ_TASK_ID",
                expected,
                format!("{task}; pass --shard I/N, or --no-shard for all runs"),
            )
        })?;
        Ok(Some((shard, format!("shard {shard}: HQ_TASK_ID is {task} (--no-shard runs the whole sweep)"))))
    }

    fn of_slurm(
        task: &str,
        shards: Option<usize>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(Self, String)> {
        let names = ["SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"];
        let said = names.map(|name| variable(name).unwrap_or_else(|| "nothing".to_owned()));
        let numbers = said.clone().map(|text| text.parse::<usize>().ok());
        let shard = match (task.parse::<usize>(), numbers) {
            (Ok(task), [Some(min), Some(max), Some(count)])
                if (min..=max).contains(&task) && max - min + 1 == count =>
            {
                Self::new(task - min + 1, count)
            }
            _ => None,
        };
        let [min, max, count] = said;
        let way_out = "pass --shard I/N, or --no-shard for all runs";
        let shard = shard.ok_or_else(|| {
            let got = format!("task {task} of {count} between {min} and {max}; {way_out}");
            Error::setting("SLURM_ARRAY_TASK_ID", "an array without gaps, with one task per shard", got)
        })?;
        match shards {
            Some(shards) if shards != shard.count => {
                let expected = format!("{}, the value of SLURM_ARRAY_TASK_COUNT", shard.count);
                Err(Error::setting("--shards", expected, format!("{shards}; {way_out}")))
            }
            _ => Ok((
                shard,
                format!("shard {shard}: SLURM_ARRAY_TASK_ID is {task} (--no-shard runs the whole sweep)"),
            )),
        }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        parts
            .and_then(|(index, count)| Self::new(index, count))
            .ok_or_else(|| "expected I/N with I from 1 to N".to_owned())
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::Shard;

    /// Returns the shard of a task with these SLURM_ARRAY_TASK_ID, _MIN, _MAX and _COUNT.
    fn slurm(values: [&str; 4], shards: Option<usize>) -> Result<String, String> {
        let names =
            ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"];
        let variable = |name: &str| {
            let place = names.iter().position(|other| *other == name)?;
            (!values[place].is_empty()).then(|| values[place].to_owned())
        };
        let found = Shard::of_environment(shards, variable).map_err(|error| error.to_string())?;
        Ok(found.expect("an array's task").0.to_string())
    }

    fn hyper_queue(task: &str, shards: Option<usize>) -> Result<Option<(Shard, String)>, String> {
        let variable = |name: &str| (name == "HQ_TASK_ID" && !task.is_empty()).then(|| task.to_owned());
        Shard::of_environment(shards, variable).map_err(|error| error.to_string())
    }

    #[test]
    fn shards_are_a_partition() {
        for count in [1, 2, 3, 7, 20] {
            let shards: Vec<_> = (1..=count).map(|index| Shard::new(index, count).unwrap()).collect();
            for place in 0..10 {
                assert_eq!(shards.iter().filter(|shard| shard.holds(place)).count(), 1, "{place} of {count}");
            }
        }
    }

    #[test]
    fn as_typed() {
        assert_eq!("2/4".parse::<Shard>().unwrap(), Shard { index: 2, count: 4 });
        for wrong in ["0/4", "5/4", "1", "1/", "/4", "-1/4", "1/0", "a/b", "1/4/4", ""] {
            assert_eq!(wrong.parse::<Shard>().unwrap_err(), "expected I/N with I from 1 to N", "{wrong}");
        }
    }

    #[test]
    fn slurm_arrays_without_gaps() {
        assert_eq!(slurm(["1", "1", "4", "4"], None).unwrap(), "1/4");
        assert_eq!(slurm(["4", "1", "4", "4"], Some(4)).unwrap(), "4/4");
        assert_eq!(slurm(["0", "0", "3", "4"], None).unwrap(), "1/4");
        assert_eq!(slurm(["8", "7", "8", "2"], None).unwrap(), "2/2");
        // --array=3,7, --array=1-7:2, and values that Slurm never sets.
        for values in [
            ["3", "3", "7", "2"],
            ["5", "1", "7", "4"],
            ["9", "1", "4", "4"],
            ["1", "", "", ""],
            ["x", "1", "4", "4"],
            ["1", "4", "1", "4"],
        ] {
            let message = slurm(values, None).unwrap_err();
            assert!(message.starts_with("SLURM_ARRAY_TASK_ID: expected an array without gaps"), "{message}");
            assert!(message.ends_with("; pass --shard I/N, or --no-shard for all runs"), "{message}");
        }
        assert_eq!(
            slurm(["3", "3", "7", "2"], None).unwrap_err(),
            "SLURM_ARRAY_TASK_ID: expected an array without gaps, with one task per shard, got task 3 of 2 between 3 and 7; \
             pass --shard I/N, or --no-shard for all runs"
        );
        assert_eq!(
            slurm(["1", "1", "4", "4"], Some(8)).unwrap_err(),
            "--shards: expected 4, the value of SLURM_ARRAY_TASK_COUNT, got 8; pass --shard I/N, or --no-shard for all runs"
        );
    }

    #[test]
    fn hyper_queue_needs_the_number() {
        assert_eq!(hyper_queue("3", None).unwrap(), None);
        let (shard, notice) = hyper_queue("3", Some(4)).unwrap().unwrap();
        assert_eq!(shard, Shard { index: 3, count: 4 });
        assert_eq!(notice, "shard 3/4: HQ_TASK_ID is 3 (--no-shard runs the whole sweep)");
        for task in ["0", "5", "x"] {
            assert!(hyper_queue(task, Some(4)).unwrap_err().contains("expected 1 to 4"), "{task}");
        }
        assert_eq!(
            hyper_queue("", Some(4)).unwrap_err(),
            "--shards: needs --slurm or a task of an array (SLURM_ARRAY_TASK_ID or HQ_TASK_ID); pass --shard I/N instead"
        );
        assert_eq!(hyper_queue("", None).unwrap(), None);
    }
}
