"""Large files while they arrive: chunk by chunk, in bounded memory, and never a byte that was not verified."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fs.errors import CorruptError
from fs.format.tree import Content
from tests.support.flaky_origin import flaky_origin, flipped
from tests.support.library import opened
from tests.support.published import Published, publish

SIZE = 40 << 20
WHOLE_BYTES = 96 << 20
BOUND_KIB = 48 << 10

_FETCH = """
import sys, anyio
from pathlib import Path
from fs.client.cache import ObjectCache
from fs.client.objects import Objects
from fs.client.receiving import ObjectRef
from fs.format.compression import Compression
from fs.format.hashes import Hash
from fs.store.network import open_network

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

async def main(url, directory, name, size):
    cache = ObjectCache(Path(directory), 1 << 30)
    cache.start()
    async with open_network() as network:
        objects = Objects(cache, network.mirrors([url]))
        ref = ObjectRef(Hash.parse(name), compression=Compression.NONE, size=int(size))
        before = peak()
        data = await objects.read(ref, 0, 10)
        print(data.hex(), peak() - before)
    cache.close()

anyio.run(main, *sys.argv[1:], backend="trio")
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Published, bytes, Content]:
    made = publish(tmp_path_factory.mktemp("large"))
    content = os.urandom(SIZE)
    made.put(file=content)
    stored = made.writer.ingester().add_bytes(content)
    assert len(stored.chunks) >= 3
    return made, content, stored


def test_the_beginning_is_there_before_the_end_has_arrived(
    large: tuple[Published, bytes, Content], tmp_path: Path
) -> None:
    made, content, stored = large
    may_go_on = threading.Event()

    def late(body: bytes) -> tuple[int, bytes]:
        assert may_go_on.wait(60)
        return 200, body

    with flaky_origin(made.storage) as origin:
        for chunk in stored.chunks[1:]:
            origin.always(chunk.hash.digest.hex()[2:], late)
        with opened(made.name, [origin.url], made.public_key, tmp_path / "c") as library:
            inode = library.inode(b"/file")
            first = stored.chunks[0].size
            assert library.run(library.operations.read, inode, 0, 4096) == content[:4096]
            assert library.run(library.operations.read, inode, first - 10, 10) == content[first - 10 : first]
            may_go_on.set()
            assert library.run(library.operations.read, inode, first, 10) == content[first : first + 10]
            assert library.content(b"/file", piece=1 << 20) == content


def test_a_chunk_that_is_spoilt_spoils_no_other(large: tuple[Published, bytes, Content], tmp_path: Path) -> None:
    made, content, stored = large
    bad = stored.chunks[1]
    with flaky_origin(made.storage) as origin:
        origin.always(bad.hash.digest.hex()[2:], flipped)
        with opened(made.name, [origin.url], made.public_key, tmp_path / "c") as library:
            inode = library.inode(b"/file")
            assert library.run(library.operations.read, inode, 0, 100) == content[:100]
            with pytest.raises(CorruptError):
                library.run(library.operations.read, inode, bad.offset, 100)
            after = stored.chunks[2].offset
            assert library.run(library.operations.read, inode, after, 100) == content[after : after + 100]


def test_one_large_object_passes_through_little_memory(tmp_path: Path) -> None:
    body = os.urandom(WHOLE_BYTES)
    name = hashlib.sha1(body).hexdigest()
    place = tmp_path / "storage" / "data" / name[:2] / name[2:]
    place.parent.mkdir(parents=True)
    place.write_bytes(body)
    command = [sys.executable, "-c", _FETCH, (tmp_path / "storage").as_uri(), tmp_path / "c", name, str(WHOLE_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    first, growth_kib = done.stdout.split()
    assert first == body[:10].hex()
    assert int(growth_kib) < BOUND_KIB
    print(f"\n{WHOLE_BYTES >> 20} MiB arrived, memory grew by {int(growth_kib) >> 10} MiB")
