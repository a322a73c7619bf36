"""What ten related images share: by layers, as a registry stores them, by files, and by chunks, as the repository does.

Run as root from the project's folder: ``python -m benchmarks.dedup [--images FOLDER]``. The images are the ten of
``benchmarks/make-images.sh FOLDER kin``: five applications over one base, each in two versions.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio

from converter.conversion import ConversionRequest, ConversionResult
from converter.pipeline import convert_image
from converter.sources import parse_source
from converter.tree_digest import items_of_view
from fs.format.hashes import Hash, Suffix
from fs.publish.repository import Repository
from fs.store.local import LocalStore

MAKER = Path(__file__).with_name("make-images.sh")
COUNT = 10


def blob_sizes(layout: Path) -> dict[str, int]:
    """Size of each layer of the image in *layout*, by digest."""
    [described] = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs" / described["digest"].replace(":", "/")).read_text())
    return {layer["digest"]: layer["size"] for layer in manifest["layers"]}


def convert(layouts: list[Path], repository: Repository) -> list[ConversionResult]:
    """Publish all images, one after the other."""

    async def run() -> list[ConversionResult]:
        return [
            await convert_image(
                ConversionRequest(source=parse_source(f"oci:{layout}:1"), name=f"bench.example.org/{layout.name}:1"),
                repository,
            )
            for layout in layouts
        ]

    return anyio.run(run)


def measure(layouts: list[Path], folder: Path) -> dict[str, object]:
    """The figures."""
    storage = folder / "storage"
    repository = Repository.create("bench.example.org", str(storage), folder / "keys", durable=False)
    results = convert(layouts, repository)
    layers: dict[str, int] = {}
    all_layers = 0
    for layout in layouts:
        sizes = blob_sizes(layout)
        all_layers += sum(sizes.values())
        layers |= sizes
    view, store = repository.view(), LocalStore(storage)
    files: dict[tuple[Hash, ...], int] = {}
    objects: dict[tuple[Hash, Suffix], int] = {}
    all_bytes = all_files = 0
    for result in results:
        for item in items_of_view(view, result.flat_path.encode()):
            if item.content is None or item.first != item.path or not item.content.size:
                continue
            content = item.content
            all_bytes += content.size
            all_files += 1
            parts = [(chunk.hash, Suffix.CHUNK, chunk.size) for chunk in content.chunks]
            if content.hash is not None:
                parts = [(content.hash, Suffix.PLAIN, content.size)]
            files[tuple(name for name, _, _ in parts)] = content.size
            objects |= {(name, suffix): size for name, suffix, size in parts}
    stored = sum(found.size_bytes for one in objects if (found := store.describe(*one)) is not None)
    return {
        "images": len(layouts),
        "files": all_files,
        "bytes": all_bytes,
        "layers": {"all": all_layers, "distinct": sum(layers.values()), "number": len(layers)},
        "distinct_files": {"number": len(files), "bytes": sum(files.values())},
        "distinct_chunks": {"number": len(objects), "bytes": sum(objects.values()), "stored": stored},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("/var/cache/unpackd-demo/images"))
    options = parser.parse_args()
    subprocess.run([MAKER, options.images, "kin"], check=True)
    layouts = [options.images / f"kin-{number}" for number in range(1, COUNT + 1)]
    with tempfile.TemporaryDirectory(prefix="unpackd-bench-") as folder:
        json.dump(measure(layouts, Path(folder)), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
