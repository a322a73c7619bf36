"""Two images with one large file in common: what the second reader costs, by paths and through the content view.

Each image is a metadata image over the mounted repository, as a node mounts it. Both files are read to their end;
before the second one is read, the kernel is asked how much of it is in memory already.

    python -m benchmarks.page_sharing --runs 5
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from fs.client.control import ask
from fs.client.mountpoints import control_socket
from fs.format.tree import Content, Node
from fs.publish.operations import MakeDirectory, Operation, PutFile
from fs.rootfs.erofs import build_metadata_image
from fs.rootfs.mounting import mount_root, unmount
from tests.support.mounts import mounted
from tests.support.published import publish

SIZE = 128 << 20
TREES = ("/.flat/aa/one", "/.flat/bb/two")


def main() -> None:
    """Measure and print one line a form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    found: dict[str, list[dict[str, float]]] = {"by path": [], "content view": []}
    with tempfile.TemporaryDirectory(prefix="sharing") as folder:
        published = publish(Path(folder, "made"))
        stored = published.writer.ingester().add_bytes(os.urandom(SIZE))
        made: list[Operation] = [MakeDirectory(path) for path in (b"/.unpackd", b"/.flat", b"/.flat/aa", b"/.flat/bb")]
        made += [MakeDirectory(tree.encode(), nested=True) for tree in TREES]
        puts = [PutFile(f"{tree}/lib".encode(), stored) for tree in TREES]
        published.commit(*made, *puts)
        url = published.storage.as_uri()
        with mounted(published.name, [url], published.public_key, Path(folder, "m"), "--frontend", "wire") as mount:
            (mount.path / TREES[0].lstrip("/") / "lib").read_bytes()  # it is in the cache on the disk from now on
            for number in range(runs):
                for form, data in (("by path", mount.path), ("content view", mount.path / ".unpackd/content")):
                    found[form].append(measure(Path(folder, f"{number}{form[0]}"), mount.path, data))
    for form, rows in found.items():
        medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        print(json.dumps({"form": form, "runs": runs, **medians}))


def measure(work: Path, mountpoint: Path, data: Path) -> dict[str, float]:
    """Mount both images over *data* and read the file of the one, then of the other."""
    work.mkdir()
    subprocess.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], check=True)
    points = []
    for tree in TREES:
        root = Node(mode=0o040755)
        root.children[b"lib"] = Node(mode=0o100644, content=Content(SIZE, None))
        image = work / f"{Path(tree).name}.erofs"
        image.write_bytes(build_metadata_image(root, lambda path, _, tree=tree: tree.encode() + path))  # type: ignore[misc]  # bound
        point = work / Path(tree).name
        point.mkdir()
        mount_root(image, data, point)
        points.append(point)
    try:
        first_s, first_bytes = read(points[0] / "lib", mountpoint)
        resident = resident_bytes(points[1] / "lib")
        second_s, second_bytes = read(points[1] / "lib", mountpoint)
    finally:
        for point in points:
            unmount(point)
    return {
        "first_s": first_s,
        "second_s": second_s,
        "asked_first_mib": first_bytes / 2**20,
        "asked_second_mib": second_bytes / 2**20,
        "resident_before_second_mib": resident / 2**20,
    }


def read(file: Path, mountpoint: Path) -> tuple[float, int]:
    """Seconds to read all of *file*, and the bytes that the daemon was asked for meanwhile."""
    socket = control_socket(mountpoint, os.geteuid())
    ask(socket, {"command": "pin", "owner": "benchmark", "paths": TREES})
    before = sum(pin["bytes_read"] for pin in ask(socket, {"command": "pins"}))
    began = time.perf_counter()
    with file.open("rb", buffering=0) as stream:
        while stream.read(1 << 20):
            pass
    took = time.perf_counter() - began
    return took, sum(pin["bytes_read"] for pin in ask(socket, {"command": "pins"})) - before


def resident_bytes(file: Path) -> int:
    """How much of *file* is in the page cache."""
    done = subprocess.run(["fincore", "-b", "-n", "-o", "RES", file], check=True, capture_output=True, text=True)
    return int(done.stdout)


if __name__ == "__main__":
    main()
