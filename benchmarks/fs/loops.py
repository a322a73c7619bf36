"""The operations that are timed, each by system calls alone or by the program that users run."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_READ_BYTES = 1 << 20


def each_us(paths: Sequence[str], operation: Callable[[str], object]) -> float:
    """Microseconds that *operation* takes on average."""
    began = time.perf_counter()
    for path in paths:
        operation(path)
    return (time.perf_counter() - began) / len(paths) * 1e6


def read_small(path: str) -> None:
    """Open, read, close."""
    descriptor = os.open(path, os.O_RDONLY)
    os.read(descriptor, _READ_BYTES)
    os.close(descriptor)


def together_us(paths: Sequence[str], processes: int) -> float:
    """Microseconds of wall time a file while *processes* read all of *paths*, each beginning elsewhere."""
    began = time.perf_counter()
    readers: list[int] = []
    for number in range(processes):
        reader = os.fork()
        if not reader:
            start = len(paths) * number // processes
            for path in (*paths[start:], *paths[:start]):
                read_small(path)
            os._exit(0)
        readers.append(reader)
    for reader in readers:
        if os.waitpid(reader, 0)[1]:
            raise OSError("a reader failed")
    return (time.perf_counter() - began) / len(paths) / processes * 1e6


def read_long_mib_s(path: Path) -> float:
    """MiB/s of reading a file from its beginning to its end."""
    began = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    total = 0
    buffer = bytearray(_READ_BYTES)
    while count := os.readv(descriptor, [buffer]):
        total += count
    os.close(descriptor)
    return total / (1 << 20) / (time.perf_counter() - began)


def run_s(*command: str | Path) -> float:
    """Seconds that a program takes."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def tar_s(folder: Path) -> float:
    """Seconds to read everything; tar itself leaves out the reading if it sees that it writes to nowhere."""
    began = time.perf_counter()
    with subprocess.Popen(["tar", "-C", folder, "-cf", "-", "."], stdout=subprocess.PIPE) as reader:
        taker = subprocess.run(["cat"], stdin=reader.stdout, stdout=subprocess.DEVNULL, check=True)
    if reader.returncode or taker.returncode:
        raise OSError("tar failed")
    return time.perf_counter() - began


def start_s(folder: Path) -> float:
    """Seconds until Python has imported all modules of *folder*."""
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); import start"
    return run_s(sys.executable, "-ISB", "-c", program)


def resident_mib(process: int) -> float:
    """What *process* has in memory, programs and libraries included."""
    for line in Path(f"/proc/{process}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{process} is gone")


def processor_s(process: int) -> float:
    """Seconds of processor time that all threads of *process* that still live have used."""
    spent = 0
    for thread in Path(f"/proc/{process}/task").iterdir():
        spent += int((thread / "schedstat").read_text("ascii").split()[0])
    return spent / 1e9
