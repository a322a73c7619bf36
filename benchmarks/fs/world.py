"""What is measured: a repository with a local copy of everything in it, an origin, a relay, mounts."""

import marshal
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from urllib.parse import urlsplit

from fs.format.tree import Node
from fs.publish.operations import Graft
from fs.publish.repository import Repository
from fs.rootfs.erofs import build_metadata_image
from fs.rootfs.mounting import mount_root, unmount
from tests.support.delaying_relay import delaying_relay

NAME = "bench.example.org"
UNPACKD = (sys.executable, "-m", "unpackd")
SMALL_BYTES = 4096
IN_ONE_FOLDER = 100
MODULES_IN_A_PACKAGE = 50
_UNCHECKED_HASH = (1).to_bytes(4, "little")  # Source: PEP 552; the source is looked at, and not read


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much there is of everything; 0 leaves a part out."""

    small: int = 400  # files of 4 KiB
    tree: int = 25_900  # entries
    modules: int = 3_000
    long_mib: int = 1024


@dataclass(frozen=True, slots=True)
class World:
    """Everything lies in one folder."""

    work: Path
    sizes: Sizes

    @property
    def local(self) -> Path:
        """The local copy."""
        return self.work / "local"

    @property
    def cache(self) -> Path:
        """Of the mounts."""
        return self.work / "cache"

    @property
    def image(self) -> Path:
        """The metadata image of the tree."""
        return self.work / "tree.erofs"


def build(work: Path, sizes: Sizes) -> World:
    """Publish all parts, and write the same below ``local``."""
    world = World(work, sizes)
    keys = work / "keys"
    keys.mkdir()
    repository = Repository.create(NAME, str(work / "storage"), keys, durable=False)
    ingester = repository.ingester()
    root = Node(mode=stat.S_IFDIR | 0o755)

    def put(place: str, content: bytes) -> None:
        """A file at *place*, in the tree and locally."""
        *folders, name = place.split("/")
        node = root
        for folder in folders:
            node = node.children.setdefault(folder.encode(), Node(mode=stat.S_IFDIR | 0o755))
        node.children[name.encode()] = Node(mode=stat.S_IFREG | 0o644, content=ingester.add_bytes(content))
        file = world.local / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    for number in range(sizes.small):
        put(f"small/{number // IN_ONE_FOLDER}/{number}", os.urandom(SMALL_BYTES // 2) * 2)
    for number in range(sizes.tree * IN_ONE_FOLDER // (IN_ONE_FOLDER + 1)):
        folder = number // IN_ONE_FOLDER
        put(f"tree/{folder // 16}/{folder}/{number}", os.urandom(SMALL_BYTES // 8) * (1 + number % 15))
    _put_modules(put, sizes.modules)
    if sizes.long_mib:
        pattern = os.urandom(1 << 19) * 2
        with (world.local / "long").open("wb") as stream:
            for number in range(sizes.long_mib):
                stream.write(number.to_bytes(8) + pattern[8:])
        with (world.local / "long").open("rb") as source:
            content = ingester.add_stream(source.read, sizes.long_mib << 20)
        root.children[b"long"] = Node(mode=stat.S_IFREG | 0o644, content=content)
    repository.commit([Graft(b"/tree", repository.prepare_subtree(b"/tree", root))])
    world.image.write_bytes(build_metadata_image(root, lambda path, _: path))
    return world


def _put_modules(put: Callable[[str, bytes], None], modules: int) -> None:
    """Packages of modules with compiled code beside their source, as installers leave them; ``start`` imports all."""
    names: list[str] = []
    for number in range(modules):
        package = f"p{number // MODULES_IN_A_PACKAGE}"
        if number % MODULES_IN_A_PACKAGE == 0:
            _put_module(put, f"python/{package}", "__init__", "")
        body = "\n".join(f"def function_{number}_{line}(value):\n    return value + {line}" for line in range(20))
        _put_module(put, f"python/{package}", f"m{number}", body)
        names.append(f"{package}.m{number}")
    if names:
        put("python/start.py", "\n".join(f"import {name}" for name in names).encode())


def _put_module(put: Callable[[str, bytes], None], folder: str, name: str, source: str) -> None:
    code = marshal.dumps(compile(source, f"{folder}/{name}.py", "exec"))
    put(f"{folder}/{name}.py", source.encode())
    compiled = MAGIC_NUMBER + _UNCHECKED_HASH + bytes(8) + code
    put(f"{folder}/__pycache__/{name}.{sys.implementation.cache_tag}.pyc", compiled)


@contextmanager
def origin(work: Path) -> Iterator[str]:
    """The HTTP origin, as users run it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (work / "origin.log").open("w") as log:
        server = subprocess.Popen(
            [*UNPACKD, "repo", "serve", "--storage", work / "storage", "--listen", f"127.0.0.1:{port}"], stderr=log
        )
    try:
        deadline = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/cvmfs/{NAME}"
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def away(url: str, round_trip_ms: float) -> Iterator[str]:
    """*url* as it is with *round_trip_ms* more to each round trip; the relay is a process of its own."""
    if not round_trip_ms:
        yield url
        return
    place = urlsplit(url)
    target = place.hostname or "", place.port or 80
    hearing, telling = multiprocessing.Pipe(duplex=False)
    relay = multiprocessing.get_context("fork").Process(target=_relay, args=(target, round_trip_ms / 1000, telling))
    relay.start()
    try:
        yield f"http://127.0.0.1:{hearing.recv()}{place.path}"
    finally:
        relay.terminate()
        relay.join(10)


