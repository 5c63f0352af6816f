#!/usr/bin/env python3
"""kernels.cu → kernels.ptx, for every GPU from compute capability 8.0 on, and registers.txt, what ptxas makes of it.

Needs no GPU and no CUDA: NVRTC and ptxas of one pinned version are installed into target/ptx. A driver refuses PTX newer than
itself; that of CUDA 13.0 is PTX 9.0.

    src/cuda/ptx.py            writes both files
    src/cuda/ptx.py --check    fails where a committed file is not what the source gives
"""

import argparse
import ctypes
import pathlib
import re
import subprocess
import sys
import venv

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE.parent.parent / "target/ptx/venv"
VERSION = "13.0.88"
PACKAGES = [f"nvidia-cuda-nvrtc=={VERSION}", f"nvidia-cuda-nvcc=={VERSION}"]
OLDEST = "compute_80"
GPUS = ["sm_80", "sm_90"]


class Failure(Exception):
    """What went wrong, for people."""


def installed():
    """Return the directory of NVRTC and ptxas, after installing them if needed."""
    stamp = VENV / "packages.txt"
    if not stamp.exists() or stamp.read_text().split() != PACKAGES:
        venv.create(VENV, with_pip=True, clear=True)
        subprocess.run([VENV / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
        stamp.write_text("\n".join(PACKAGES) + "\n")
    return next(VENV.glob("lib/python3*/site-packages/nvidia/cu13"))


def compiled(cuda):
    """PTX, as text."""
    ctypes.CDLL(str(cuda / "lib/libnvrtc-builtins.so.13.0"), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(cuda / "lib/libnvrtc.so.13"))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p

    def call(name, *arguments):
        status = getattr(nvrtc, name)(*arguments)
        return None if status == 0 else nvrtc.nvrtcGetErrorString(status).decode()

    def text(of):
        size = ctypes.c_size_t()
        call(f"nvrtcGet{of}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{of}", program, buffer)
        return buffer.value.decode()

    program = ctypes.c_void_p()
    source = (HERE / "kernels.cu").read_bytes()
    error = call("nvrtcCreateProgram", ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    if error:
        raise Failure(error)
    options = [f"--gpu-architecture={OLDEST}".encode(), b"--std=c++17"]
    error = call("nvrtcCompileProgram", program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = text("ProgramLog").strip()
    if error or log:
        raise Failure(f"kernels.cu: {error or 'warnings'}\n{log}")
    return text("PTX").rstrip("\n") + "\n"


def assembled(cuda, ptx):
    """A line a kernel and GPU: registers and bytes of static shared memory. Spills and stacks are failures."""
    lines = [f"{'gpu':6} {'registers':>9} {'shared bytes':>12}  kernel"]
    bad = []
    for gpu in GPUS:
        command = [cuda / "bin/ptxas", "-v", f"-arch={gpu}", "-o", "/dev/null", "-"]
        ran = subprocess.run(command, input=ptx, capture_output=True, text=True)
        said = ran.stdout + ran.stderr
        if ran.returncode != 0:
            raise Failure(f"ptxas for {gpu}:\n{said}")
        for part in said.split("Compiling entry function '")[1:]:
            name = part.split("'")[0]
            stack = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", part)]
            if len(stack) != 3 or any(stack):
                bad.append(f"{name} for {gpu}: stack, spill stores, spill loads {stack} bytes")
            registers = re.search(r"Used (\d+) registers", part)[1]
            shared = re.search(r"(\d+) bytes smem", part)
            lines.append(f"{gpu:6} {registers:>9} {shared[1] if shared else '0':>12}  {name}")
    lines[1:] = sorted(lines[1:], key=lambda line: (line.split()[0], line.split()[3]))
    return "\n".join(lines) + "\n", bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    try:
        cuda = installed()
        ptx = compiled(cuda)
        registers, bad = assembled(cuda, ptx)
    except (Failure, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
    stale = []
    for name, text in [("kernels.ptx", ptx), ("registers.txt", registers)]:
        path = HERE / name
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(f"src/cuda/{name} is not what kernels.cu gives: run `just ptx`")
    print(f"{len(registers.splitlines()) - 1} kernels for {', '.join(GPUS)}, {len(ptx)} bytes of PTX")
    if bad or stale:
        sys.exit("\n".join(bad + stale))


if __name__ == "__main__":
    main()
