"""Addresses to listen at, and what is printed of a stack."""

from pathlib import Path

import pytest

from converter.errors import FarmUsageError
from converter.up import Stack, parse_listen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8480", ("127.0.0.1", 8480)),
        ("[::1]:0", ("::1", 0)),
        ("farm.example.org:80", ("farm.example.org", 80)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "8480", ":8480", "host:", "host:70000", "::1:80", "host:-1", "[]:80", "host:8 0"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(FarmUsageError):
        parse_listen(text)


def test_the_mount_command_can_be_pasted() -> None:
    stack = Stack(directory=Path("/srv/my stack"), name="unpacked.local", url="http://127.0.0.1:8480")

    assert stack.mount_command == (
        "mkdir -p /cvmfs/unpacked.local && unpackd mount unpacked.local /cvmfs/unpacked.local "
        "--url http://127.0.0.1:8480/cvmfs/unpacked.local --pubkey '/srv/my stack/keys/unpacked.local.pub'"
    )
