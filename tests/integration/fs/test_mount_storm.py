"""Everything misbehaves at once: never a wrong byte."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.flaky_origin import absent, broken, cut, flaky_origin, flipped, login_page
from tests.support.mounts import mounted
from tests.support.published import publish

QUOTA_BYTES = 2_000_000
READERS = 32


def _flip_something(objects: Path) -> None:
    """Change a byte of some cached object, if it has not gone meanwhile."""
    files = [file for file in objects.rglob("*") if file.is_file()]
    if not files:
        return
    try:
        with random.choice(files).open("r+b") as stream:
            position = random.randrange(os.fstat(stream.fileno()).st_size)
            byte = os.pread(stream.fileno(), 1, position)[0]
            os.pwrite(stream.fileno(), bytes([byte ^ 0xFF]), position)
    except OSError:
        return


@pytest.mark.root
def test_a_spoilt_server_a_spoilt_cache_and_a_small_quota(tmp_path: Path) -> None:
    published = publish(tmp_path / "made")
    contents: dict[str, bytes] = {}
    for number in range(3):
        folder = f"/d{number}"
        published.nest(folder)
        files = {f"{folder}/f{one}": os.urandom(random.choice([10, 5000, 70_000, 300_000])) for one in range(50)}
        published.commit(*(published.file(path, content) for path, content in files.items()))
        contents |= files
    faults = [flipped, cut, broken, absent, login_page]

    def spoilt(_: str, content: bytes) -> tuple[int, bytes]:
        return random.choice(faults)(content) if random.random() < 0.15 else (200, content)

    with flaky_origin(published.storage) as bad, flaky_origin(published.storage) as good:
        bad.answer = spoilt  # type: ignore[method-assign]
        urls = [bad.url, good.url]
        options = ("--quota", str(QUOTA_BYTES))
        with mounted(published.name, urls, published.public_key, tmp_path / "work", *options) as mount:
            over = threading.Event()

            def spoil() -> None:
                while not over.wait(0.01):
                    _flip_something(tmp_path / "work" / "cache" / "objects")

            def read(path: str) -> bool:
                return Path(f"{mount.path}{path}").read_bytes() == contents[path]

            spoiler = threading.Thread(target=spoil)
            spoiler.start()
            try:
                paths = random.sample(list(contents) * 2, len(contents) * 2)
                with ThreadPoolExecutor(READERS) as pool:
                    results = list(pool.map(read, paths))
            finally:
                over.set()
                spoiler.join()

            assert all(results)
            status = mount.control("status")
            assert status["io_errors"] == 0
            assert status["cache"]["used_bytes"] <= QUOTA_BYTES
            assert status["cache"]["evicted"] > 0
            assert "request_broken" not in mount.log_text()
