"""What all ways start from: a registry and a repository that hold the same images."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks.fs.world import origin
from converter.conversion import ConversionRequest
from converter.pipeline import convert_image
from converter.sources import parse_source
from fs.publish.repository import Repository
from tests.support.clients import CLIENTS
from tests.support.node import Programs, running_node
from tests.support.registry import Registry, run_registry
from tests.support.snapshotter import FakeRepository, service_folder

NAME = "bench.example.org"
ARCHIVE = "esgz"
CONTAINERD = Programs(CLIENTS / "containerd-2")
NERDCTL = CLIENTS / "nerdctl" / "nerdctl"
STARGZ = CLIENTS / "stargz" / "containerd-stargz"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where images come from; ``registry`` and ``origin`` are "host:port"."""

    registry: Registry
    origin: str  # URL
    public_key: Path


def prepare(work: Path, layouts: Path, images: list[str]) -> None:
    """Push, convert for ours, and convert for the lazy peer; what is there already stays."""
    work.mkdir(parents=True, exist_ok=True)
    keys = work / "keys"
    is_new = not keys.exists()
    keys.mkdir(exist_ok=True)
    if is_new:
        Repository.create(NAME, str(work / "storage"), keys, durable=False)
    repository = Repository.open(NAME, str(work / "storage"), keys, durable=False)
    with run_registry(work) as registry:
        for image in images:
            layout = f"oci:{layouts / image}:1"
            reference = registry.push(layout, f"bench/{image}:1")

            async def convert(source: str = layout, name: str = image) -> None:
                request = ConversionRequest(source=parse_source(source), name=name_of(name))
                await convert_image(request, repository)

            anyio.run(convert)
            if STARGZ.exists() and NERDCTL.exists() and not (work / f"{image}.{ARCHIVE}").exists():
                make_stargz(reference)
                (work / f"{image}.{ARCHIVE}").touch()


def name_of(image: str) -> str:
    """What it is called in the repository."""
    return f"registry.example.org/bench/{image}:1"


def make_stargz(reference: str) -> None:
    """Push the image once more, in the form that the lazy peer wants."""
    with service_folder() as folder:
        (folder / "nothing").mkdir()
        with running_node(folder, FakeRepository(folder / "nothing"), programs=CONTAINERD) as node:
            target = f"{reference.rpartition(':')[0]}:{ARCHIVE}"
            fetch = [node.programs.path("ctr"), "--address", str(node.socket), "content", "fetch", "--plain-http"]
            subprocess.run([*fetch, reference], check=True, capture_output=True, timeout=600)
            nerdctl = [str(NERDCTL), "--address", str(node.socket), "--namespace", "default", "--insecure-registry"]
            nerdctl += ["--data-root", str(folder / "nerdctl"), "--snapshotter", "overlayfs"]
            convert = ["image", "convert", "--estargz", "--oci", reference, target]
            subprocess.run([*nerdctl, *convert], check=True, capture_output=True, timeout=1800)
            subprocess.run([*nerdctl, "push", "--quiet", target], check=True, capture_output=True, timeout=600)


@contextmanager
def sources(work: Path) -> Iterator[Sources]:
    """The prepared registry and origin, running."""
    with run_registry(work) as registry, origin(work) as url:
        yield Sources(registry, url, work / "keys" / f"{NAME}.pub")
