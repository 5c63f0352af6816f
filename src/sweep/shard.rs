//! Which shard of a sweep's runs one process does: said outright, or by the array environment of a scheduler. Shards are
//! made of the whole plan, finished runs included, so that they are the same whenever a process starts.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A shard of a sweep: the runs I, I + N, I + 2 N … of it, I = 1 … N. Neighbours, which take alike long, are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// I
    pub index: usize,
    /// N
    pub count: usize,
}

impl Shard {
    /// The whole, in one shard.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// `None` unless 1 ≤ index ≤ count.
    pub fn new(index: usize, count: usize) -> Option<Self> {
        (1..=count).contains(&index).then_some(Self { index, count })
    }

    /// Whether the run at this place of the plan (from 0) belongs to it.
    pub fn holds(self, place: usize) -> bool {
        place % self.count == self.index - 1
    }

    /// The shard that the environment gives to this process, and a line to tell the user: a task of a Slurm array whose
    /// tasks are numbered without gaps, or, where the number of `shards` is said, a task of HyperQueue's from 1 on.
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
            let got = "no SLURM_ARRAY_TASK_ID and no HQ_TASK_ID (say --shard I/N)";
            return Err(Error::setting("--shards", "a task of an array, or --slurm", got));
        };
        let shard = task.parse().ok().and_then(|index| Self::new(index, count)).ok_or_else(|| {
            let expected = format!("1 to {count} (hq submit --array 1-{count}), as --shards says");
            Error::setting(
                "HQ_TASK_ID",
                expected,
                format!("{task}: say --shard I/N, or --no-shard for all runs"),
            )
        })?;
        Ok(Some((shard, format!("share {shard}: HQ_TASK_ID is {task} (--no-shard does all runs)"))))
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
        let way_out = "say --shard I/N, or --no-shard for all runs";
        let shard = shard.ok_or_else(|| {
            let got = format!("task {task} of {count} between {min} and {max}: {way_out}");
            Error::setting("SLURM_ARRAY_TASK_ID", "an array without gaps, whose tasks are the shares", got)
        })?;
        match shards {
            Some(shards) if shards != shard.count => {
                let expected = format!("{} as SLURM_ARRAY_TASK_COUNT", shard.count);
                Err(Error::setting("--shards", expected, format!("{shards}: {way_out}")))
            }
            _ => Ok((
                shard,
                format!("share {shard}: SLURM_ARRAY_TASK_ID is {task} (--no-shard does all runs)"),
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

    /// SLURM_ARRAY_TASK_ID, _MIN, _MAX, _COUNT.
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
        // --array=3,7, --array=1-7:2, and what no Slurm sets.
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
            assert!(message.ends_with(": say --shard I/N, or --no-shard for all runs"), "{message}");
        }
        assert_eq!(
            slurm(["3", "3", "7", "2"], None).unwrap_err(),
            "SLURM_ARRAY_TASK_ID: expected an array without gaps, whose tasks are the shares, got task 3 of 2 between 3 and 7: \
             say --shard I/N, or --no-shard for all runs"
        );
        assert_eq!(
            slurm(["1", "1", "4", "4"], Some(8)).unwrap_err(),
            "--shards: expected 4 as SLURM_ARRAY_TASK_COUNT, got 8: say --shard I/N, or --no-shard for all runs"
        );
    }

    #[test]
    fn hyper_queue_needs_the_number() {
        assert_eq!(hyper_queue("3", None).unwrap(), None);
        let (shard, notice) = hyper_queue("3", Some(4)).unwrap().unwrap();
        assert_eq!(shard, Shard { index: 3, count: 4 });
        assert_eq!(notice, "share 3/4: HQ_TASK_ID is 3 (--no-shard does all runs)");
        for task in ["0", "5", "x"] {
            assert!(hyper_queue(task, Some(4)).unwrap_err().contains("expected 1 to 4"), "{task}");
        }
        assert_eq!(
            hyper_queue("", Some(4)).unwrap_err(),
            "--shards: expected a task of an array, or --slurm, got no SLURM_ARRAY_TASK_ID and no HQ_TASK_ID (say --shard I/N)"
        );
        assert_eq!(hyper_queue("", None).unwrap(), None);
    }
}
