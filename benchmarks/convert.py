"""How long it takes from an image in the registry to its listing on a mounted client, by the whole embedded stack.

Run as root from the project's folder: ``python -m benchmarks.convert [--images FOLDER] [--runs N] [--json]``.

Each run has a registry, ``unpackd up`` with its worker processes, and a mount of its own, all of them idle when the
clock starts. The image's blobs are in the registry before that; the clock starts when the manifest is put under the
tag that the wishlist asks for, and stops when a listing of the public name in the mount gives names. Images are those
of ``benchmarks/make-images.sh``. Seconds are medians over the runs, processor seconds those of the farm's processes;
memory is the largest peak of any of them, and that of a worker with the processes that it has started.

=============  =======================================================================================================
base           into an empty repository
retag          the same image under another tag
sci, base      the image *sci* into a repository that has *base*
sci            into an empty repository
second         an image of *sci*'s layers with one more of its own, after *sci*: what a new version of an application is
edge           four small layers, into an empty repository
=============  =======================================================================================================
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from benchmarks.processes import command, cpu_s, family, parent, peak_mib
from demo.stack import free_port, listens, registry, run, running, started, unmount_below

REPOSITORY = "bench.example.org"
UNPACKD = Path(sys.executable).with_name("unpackd")
MAKER = Path(__file__).with_name("make-images.sh")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
TIMEOUT_S = 200.0
SCENARIOS = ("base", "retag", "sci, base", "sci", "second", "edge")
REFERENCE_S = {"base": 28.0, "sci, base": 52.0, "sci": 73.0, "edge": 30.0}
"""The reference converter (2.12, with its server) on such a machine, the shorter ones of the times measured."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a conversion took: seconds, and those of processors in the farm."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Peaks:
    """Largest peaks of resident memory, in MiB."""

    process: float = 0.0  # of any process of the farm
    worker: float = 0.0  # of a worker and the processes that it has started, added up

    def __or__(self, other: "Peaks") -> "Peaks":
        return Peaks(max(self.process, other.process), max(self.worker, other.worker))


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs: a registry, the farm, a mount."""

    registry: str  # URL
    origin: str  # URL
    mountpoint: Path
    process: int  # of ``unpackd up``

    def push(self, layout: Path, name: str) -> bytes:
        """Put the blobs of the image in *layout* under a tag that nobody asks for; gives its manifest."""
        target = f"docker://{self.registry.removeprefix('http://')}/{name}:staged"
        run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1", target])
        return manifest_of(layout)

    def blob(self, name: str, data: bytes) -> None:
        """Put one blob."""
        with self._ask("POST", f"/v2/{name}/blobs/uploads/", b"") as reply:
            where = reply.headers["Location"]
        joint = "&" if "?" in where else "?"
        self._ask("PUT", f"{where}{joint}digest={digest(data)}", data).close()

    def tagged(self, name: str, tag: str, manifest: bytes) -> Taken:
        """Put *manifest* under *tag*; gives what it takes until the mount lists the image."""
        path = self.mountpoint / f"{self.registry.removeprefix('http://')}/{name}:{tag}"
        began, before = time.monotonic(), self.cpu_s()
        self._ask("PUT", f"/v2/{name}/manifests/{tag}", manifest).close()
        while True:
            try:
                if any(path.iterdir()):
                    return Taken(time.monotonic() - began, self.cpu_s() - before)
            except OSError:
                pass
            if time.monotonic() - began > TIMEOUT_S:
                raise TimeoutError(f"{path} is not there after {TIMEOUT_S} s")
            time.sleep(0.01)

    def with_one_more_layer(self, name: str, manifest: dict[str, Any], config: dict[str, Any]) -> bytes:
        """Push what an image has over another: a layer of 200 files; gives its manifest."""
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for number in range(200):
                member = tarfile.TarInfo(f"opt/application/module{number}.py")
                data = f"# module {number}\n".encode() * 100
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        layer = gzip.compress(stream.getvalue(), 6, mtime=0)
        config["rootfs"]["diff_ids"].append(digest(stream.getvalue()))
        config.pop("history", None)
        document = json.dumps(config).encode()
        manifest["config"] |= {"digest": digest(document), "size": len(document)}
        manifest["layers"].append({"mediaType": LAYER, "digest": digest(layer), "size": len(layer)})
        for blob in (layer, document):
            self.blob(name, blob)
        return json.dumps(manifest).encode()

    def _ask(self, method: str, where: str, data: bytes):  # noqa: ANN202  # what urllib gives
        url = where if where.startswith("http") else self.registry + where
        request = urllib.request.Request(url, data=data, method=method)
        request.add_header("Content-Type", MANIFEST if "/manifests/" in url else "application/octet-stream")
        return urllib.request.urlopen(request, timeout=60)

    def cpu_s(self) -> float:
        """Processor time of all processes of the farm so far, of those that have ended too."""
        return sum(cpu_s(process) for process in family(self.process))

    def peaks(self) -> "Peaks":
        """Peaks of resident memory so far."""
        every = list(family(self.process))
        workers = {parent(process) for process in every if "writer_processes" in command(process)}
        return Peaks(
            max(map(peak_mib, every)), max((sum(map(peak_mib, family(worker))) for worker in workers), default=0.0)
        )


@contextmanager
def running_stack() -> Iterator[Stack]:
    """Everything, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="unpackd-bench-") as name, ExitStack() as blocks:
        folder = Path(name)
        port, registry_port = free_port(), free_port()
        origin = f"http://127.0.0.1:{port}"
        blocks.enter_context(registry(folder, registry_port, f"{origin}/hooks/distribution"))
        wishlist = folder / "wishlist.yaml"
        wish = f"http://127.0.0.1:{registry_port}/bench/image:v*"
        wishlist.write_text(f"version: 1\nuser: bench\ncvmfs_repo: {REPOSITORY}\ninput:\n  - '{wish}'\n")
        command = [UNPACKD, "up", "--dir", folder / "up", "--name", REPOSITORY, "--wishlist", wishlist]
        log = folder / "up.log"
        up = blocks.enter_context(running([*command, "--listen", f"127.0.0.1:{port}"], log))
        started(up, lambda: listens(port), "unpackd up", log)
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        blocks.callback(unmount_below, folder)
        key = folder / "up" / "keys" / f"{REPOSITORY}.pub"
        where = ["--url", f"{origin}/cvmfs/{REPOSITORY}", "--pubkey", key, "--cache", folder / "cache"]
        run([UNPACKD, "mount", REPOSITORY, mountpoint, *where])
        blocks.callback(run, [UNPACKD, "umount", mountpoint])
        stack = Stack(f"http://127.0.0.1:{registry_port}", origin, mountpoint, up.pid)
        config = {"architecture": ARCHITECTURE, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
        empty = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"mediaType": CONFIG}, "layers": []}
        stack.tagged("bench/image", "v0", stack.with_one_more_layer("bench/image", empty, config))  # workers are there
        yield stack