def _relay(target: tuple[str, int], round_trip_s: float, telling: multiprocessing.connection.Connection) -> None:
    with delaying_relay(target, round_trip_s) as relay:
        telling.send(relay.port)
        signal.pause()


@dataclass(frozen=True, slots=True)
class Mount:
    """A repository that is mounted."""

    point: Path
    seconds: float  # that mounting took

    @property
    def root(self) -> Path:
        """What equals the local copy."""
        return self.point / "tree"


@contextmanager
def mount(world: World, url: str, frontend: str, *options: str | Path, keeps_cache: bool = False) -> Iterator[Mount]:
    """A fresh mount; its cache is empty unless *keeps_cache*. ``erofs`` is the kernel-native form over ``wire``."""
    if not keeps_cache:
        shutil.rmtree(world.cache, ignore_errors=True)
    is_native = frontend == "erofs"
    mountpoint, native = world.work / "mnt", world.work / "native" / "tree"
    mountpoint.mkdir(exist_ok=True)
    arguments: list[str | Path] = [
        "--url",
        url,
        "--pubkey",
        world.work / "keys" / f"{NAME}.pub",
        "--cache",
        world.cache,
    ]
    arguments += ["--frontend", "wire" if is_native else frontend, *options]
    began = time.perf_counter()
    subprocess.run([*UNPACKD, "mount", NAME, mountpoint, *arguments], check=True, capture_output=True, timeout=60)
    seconds = time.perf_counter() - began
    try:
        if is_native:
            native.mkdir(parents=True, exist_ok=True)
            mount_root(world.image, mountpoint / "tree", native)
            yield Mount(native.parent, seconds)
        else:
            yield Mount(mountpoint, seconds)
    finally:
        if is_native:
            unmount(native)
        subprocess.run([*UNPACKD, "umount", mountpoint], check=True, capture_output=True, timeout=60)


def mountctl(world: World, *arguments: str | Path) -> bytes:
    """What mountctl prints about the mount that there is."""
    command = [*UNPACKD, "mountctl", world.work / "mnt", *arguments, "--json"]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout


def forget_locally(folder: Path) -> None:
    """Make the kernel forget the names below *folder* and what it keeps of the files."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    Path("/proc/sys/vm/drop_caches").write_text("2", "ascii")
