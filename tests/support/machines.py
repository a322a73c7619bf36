"""Machines of one network, as far as a test needs them: network namespaces on a bridge, state folders of their own."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import require_root, require_tool


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True, slots=True)
class Machine:
    """One of them."""

    namespace: str
    link: str  # the bridge's end of its cable
    state: Path

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs *words* on it."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def cut_off(self, seconds: float) -> None:
        """Pull the cable for a while."""
        _ip("link", "set", self.link, "down")
        time.sleep(seconds)
        _ip("link", "set", self.link, "up")


@dataclass(frozen=True, slots=True)
class Network:
    """Machines, and the address at which they reach servers that the test runs."""

    address: str
    machines: tuple[Machine, ...]


@contextmanager
def network(folder: Path, count: int) -> Iterator[Network]:
    """So many machines on a bridge; everything is gone at the end. Skips where namespaces cannot be made."""
    require_root()
    require_tool("ip")
    number = os.getpid()
    bridge = f"unpk{number}"
    third = number % 250
    address = f"10.213.{third}.1"
    with ExitStack() as undo:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            undo.callback(_ip, "link", "del", bridge)
            _ip("address", "add", f"{address}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            machines = tuple(_machine(folder, undo, bridge, each, third) for each in range(count))
        except (OSError, subprocess.CalledProcessError) as error:
            said = (
                error.stderr.decode(errors="replace").strip()
                if isinstance(error, subprocess.CalledProcessError)
                else ""
            )
            pytest.skip(f"needs network namespaces, which cannot be made here: {said or error}")
        yield Network(address, machines)


def _machine(folder: Path, undo: ExitStack, bridge: str, number: int, third: int) -> Machine:
    namespace, outside, inside = f"{bridge}-{number}", f"{bridge}o{number}", f"{bridge}i{number}"
    _ip("netns", "add", namespace)
    undo.callback(_ip, "netns", "del", namespace)
    _ip("link", "add", outside, "type", "veth", "peer", "name", inside)
    _ip("link", "set", outside, "master", bridge)
    _ip("link", "set", outside, "up")
    _ip("link", "set", inside, "netns", namespace)
    within = ("-n", namespace)
    _ip(*within, "address", "add", f"10.213.{third}.{number + 2}/24", "dev", inside)
    _ip(*within, "link", "set", inside, "up")
    _ip(*within, "link", "set", "lo", "up")
    state = folder / f"machine{number}"
    state.mkdir()
    return Machine(namespace, outside, state)
