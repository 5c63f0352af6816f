"""Description of the machine that measurements are taken on."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path


def today():
    return datetime.date.today().isoformat()


def slug():
    """Returns a short name for directories, such as `amd-epyc-2-cores`."""
    model = cpu().get("model name", platform.machine()).lower()
    model = re.sub(r"\(.*?\)|@.*|\b(cpu|processor)\b", " ", model)
    return "-".join(re.findall(r"[a-z0-9]+", model)[:4] + [str(cores()), "cores"])


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu():
    """Returns the first block of /proc/cpuinfo. On other systems, the model from sysctl, if known."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        model = said(["sysctl", "-n", "machdep.cpu.brand_string"])
        return {"model name": model} if model else {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def caches():
    """Returns the sizes of the first core's caches."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (index / name).read_text().strip() for name in ("level", "type", "size")
        )
        found[f"L{level} {kind.lower()}"] = size
    return found


def said(command):
    """Returns the first line that a program prints; None if the program does not exist."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    except OSError:
        return None
    return lines[0].strip() if lines else None


def describe():
    about = cpu()
    flags = set(about.get("flags", "").split())
    vectors = {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_bf16"}
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        ram = None
    return {
        "date": today(),
        "cpu": about.get("model name", platform.processor()),
        "cpu_family": about.get("cpu family"),
        "cpu_model": about.get("model"),
        "mhz": about.get("cpu MHz"),
        "vector_flags": sorted(flags & vectors),
        "virtual": "hypervisor" in flags,
        "cores": cores(),
        "caches": caches(),
        "ram_bytes": ram,
        "system": platform.platform(),
        "load_average_before": os.getloadavg(),
        "python": platform.python_version(),
        "rustc": said(["rustc", "--version"]),
        "cxx": said([os.environ.get("CXX", "g++"), "--version"]),
    }
