"""A real queue and real worker processes, which are killed in all the ways there are."""

import os
import signal
import time

import pytest

from converter.job_rules import ImageState, JobState
from tests.integration.farm.conftest import Farm
from tests.support.processes import wait_until


@pytest.mark.parametrize("farm", ["redis", "files"], indirect=True)
def test_a_wish_is_done(farm: Farm) -> None:
    farm.go()
    wish = farm.wish("tool:1")
    farm.start_worker()

    farm.wait_for(wish, ImageState.DONE)

    before = time.monotonic()
    second = farm.wish("tool:2")
    farm.wait_for(second, ImageState.DONE)
    print(f"wish to done with a running worker: {time.monotonic() - before:.3f} s")
    image = farm.image(wish)
    assert (image.public_path, image.revision, image.attempts) == ("/r.example/tool:1", 2, 1)


def test_the_progress_is_seen_while_it_runs(farm: Farm) -> None:
    wish = farm.wish("tool:1")
    farm.start_worker()

    farm.wait(lambda: farm.image(wish).progress == {"phase": "waiting"}, "progress")
    farm.go()
    farm.wait_for(wish, ImageState.DONE)


@pytest.mark.parametrize(
    ("farm", "who"), [("redis", "worker"), ("redis", "pool process"), ("files", "worker")], indirect=["farm"]
)
def test_kill_9_in_the_middle_and_the_job_is_done_in_the_end(farm: Farm, who: str) -> None:
    wish = farm.wish("tool:1")
    worker = farm.start_worker()
    farm.wait(lambda: len(farm.starts()) == 1, "the first start")
    pool_process = int(farm.starts()[0][2])
    assert int(farm.starts()[0][3]) == worker.pid

    if who == "worker":
        worker.kill()
        worker.wait()
        wait_until(lambda: not _lives(pool_process), "the end of the orphaned pool process", 5)
        farm.start_worker()
    else:
        os.kill(pool_process, signal.SIGKILL)
    before = time.monotonic()
    farm.wait(lambda: len(farm.starts()) == 2, "the second start")
    print(f"{who} killed to started again: {time.monotonic() - before:.2f} s")
    farm.go()
    farm.wait_for(wish, ImageState.DONE)

    assert [start[1] for start in farm.starts()] == ["1", "2"]


def test_a_poison_job_fails_with_the_reason_and_others_go_on(farm: Farm) -> None:
    farm.go()
    poison, good = farm.wish("tool:poison"), farm.wish("tool:good")
    farm.start_worker()

    farm.wait_for(good, ImageState.DONE)
    farm.wait_for(poison, ImageState.FAILED, 60)

    assert len([start for start in farm.starts() if start[0].endswith(":poison")]) == 3
    assert farm.image(poison).error == "the worker died or lost its connection in each of 3 tries"


def test_a_worker_that_is_told_to_stop_at_once_puts_its_job_back(farm: Farm) -> None:
    wish = farm.wish("tool:1")
    worker = farm.start_worker()
    farm.wait(lambda: len(farm.starts()) == 1, "the first start")

    worker.send_signal(signal.SIGQUIT)
    worker.wait(10)

    assert farm.views.jobs()[0].state is JobState.QUEUED
    farm.go()
    farm.start_worker()
    farm.wait_for(wish, ImageState.DONE)
    assert [start[1] for start in farm.starts()] == ["1", "1"]  # it was not the job's fault


def test_a_queue_that_lost_everything_is_filled_again(farm: Farm) -> None:
    wish = farm.wish("tool:1")
    farm.jobs.sent([1])  # as if the broker had taken it and then been emptied
    farm.go()
    farm.start_worker()

    farm.wait_for(wish, ImageState.DONE)


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
