"""The cache directory: quota, order of use, restarts, damage."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.client.cache import ObjectCache
from fs.client.cache_writer import CacheFullError
from fs.client.object_file import BLOCK_BYTES, Checksums, ObjectFile
from fs.errors import CorruptError
from fs.format.hashes import Hash

QUOTA = 100_000


def _cache(directory: Path, quota_bytes: int = QUOTA) -> ObjectCache:
    cache = ObjectCache(directory, quota_bytes)
    cache.start()
    return cache


def _store(cache: ObjectCache, content: bytes) -> Hash:
    name = Hash.of(content)
    with cache.writer(name, expected_bytes=len(content)) as writer:
        writer.write(content)
        writer.commit()
    return name


def _content(number: int, size: int = 20_000) -> bytes:
    return number.to_bytes(4, "little") * (size // 4)


def test_what_was_stored_is_found_in_the_next_life(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    name = _store(cache, b"content")
    cache.close()
    again = _cache(tmp_path)
    found = again.find(name)
    assert found is not None
    assert found.read(0, 100) == b"content"
    again.close()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    names = [_store(cache, _content(number)) for number in range(4)]
    cache.find(names[0])
    names += [_store(cache, _content(number)) for number in range(10, 12)]
    assert names[0] in cache
    assert names[1] not in cache
    assert cache.used_bytes <= QUOTA
    cache.close()


def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    names = [_store(cache, _content(number)) for number in range(4)]
    cache.close()
    cache = _cache(tmp_path)
    cache.find(names[0])
    cache.close()
    cache = _cache(tmp_path, 50_000)
    assert names[0] in cache
    assert names[1] not in cache
    cache.close()


def test_an_object_larger_than_the_quota_is_kept_until_the_next(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    large = _store(cache, _content(1, 300_000))
    found = cache.find(large)
    assert found is not None
    assert found.read(299_996, 100) == (1).to_bytes(4, "little")
    _store(cache, _content(2))
    assert cache.used_bytes <= QUOTA
    cache.close()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    cache.writer(Hash.of(b"x")).write(b"part")
    cache.close()
    cache = _cache(tmp_path)
    assert list((tmp_path / "incoming" / "0").iterdir()) == []
    assert cache.object_count == 0
    cache.close()


def test_an_attempt_that_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    with cache.writer(Hash.of(b"x")) as writer:
        writer.write(b"x")
        writer.restart()
    assert list((tmp_path / "incoming" / "0").iterdir()) == []
    assert cache.find(Hash.of(b"x")) is None
    cache.close()


def _on_disk(directory: Path) -> int:
    return sum(file.stat().st_size for file in (directory / "objects").rglob("*") if file.is_file())


def test_two_users_of_a_directory_keep_one_quota_and_find_what_the_other_stored(tmp_path: Path) -> None:
    one, other = _cache(tmp_path), _cache(tmp_path)
    names = [
        _store(cache, _content(2 * number + turn)) for number in range(6) for turn, cache in enumerate((one, other))
    ]
    assert one.used_bytes == other.used_bytes == _on_disk(tmp_path) <= QUOTA
    kept = [name for name in names if Path(one.path_of(name)).exists()]
    assert names[-1] in kept
    for cache in (one, other):
        assert set(kept) <= {name for name in names if name in cache}  # it may believe in what is gone
        for name in kept:
            found = cache.find(name)
            assert found is not None
            assert found.size_bytes == 20_000
        assert [name for name in names if cache.find(name) is not None] == kept
        assert cache.counts.damaged == 0
    one.close()
    other.close()


def test_what_the_other_uses_is_kept_longer(tmp_path: Path) -> None:
    one, other = _cache(tmp_path), _cache(tmp_path)
    names = [_store(one, _content(number)) for number in range(4)]
    os.utime(one.path_of(names[0]), (1, 1))
    other._touched.clear()
    assert other.find(names[0]) is not None  # its time of use is written
    for number in range(10, 12):
        _store(other, _content(number))
    assert Path(one.path_of(names[0])).exists()
    assert not Path(one.path_of(names[1])).exists()
    one.close()
    other.close()


def test_what_a_killed_user_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    one = _cache(tmp_path)
    (tmp_path / "incoming" / "7").mkdir()
    (tmp_path / "incoming" / "7" / "1").write_bytes(b"half")
    with one.writer(Hash.of(b"whole")) as writer:
        writer.write(b"whole")
        other = _cache(tmp_path)
        assert not list((tmp_path / "incoming" / "7").iterdir())
        writer.commit()
    assert other.find(Hash.of(b"whole")) is not None
    one.close()
    other.close()


def test_a_number_that_went_wrong_is_set_right(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    _store(cache, _content(1))
    (tmp_path / "used").write_bytes(b"\xff" * 4 + bytes(4))  # as after a kill, only more
    _store(cache, _content(2))
    assert cache.used_bytes == _on_disk(tmp_path)
    cache.close()
    (tmp_path / "used").write_bytes(b"junk")
    cache = _cache(tmp_path)
    assert cache.used_bytes == _on_disk(tmp_path)
    cache.close()


def test_one_user_fetches_an_object_at_a_time_and_a_dead_one_none(tmp_path: Path) -> None:
    one, other = _cache(tmp_path), _cache(tmp_path)
    name = Hash.of(b"x")
    assert one.claim(name)
    assert not other.claim(name)
    assert other.claim(Hash.of(b"y"))
    one.close()
    assert other.claim(name)
    other.release(name)
    other.close()


def test_what_is_pinned_makes_no_room(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    coming = Hash.of(_content(1))
    cache.pin(coming)
    cache.pin(coming)
    first = _store(cache, _content(1))
    names = [_store(cache, _content(number)) for number in range(2, 8)]
    assert first == coming
    assert cache.pinned_bytes > 20_000
    assert (first in cache, names[0] in cache, names[-1] in cache) == (True, False, True)
    cache.unpin(coming)
    cache.shrink(0)
    assert first in cache
    cache.unpin(coming)
    cache.shrink(0)
    assert (first in cache, cache.pinned_bytes) == (False, 0)
    cache.close()


def test_an_evicted_file_that_is_open_stays_readable(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    name = _store(cache, b"content")
    private = cache.open_private(name)
    cache.shrink(0)
    assert cache.find(name) is None
    assert private.read(0, 10) == b"content"
    private.close()
    cache.close()


def test_a_directory_that_cannot_be_written_takes_nothing(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    os.rmdir(tmp_path / "incoming" / "0")
    with pytest.raises(CacheFullError):
        cache.writer(Hash.of(b"x"))
    cache.close()


def _object_file(directory: Path, content: bytes, name: str = "name", body: bytes | None = None) -> ObjectFile:
    checksums = Checksums()
    checksums.update(content)
    path = directory / "file"
    path.write_bytes((content if body is None else body) + checksums.trailer("name"))
    return ObjectFile(os.open(path, os.O_RDONLY), name)


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES])
def test_every_part_can_be_read(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = _object_file(tmp_path, content)
    for offset in {0, 1, size // 2, size - 1, size, BLOCK_BYTES - 1, BLOCK_BYTES}:
        for count in (0, 1, 100, BLOCK_BYTES, size):
            assert file.read(max(0, offset), count) == content[max(0, offset) : max(0, offset) + count]
    assert b"".join(file.pieces()) == content
    file.close()


@given(st.integers(0, 3 * BLOCK_BYTES - 1), st.integers(1, 255))
def test_a_flipped_byte_is_found_by_whoever_reads_its_block(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int
) -> None:
    content = bytes(3 * BLOCK_BYTES)
    flipped = bytearray(content)
    flipped[position] ^= mask
    file = _object_file(tmp_path_factory.getbasetemp(), content, body=bytes(flipped))
    with pytest.raises(CorruptError, match="name"):
        file.read(position, 1)
    other = (position // BLOCK_BYTES + 1) % 3 * BLOCK_BYTES
    assert file.read(other, 10) == bytes(10)
    file.close()


def test_a_file_under_another_name_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="sealed"):
        _object_file(tmp_path, b"content", name="other")
