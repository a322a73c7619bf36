"""A reader gets the right bytes or an error that names the object; whatever the servers, the disk or the cache do."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from fs.errors import AbsentError, CorruptError, FsError, NotTrustedError, RollbackError, UnreachableError
from fs.store.limits import HttpLimits
from tests.support.flaky_origin import Answer, absent, broken, cut, endless, flaky_origin, flipped, login_page
from tests.support.library import Library, opened
from tests.support.published import Published, publish

CONTENT = bytes(range(256)) * 1000
QUICK = HttpLimits(connect_timeout_s=1, idle_timeout_s=0.5, low_speed_window_s=0.5)


@pytest.fixture(autouse=True)
def _fresh_loggers() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.nest("/dir")
    made.commit(made.file("/dir/inner", b"inside"), made.file("/file", CONTENT))
    return made


def _cached_files(cache: Path) -> list[Path]:
    return [file for file in (cache / "objects").rglob("*") if file.is_file()]


@pytest.mark.parametrize("answer", [flipped, cut, absent, broken, login_page, endless], ids=lambda a: a.__name__)
def test_an_object_that_the_only_server_spoils_is_an_error_that_names_it(
    published: Published, tmp_path: Path, answer: Answer
) -> None:
    name = published.object_of(CONTENT)
    wanted = name.parent.name + name.name
    with flaky_origin(published.storage) as origin:
        origin.always(name.name, answer)
        with (
            capture_logs() as log,
            opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library,
        ):
            with pytest.raises((CorruptError, AbsentError, UnreachableError)):
                library.content(b"/file")
            assert any(line["event"] == "object_not_served" and line["object"] == wanted for line in log)
            assert any(line["event"] == "read_failed" and line["url"] == origin.url for line in log)
            assert library.content(b"/dir/inner") == b"inside"

            origin.mend()
            assert library.content(b"/file") == CONTENT


@pytest.mark.parametrize("answer", [flipped, cut, absent, broken, login_page], ids=lambda a: a.__name__)
def test_what_one_server_spoils_the_next_one_gives(published: Published, tmp_path: Path, answer: Answer) -> None:
    with flaky_origin(published.storage) as bad, flaky_origin(published.storage) as good:
        bad.always("/", answer)
        with opened(published.name, [bad.url, good.url], published.public_key, tmp_path / "c") as library:
            assert library.content(b"/file") == CONTENT
            assert library.content(b"/dir/inner") == b"inside"


def test_a_corrupt_object_is_asked_for_again_past_the_caches_on_the_way(published: Published, tmp_path: Path) -> None:
    name = published.object_of(CONTENT)
    with flaky_origin(published.storage) as origin:
        origin.in_turn(name.name, flipped, None)
        with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
            assert library.content(b"/file") == CONTENT

        asked = [headers for path, headers in zip(origin.requests, origin.headers, strict=True) if name.name in path]
    assert [headers.get("cache-control") for headers in asked] == [None, "no-cache"]


@pytest.mark.parametrize("part", ["published", "whitelist", "X", "C"])
@pytest.mark.parametrize("answer", [flipped, cut, login_page, absent], ids=lambda a: a.__name__)
def test_nothing_of_the_trust_chain_may_be_spoilt(
    published: Published, tmp_path: Path, part: str, answer: Answer
) -> None:
    with flaky_origin(published.storage) as origin:
        for path in published.storage.rglob("*"):
            if path.is_file() and path.name.endswith(part):
                origin.always(path.name, answer)
        with pytest.raises(FsError), opened(published.name, [origin.url], published.public_key, tmp_path / "c"):
            pass


def test_a_key_of_somebody_else_is_not_trusted(published: Published, tmp_path: Path) -> None:
    other = publish(tmp_path / "other")

    with (
        pytest.raises(NotTrustedError),
        opened(published.name, [str(published.storage)], other.public_key, tmp_path / "c"),
    ):
        pass


def test_an_older_revision_than_the_newest_seen_is_refused_and_the_newest_stays(
    published: Published, tmp_path: Path
) -> None:
    manifest = published.storage / ".cvmfspublished"
    old = manifest.read_bytes()
    newest = published.put(file=b"newer")
    with opened(published.name, [str(published.storage)], published.public_key, tmp_path / "c") as library:
        assert library.content(b"/file") == b"newer"
        manifest.write_bytes(old)
        with pytest.raises(RollbackError):
            library.run(library.repository.refresh)
        assert library.repository.revision.number == newest

    with opened(published.name, [str(published.storage)], published.public_key, tmp_path / "c") as library:
        assert library.repository.revision.number == newest
        assert library.repository.is_offline
        assert library.content(b"/file") == b"newer"


def test_a_whitelist_that_expired_opens_nothing_and_ends_nothing(published: Published, tmp_path: Path) -> None:
    expired = published.writer.whitelist_expires() + timedelta(hours=1)
    where = [str(published.storage)]
    with opened(published.name, where, published.public_key, tmp_path / "c") as library:
        revision = library.repository.revision.number
        published.put(file=b"newer")
        library.repository._now = lambda: expired
        with pytest.raises(NotTrustedError, match="expired"):
            library.run(library.repository.refresh)
        assert library.repository.revision.number == revision
        assert library.content(b"/file") == CONTENT

    with (
        pytest.raises(NotTrustedError, match="expired"),
        opened(published.name, where, published.public_key, tmp_path / "c", now=expired),
    ):
        pass


def test_what_was_seen_before_is_shown_without_any_server(published: Published, tmp_path: Path) -> None:
    with flaky_origin(published.storage) as origin:
        url = origin.url
        with opened(published.name, [url], published.public_key, tmp_path / "c", limits=QUICK) as library:
            assert library.content(b"/file") == CONTENT
    with opened(published.name, [url], published.public_key, tmp_path / "c", limits=QUICK) as library:
        assert library.content(b"/file") == CONTENT
        with pytest.raises(UnreachableError):
            library.content(b"/dir/inner")


@pytest.mark.parametrize("moment", ["while it runs", "between two lives"])
@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 0.9, 0.999])
def test_a_byte_flipped_in_the_cache_is_found_and_the_object_fetched_again(
    published: Published, tmp_path: Path, moment: str, position: float
) -> None:
    cache = tmp_path / "c"

    def flip_all() -> None:
        for file in _cached_files(cache):
            place = int((file.stat().st_size - 1) * position)
            with file.open("r+b") as stream:
                stream.seek(place)
                byte = stream.read(1)[0]
                stream.seek(place)
                stream.write(bytes([byte ^ 0x10]))

    def read(library: Library) -> None:
        assert library.content(b"/file") == CONTENT
        assert library.content(b"/dir/inner") == b"inside"
        assert sorted(library.names(b"")) == [b"dir", b"file", b"new_repository"][: len(library.names(b""))]

    with opened(published.name, [str(published.storage)], published.public_key, cache) as library:
        read(library)
        if moment == "while it runs":
            flip_all()
            with capture_logs() as log:
                read(library)
            assert [line["object"] for line in log if line["event"] == "cache_object_damaged"]
    if moment != "while it runs":
        flip_all()
        with (
            capture_logs() as log,
            opened(published.name, [str(published.storage)], published.public_key, cache) as library,
        ):
            read(library)
        assert [line["object"] for line in log if line["event"] == "cache_object_damaged"]


def test_cache_files_that_are_cut_emptied_or_swapped_are_fetched_again(published: Published, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    with opened(published.name, [str(published.storage)], published.public_key, cache) as library:
        library.content(b"/file")
        library.content(b"/dir/inner")
    files = sorted(_cached_files(cache), key=lambda file: file.stat().st_size)
    bodies = [file.read_bytes() for file in files]
    for damage in ("cut", "empty", "swap", "zero"):
        for file, own, other in zip(files, bodies, bodies[1:] + bodies[:1], strict=True):
            damaged = {"cut": own[:-1], "empty": b"", "swap": other, "zero": bytes(len(own))}[damage]
            file.write_bytes(damaged)
        with opened(published.name, [str(published.storage)], published.public_key, cache) as library:
            assert library.content(b"/file") == CONTENT, damage
            assert library.content(b"/dir/inner") == b"inside", damage


def test_many_readers_of_one_object_cause_one_request(published: Published, tmp_path: Path) -> None:
    name = published.object_of(CONTENT)
    with flaky_origin(published.storage) as origin:
        origin.delay_s = 0.05
        with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
            inode = library.inode(b"/file")
            results: list[bytes] = []

            async def read_once() -> None:
                results.append(await library.operations.read(inode, 0, len(CONTENT)))

            async def read_all() -> None:
                async with anyio.create_task_group() as group:
                    for _ in range(64):
                        group.start_soon(read_once)

            library.run(read_all)
        assert results == [CONTENT] * 64
        assert origin.count(name.name) == 1


def test_the_cache_keeps_to_its_quota_and_goes_on_serving(published: Published, tmp_path: Path) -> None:
    files = {f"f{number}": os.urandom(50_000) for number in range(20)}
    published.put(**files)
    quota = 300_000
    with opened(
        published.name, [str(published.storage)], published.public_key, tmp_path / "c", quota_bytes=quota
    ) as library:
        for _ in range(2):
            for name, content in files.items():
                assert library.content(f"/{name}".encode()) == content
                library.run(library.repository.objects.settle)
                used = sum(file.stat().st_size for file in _cached_files(tmp_path / "c"))
                assert used <= quota
                assert used == library.repository.objects.cache.used_bytes


def test_a_server_that_says_nothing_is_given_up_in_time(published: Published, tmp_path: Path) -> None:
    with (
        flaky_origin(published.storage) as silent,
        flaky_origin(published.storage) as good,
        opened(published.name, [silent.url, good.url], published.public_key, tmp_path / "c", limits=QUICK) as library,
    ):
        silent.silent.set()
        assert library.content(b"/file") == CONTENT
        silent.silent.clear()


def test_a_server_that_trickles_is_given_up_in_time(published: Published, tmp_path: Path) -> None:
    with flaky_origin(published.storage) as slow, flaky_origin(published.storage) as good:
        urls = [slow.url, good.url]
        with opened(published.name, urls, published.public_key, tmp_path / "c", limits=QUICK) as library:
            slow.bytes_per_s = 100
            assert library.content(b"/file") == CONTENT


@pytest.mark.root
def test_a_full_disk_is_served_past(published: Published, tmp_path: Path) -> None:
    import subprocess

    from tests.support.processes import unmount_below

    disk = tmp_path / "disk"
    disk.mkdir()
    big = os.urandom(5 << 20)
    published.put(big=big)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True, timeout=30)
    try:
        with opened(published.name, [str(published.storage)], published.public_key, disk / "c") as library:
            assert library.content(b"/big", piece=1 << 17) == big
            assert library.content(b"/file") == CONTENT
            assert library.content(b"/dir/inner") == b"inside"
            assert library.repository.objects.counts.past_cache >= 2
    finally:
        unmount_below(disk)
