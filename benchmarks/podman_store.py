"""What the store for podman costs a commit, by the number of images in it.

``python -m benchmarks.podman_store [IMAGES…]`` fills stores with made-up images of six layers, three of them shared,
and then puts seven more in, one a commit, each beside a small file as the rest of a conversion; and the same without.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from converter.image_records import LayerRecord
from converter.podman_store import PodmanStore, StoredImage
from fs.publish.operations import PutFile
from fs.publish.repository import Repository

ROUNDS = 7
LAYERS, SHARED = 6, 3


def digest(text: str) -> str:
    """A digest that stands for something."""
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def image(number: int) -> StoredImage:
    """A made-up image; the lower half of its layers is that of nine others."""
    names = [f"shared-{number // 10}-{n}" if n < SHARED else f"own-{number}-{n}" for n in range(LAYERS)]
    config = json.dumps({"image": number, "rootfs": {"diff_ids": [digest(name) for name in names]}}).encode()
    return StoredImage(
        manifest=digest(f"manifest-{number}"),
        config="sha256:" + hashlib.sha256(config).hexdigest(),
        manifest_bytes=b"{}" * 500,
        config_bytes=config,
        layers=[
            LayerRecord(digest=digest("blob" + name), diff_id=digest(name), media_type="tar+gzip", size=10_000_000)
            for name in names
        ],
        layer_sizes=[30_000_000] * LAYERS,
        created="2026-01-01T00:00:00+00:00",
    )


def measured(work: Callable[[int], None]) -> float:
    """Median of the seconds that *work* takes."""
    times = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def run(count: int, folder: Path) -> None:
    """Measure with *count* images in the store."""
    repository = Repository.create("bench.test", str(folder / "storage"), folder / "keys")
    put = repository.ingester().add_bytes

    def plain(number: int) -> None:
        repository.commit([PutFile(b"/other", put(b"a%d" % number))])

    def with_store(number: int) -> None:
        view = repository.view()
        store = PodmanStore.read(view)
        store.put(f"r.example/team/new:{number}", image(1_000_000 + number))
        repository.commit([PutFile(b"/other", put(b"b%d" % number)), *store.operations(view, put)])

    before = measured(plain)
    store = PodmanStore.read(repository.view())
    for number in range(count):
        store.put(f"r.example/team/image:{number}", image(number))
    begun = time.perf_counter()
    repository.commit(list(store.operations(repository.view(), put)))
    filled = time.perf_counter() - begun
    after = measured(with_store)
    view = repository.view()
    files = (b"/podmanStore/overlay-images/images.json", b"/podmanStore/overlay-layers/layers.json")
    size = sum(len(view.read(path, 1 << 30)) for path in files)
    print(
        f"{count:>6} images: {size / 1e6:6.2f} MB of JSON; one commit {before * 1000:6.1f} ms without the store, "
        f"{after * 1000:6.1f} ms with (n={ROUNDS}); all at once {filled:.2f} s"
    )


if __name__ == "__main__":
    for word in sys.argv[1:] or ("10", "100", "1000"):
        with tempfile.TemporaryDirectory(prefix="unpackd-") as folder:
            run(int(word), Path(folder))
