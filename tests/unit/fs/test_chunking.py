import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs.errors import RefusedError
from fs.format.chunking import DEFAULT_SIZES, ChunkSizes, next_cut


def cuts(data: bytes, sizes: ChunkSizes) -> list[int]:
    found: list[int] = []
    view = memoryview(data)
    position = next_cut(view[: sizes.most], sizes)
    while position < len(data):
        found.append(position)
        position += next_cut(view[position : position + sizes.most], sizes)
    return found


def cuts_step_by_step(data: bytes, sizes: ChunkSizes) -> list[int]:
    """The description of the algorithm, taken literally."""
    found: list[int] = []
    last = 0
    while len(data) - last > sizes.least:
        x = 0
        for byte in data[last + sizes.least - 32 : last + sizes.least]:
            x = (x << 1 ^ byte) & 0xFFFFFFFF
        for i in range(last + sizes.least, len(data)):
            if i == last + sizes.most:
                break
            x = (x << 1 ^ data[i]) & 0xFFFFFFFF
            distance = (x - 0x7FFFFFFF) & 0xFFFFFFFF
            signed = distance - (1 << 32) if distance >= 1 << 31 else distance
            if signed == -(1 << 31) or abs(signed) < sizes.threshold:
                break
        else:
            return found
        found.append(i)
        last = i
    return found


def generator_bytes(count: int) -> bytes:
    """Bytes of a 64-bit linear congruential generator that starts at 42, many steps at once."""
    block = 1 << 14
    factor, summand = 6364136223846793005, 1442695040888963407
    factors, summands = [], []
    product, total = 1, 0
    for _ in range(block):
        product, total = product * factor % 2**64, (total * factor + summand) % 2**64
        factors.append(product)
        summands.append(total)
    a, c = np.array(factors, dtype=np.uint64), np.array(summands, dtype=np.uint64)
    state = 42
    parts = []
    for _ in range(-(-count // block)):
        states = a * np.uint64(state) + c
        parts.append((states >> np.uint64(56)).astype(np.uint8).tobytes())
        state = int(states[-1])
    return b"".join(parts)[:count]


def test_the_reference_cuts_where_we_do() -> None:
    # Source: chunker test vector of the reference implementation (t_chunk_detectors.cc), its first cuts
    data = generator_bytes(10_500_000)

    found = cuts(data, ChunkSizes(512_000, 1_024_000, 2_048_000))

    assert found[:10] == [
        742752, 2790752, 3521796, 4188893, 4940543, 5884591, 7131564, 8520617, 9159233, 9999783,
    ]  # fmt: skip


def test_zeros_are_cut_at_the_largest_size() -> None:
    sizes = ChunkSizes(64, 128, 256)

    assert cuts(bytes(1000), sizes) == [256, 512, 768]


def test_a_run_of_ones_is_cut_at_once() -> None:
    sizes = ChunkSizes(64, 128, 256)

    assert cuts(b"\x01" * 1000, sizes) == cuts_step_by_step(b"\x01" * 1000, sizes)
    assert cuts(b"\x01" * 1000, sizes)[0] == 64


@pytest.mark.parametrize("length", [0, 1, 63, 64])
def test_small_files_are_one_chunk(length: int) -> None:
    assert next_cut(bytes(length), ChunkSizes(64, 128, 256)) == length


@given(
    seed=st.integers(0, 2**32),
    length=st.integers(0, 6000),
    alphabet=st.sampled_from([1, 2, 3, 256]),
    sizes=st.sampled_from([ChunkSizes(32, 64, 128), ChunkSizes(64, 128, 512), ChunkSizes(100, 1000, 1500)]),
)
@settings(max_examples=60, deadline=None)
def test_all_at_once_is_step_by_step(seed: int, length: int, alphabet: int, sizes: ChunkSizes) -> None:
    data = bytes(byte % alphabet for byte in random.Random(seed).randbytes(length))

    assert cuts(data, sizes) == cuts_step_by_step(data, sizes)


def test_the_defaults_are_the_reference_servers() -> None:
    assert (DEFAULT_SIZES.least, DEFAULT_SIZES.average, DEFAULT_SIZES.most) == (4194304, 8388608, 16777216)
    assert DEFAULT_SIZES.threshold == 511


@pytest.mark.parametrize("sizes", [(31, 64, 128), (64, 32, 128), (64, 128, 127)])
def test_sizes_must_ascend(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(RefusedError):
        ChunkSizes(*sizes)
