"""What a container's root file system costs: stat storms and starts, by the form in which it is given.

Run as root from the project's folder: ``python -m benchmarks.rootfs oci:DIR:TAG [--runs N] [--json]``; the image needs
``/usr/bin/python3``. Each run mounts the repository over HTTP on the loopback with an empty cache,
and starts containers with a containerd of its own. *cold* is the first container after that (for overlayfs: after the
kernel was told to forget names), *next* a second container, *warm* a second storm in the same container. Figures are
medians over the runs: microseconds a name, seconds a start.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from benchmarks.fs.world import origin
from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.sources import parse_source
from fs.publish.repository import Repository
from tests.support.mounts import mounted
from tests.support.node import PLUGIN, Node, running_node
from tests.support.registry import run_registry
from tests.support.snapshotter import FakeRepository, service_folder

NAME = "bench.example.org"
STORM = """
import json, os, time
def storm():
    began, count = time.perf_counter(), 0
    for folder, folders, files in os.walk("/"):
        if folder == "/":
            folders[:] = [name for name in folders if name not in ("proc", "sys", "dev", "run")]
        for name in folders + files:
            os.lstat(folder + "/" + name)
            count += 1
    return (time.perf_counter() - began) / count * 1e6, count
first, count = storm()
print(json.dumps([first, min(storm()[0] for _ in range(3)), count]))
"""


def container(node: Node, image: str, name: str, snapshotter: str) -> tuple[float, float, int]:
    """Microseconds a name of the first storm in a new container and of the best later one; number of names."""
    first, warm, count = json.loads(node.run(image, name, "/usr/bin/python3", "-c", STORM, snapshotter=snapshotter))
    return first, warm, count


def start(node: Node, image: str, name: str, snapshotter: str) -> float:
    """Seconds from nothing to the output of a small program."""
    began = time.perf_counter()
    node.run(image, name, "/usr/bin/python3", "-c", "print('up')", snapshotter=snapshotter)
    return time.perf_counter() - began


def figures(node: Node, image: str, word: str, snapshotter: str = PLUGIN) -> dict[str, float]:
    """All figures of one form."""
    cold_start = start(node, image, "start1", snapshotter)
    cold, warm, _ = container(node, image, "storm1", snapshotter)
    after, _, _ = container(node, image, "storm2", snapshotter)
    return {
        f"{word} cold start s": cold_start,
        f"{word} next start s": start(node, image, "start2", snapshotter),
        f"{word} cold storm us": cold,
        f"{word} next storm us": after,
        f"{word} warm storm us": warm,
    }


@contextmanager
def node_over(work: Path, url: str, form: str) -> Iterator[Node]:
    """A node whose mount has an empty cache."""
    with (
        tempfile.TemporaryDirectory(dir=work) as name,
        mounted(NAME, [url], work / "keys" / f"{NAME}.pub", Path(name)) as mount,
        service_folder() as folder,
    ):
        config = folder / "c.toml"
        config.write_text(f'[snapshotter]\nrootfs = "{form}"\n')
        with running_node(folder, FakeRepository(mount.path), "--config", str(config)) as node:
            yield node


def one_run(work: Path, url: str, image: str, layout: str) -> dict[str, float]:
    """Both forms, and overlayfs with everything unpacked on the local disk."""
    found: dict[str, float] = {}
    for form in ("fuse", "erofs"):
        with node_over(work, url, form) as node:
            node.unpackd("pull", image)
            found |= figures(node, image, form)
    with service_folder() as folder:
        (folder / "nothing").mkdir()
        with running_node(folder, FakeRepository(folder / "nothing")) as node:
            archive = folder / "image.tar"
            subprocess.run(["tar", "-C", layout, "-cf", archive, "."], check=True)
            node.ctr("images", "import", "--base-name", "local", "--snapshotter", "overlayfs", str(archive))
            local = next(name for name in node.ctr("images", "ls", "-q").stdout.split() if name.startswith("local"))
            Path("/proc/sys/vm/drop_caches").write_text("2")
            found |= figures(node, local, "overlayfs", "overlayfs")
    return found


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", help="oci:DIR:TAG")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, run_registry(Path(folder)) as registry:
        work = Path(folder)
        (work / "keys").mkdir()
        repository = Repository.create(NAME, str(work / "storage"), work / "keys", durable=False)

        async def convert() -> ConversionResult:
            return await convert_image(ConversionRequest(source=parse_source(arguments.image)), repository)

        result = anyio.run(convert)
        image = registry.push(arguments.image, "bench/image:1")
        with origin(work) as url:
            runs = [one_run(work, url, image, arguments.image.split(":")[1]) for _ in range(arguments.runs)]
    medians = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
    if arguments.json:
        print(json.dumps({"entries": result.entries, "runs": arguments.runs, "medians": medians}, indent=2))
    else:
        print(f"{result.entries} entries", file=sys.stderr)
        for key, value in medians.items():
            print(f"{key:24} {value:10}")


if __name__ == "__main__":
    main()
