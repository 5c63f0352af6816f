//! The values of `--device`, and the devices opened for them.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize, Serializer};

use super::{Device, Gpu};
use crate::error::Result;

/// The device that a run shall use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU with this index.
    Cuda(usize),
    /// The first GPU, or the CPU if no GPU can be used.
    Auto,
}

impl DeviceChoice {
    /// Returns whether this is the CPU, whatever GPUs the machine has.
    pub fn is_cpu(&self) -> bool {
        *self == Self::Cpu
    }

    /// Opens the device.
    pub fn open(self) -> Result<OpenDevice> {
        match self {
            Self::Cpu => Ok(OpenDevice::default()),
            Self::Cuda(index) => Ok(OpenDevice::from_gpu(index, Arc::new(Gpu::open(index)?))),
            Self::Auto => Ok(Gpu::open(0).map_or_else(
                |error| OpenDevice {
                    note: Some(format!("--device auto: cpu ({error})")),
                    ..OpenDevice::default()
                },
                |gpu| OpenDevice::from_gpu(0, Arc::new(gpu)),
            )),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "auto" => Ok(Self::Auto),
            _ => text
                .strip_prefix("cuda:")
                .filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| "expected cpu, cuda, cuda:N (see `nmem devices`) or auto".to_owned()),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Serialize for DeviceChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An open device: the CPU, or a GPU that runs use in turns.
#[derive(Default)]
pub struct OpenDevice {
    gpu: Option<(usize, Arc<dyn Device>)>,
    turn: Mutex<()>,
    /// Reason why `auto` chose the CPU.
    pub note: Option<String>,
}

impl OpenDevice {
    /// Creates the open device of a GPU with this index.
    pub fn from_gpu(index: usize, gpu: Arc<dyn Device>) -> Self {
        Self { gpu: Some((index, gpu)), ..Self::default() }
    }

    /// Returns the GPU; `None` for the CPU.
    pub fn gpu(&self) -> Option<&dyn Device> {
        self.gpu.as_ref().map(|(_, gpu)| gpu.as_ref())
    }

    /// Waits until no other run uses the GPU. Runs on the CPU do not wait.
    pub fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // A run that panicked leaves nothing behind that the next one would see.
        self.gpu.as_ref().map(|_| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the name in scan_bench.csv: "cpu", "cuda" for the first GPU, "cuda:1" for the second.
    pub fn label(&self) -> String {
        match self.gpu {
            None => "cpu".to_owned(),
            Some((0, _)) => "cuda".to_owned(),
            Some((index, _)) => format!("cuda:{index}"),
        }
    }
}

impl fmt::Debug for OpenDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenDevice({self})")
    }
}

impl fmt::Display for OpenDevice {
    /// Writes "cpu", or "cuda:0" and the GPU's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.gpu {
            None => f.write_str("cpu"),
            Some((index, gpu)) => write!(f, "cuda:{index} {}", gpu.name()),
        }
    }
}

/// The devices of many runs, each opened once.
#[derive(Debug, Default)]
pub struct Devices(Vec<(DeviceChoice, Arc<OpenDevice>)>);

impl Devices {
    /// Opens the devices of these choices. It is an error if one of them cannot be opened.
    pub fn open(choices: impl IntoIterator<Item = DeviceChoice>) -> Result<Self> {
        let mut this = Self::default();
        for choice in choices {
            this.add(choice)?;
        }
        Ok(this)
    }

    fn add(&mut self, choice: DeviceChoice) -> Result<Arc<OpenDevice>> {
        if let Some(known) = self.get(choice) {
            return Ok(known);
        }
        let device = match choice {
            // The GPU that `auto` may choose may also be another choice.
            DeviceChoice::Auto => match self.add(DeviceChoice::Cuda(0)) {
                Ok(device) => device,
                Err(_) => Arc::new(choice.open()?),
            },
            _ => Arc::new(choice.open()?),
        };
        self.0.push((choice, Arc::clone(&device)));
        Ok(device)
    }

    /// Returns the device opened for this choice.
    pub fn get(&self, choice: DeviceChoice) -> Option<Arc<OpenDevice>> {
        self.0.iter().find(|(known, _)| *known == choice).map(|(_, device)| Arc::clone(device))
    }

    /// Returns the notes of all devices: see [`OpenDevice::note`].
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|(_, device)| device.note.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed_from_their_text() {
        for (text, choice, written) in [
            ("cpu", DeviceChoice::Cpu, "cpu"),
            ("cuda", DeviceChoice::Cuda(0), "cuda:0"),
            ("cuda:0", DeviceChoice::Cuda(0), "cuda:0"),
            ("cuda:17", DeviceChoice::Cuda(17), "cuda:17"),
            ("auto", DeviceChoice::Auto, "auto"),
        ] {
            assert_eq!(text.parse(), Ok(choice), "{text}");
            assert_eq!(choice.to_string(), written);
        }
        for text in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:99999999999999999999999",
            "cuda0",
        ] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_available_without_turns() {
        let devices = Devices::open([DeviceChoice::Cpu, DeviceChoice::Cpu]).unwrap();
        let device = devices.get(DeviceChoice::Cpu).unwrap();
        assert!(device.gpu().is_none() && device.turn().is_none());
        assert_eq!((device.to_string(), device.label()), ("cpu".to_owned(), "cpu".to_owned()));
        assert!(devices.get(DeviceChoice::Auto).is_none() && devices.notes().next().is_none());
    }
}