def manifest_of(layout: Path) -> bytes:
    """The manifest of the image with the tag 1."""
    [described] = json.loads((layout / "index.json").read_text())["manifests"]
    return blob_of(layout, described["digest"])


def blob_of(layout: Path, name: str) -> bytes:
    """The blob with the digest *name*."""
    return (layout / "blobs" / name.replace(":", "/")).read_bytes()


def digest(data: bytes) -> str:
    """``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def one_run(images: Path, wanted: set[str]) -> tuple[dict[str, Taken], Peaks]:
    """What each scenario took, and the largest peaks of memory."""
    seconds: dict[str, Taken] = {}
    peaks = Peaks()
    name = "bench/image"
    if wanted & {"base", "retag", "sci, base"}:
        with running_stack() as stack:
            base = stack.push(images / "base", name)
            seconds["base"] = stack.tagged(name, "v1", base)
            seconds["retag"] = stack.tagged(name, "v2", base)
            if "sci, base" in wanted:
                seconds["sci, base"] = stack.tagged(name, "v3", stack.push(images / "sci", name))
            peaks |= stack.peaks()
    if wanted & {"sci", "second"}:
        with running_stack() as stack:
            seconds["sci"] = stack.tagged(name, "v1", stack.push(images / "sci", name))
            manifest = json.loads(manifest_of(images / "sci"))
            config = json.loads(blob_of(images / "sci", manifest["config"]["digest"]))
            seconds["second"] = stack.tagged(name, "v2", stack.with_one_more_layer(name, manifest, config))
            peaks |= stack.peaks()
    if "edge" in wanted:
        with running_stack() as stack:
            seconds["edge"] = stack.tagged(name, "v1", stack.push(images / "edge", name))
            peaks |= stack.peaks()
    return {key: value for key, value in seconds.items() if key in wanted}, peaks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", type=Path, default=Path("/var/cache/unpackd-demo/images"), help="where images are kept"
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="measure only this; may be repeated")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = set(options.only or SCENARIOS)
    needed = {"edge"} & wanted | ({"base"} if wanted & {"base", "retag", "sci, base"} else set())
    needed |= {"sci"} if wanted & {"sci", "sci, base", "second"} else set()
    subprocess.run([MAKER, options.images, *sorted(needed)], check=True)
    runs = []
    for number in range(options.runs):
        runs.append(one_run(options.images, wanted))
        print(f"run {number + 1}: {runs[-1][0]}, {runs[-1][1]}", file=sys.stderr)
    times = {name: [taken[name].wall_s for taken, _ in runs] for name in SCENARIOS if name in wanted}
    peaks = reduce(or_, (one for _, one in runs))
    processors = {name: statistics.median(taken[name].cpu_s for taken, _ in runs) for name in times}
    report = {
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "runs": options.runs,
        "seconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "all": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "cpu_seconds": {name: round(value, 2) for name, value in processors.items()},
        "peak_mib": round(peaks.process),
        "worker_peak_mib": round(peaks.worker),
    }
    if options.json:
        print(json.dumps(report, indent=2))
        return
    for name, values in times.items():
        median = statistics.median(values)
        ratio = f", the reference {REFERENCE_S[name] / median:.0f} times as long" if name in REFERENCE_S else ""
        span = f"[{min(values):.2f} … {max(values):.2f}]"
        print(f"{name}: {median:.2f} s {span}, {processors[name]:.2f} s of processors{ratio}")
    print(f"largest peak of memory: a process {peaks.process:.0f} MiB, a worker with its own {peaks.worker:.0f} MiB")


if __name__ == "__main__":
    main()
