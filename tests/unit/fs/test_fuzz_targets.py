"""Whatever strangers send: the targets of ``make fuzz``, with their seeds and with what hypothesis makes of them."""

import random

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_their_beginnings(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        for length in {len(seed), len(seed) // 2, len(seed) - 1, 0}:
            with structlog.testing.capture_logs():
                target.run(seed[:length])


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(randomness=st.integers(0, 1 << 32), changes=st.integers(1, 12))
def test_seeds_with_changed_bytes(name: str, randomness: int, changes: int) -> None:
    target, chance = TARGETS[name], random.Random(randomness)
    changed = bytearray(chance.choice(target.seeds))
    for _ in range(changes):
        place = chance.randrange(len(changed))
        match chance.randrange(3):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                changed[place:place] = chance.choice([*target.words, b"\0", b"\xff" * 8])
            case _:
                changed[place : place + 1] = chance.randbytes(4)
    with structlog.testing.capture_logs():
        target.run(bytes(changed))


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_values_of_a_catalog(data: bytes) -> None:
    TARGETS["catalog_values"].run(data)
