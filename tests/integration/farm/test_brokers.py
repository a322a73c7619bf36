"""The farm over brokers that are installed apart from it."""

import time
from contextlib import ExitStack
from pathlib import Path

from converter.job_rules import ImageState
from tests.integration.farm.conftest import Farm, farm_over
from tests.support.brokers import rabbitmq, redis_over_tcp
from tests.support.processes import free_port


def check_farm(farm: Farm, broker: str) -> None:
    """A wish is done; then a worker is killed in the middle of the next one, which is done all the same."""
    first = farm.wish("tool:1")
    worker = farm.start_worker()
    farm.wait(lambda: len(farm.starts()) == 1, "the first start")
    worker.kill()
    worker.wait()
    killed = time.monotonic()
    worker = farm.start_worker()
    farm.wait(lambda: len(farm.starts()) == 2, "the second start")
    print(f"{broker}: worker killed to started again {time.monotonic() - killed:.2f} s")
    farm.go()
    farm.wait_for(first, ImageState.DONE)
    before = time.monotonic()
    farm.wait_for(farm.wish("tool:2"), ImageState.DONE)
    print(f"{broker}: wish to done {time.monotonic() - before:.3f} s")

    assert [start[:2] for start in farm.starts()] == [
        ["r.example/tool:1", "1"],
        ["r.example/tool:1", "2"],
        ["r.example/tool:2", "1"],
    ]


def test_redis_over_tcp(tmp_path: Path) -> None:
    with redis_over_tcp(tmp_path / "redis") as url, farm_over(url, tmp_path) as farm:
        check_farm(farm, "redis")


def test_rabbitmq_and_its_restart(tmp_path: Path) -> None:
    port = free_port()
    with ExitStack() as first, ExitStack() as second:
        url = first.enter_context(rabbitmq(tmp_path / "rabbitmq", port))
        farm = second.enter_context(farm_over(url, tmp_path))
        check_farm(farm, "rabbitmq")

        first.close()
        wish = farm.wish("tool:3")
        assert farm.dispatcher.tick() == 0  # it says so in the log, and goes on
        second.enter_context(rabbitmq(tmp_path / "rabbitmq", port))
        farm.wait_for(wish, ImageState.DONE, 60)
