import anyio
import pytest

from snapshotter.fetching import fetching_ahead


class Network:
    """Blobs that arrive when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, anyio.Event] = {}

    async def fetch(self, digest: str) -> None:
        self.begun.append(digest)
        try:
            await self.gates.setdefault(digest, anyio.Event()).wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(digest)
            raise
        if digest == "bad":
            raise ValueError(digest)

    def arrive(self, digest: str) -> None:
        self.gates.setdefault(digest, anyio.Event()).set()


def test_three_at_once_in_order() -> None:
    async def run() -> None:
        network = Network()
        async with fetching_ahead(network.fetch) as fetches:
            fetches.begin("abcde")
            fetches.begin("abcde")
            await anyio.wait_all_tasks_blocked()
            assert network.begun == ["a", "b", "c"]
            network.arrive("b")
            await fetches.wait("b")
            await anyio.wait_all_tasks_blocked()
            assert network.begun == ["a", "b", "c", "d"]
            for digest in "acde":
                network.arrive(digest)
                await fetches.wait(digest)

    anyio.run(run)


def test_what_is_dropped_makes_room() -> None:
    async def run() -> None:
        network = Network()
        async with fetching_ahead(network.fetch) as fetches:
            fetches.begin("abcd")
            await anyio.wait_all_tasks_blocked()
            fetches.drop("a")
            fetches.drop("unknown")
            await anyio.wait_all_tasks_blocked()
            assert network.begun[-1] == "d"
            assert network.cancelled == ["a"]
        assert sorted(network.cancelled) == ["a", "b", "c", "d"]

    anyio.run(run)


def test_failures_are_raised_as_they_are_where_they_are_waited_for() -> None:
    async def run() -> None:
        network = Network()
        network.arrive("bad")
        async with fetching_ahead(network.fetch) as fetches:
            fetches.begin(["bad", "other"])
            await anyio.wait_all_tasks_blocked()
            await fetches.wait("bad")

    with pytest.raises(ValueError, match="bad"):
        anyio.run(run)
