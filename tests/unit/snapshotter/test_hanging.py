import threading

import anyio
import anyio.lowlevel
import pytest

from snapshotter.hanging import PatientThreads, ThreadsExhaustedError


async def answer(threads: PatientThreads) -> int:
    try:
        return await threads.run(lambda: 2)
    except TimeoutError:
        return 0


def test_a_call_that_hangs_is_left_behind_and_new_ones_fail_at_once_until_it_is_back() -> None:
    release = threading.Event()

    async def scenario() -> None:
        threads = PatientThreads(limit=1, timeout_s=0.05)
        with pytest.raises(TimeoutError):
            await threads.run(release.wait)
        with pytest.raises(ThreadsExhaustedError):
            await threads.run(lambda: 1)
        release.set()
        with anyio.fail_after(5):
            while await answer(threads) != 2:
                await anyio.lowlevel.checkpoint()

    try:
        anyio.run(scenario)
    finally:
        release.set()


def test_results_and_errors_come_back() -> None:
    def fail() -> None:
        raise KeyError("x")

    async def scenario() -> None:
        threads = PatientThreads(limit=2, timeout_s=5)
        assert await threads.run(lambda: "value") == "value"
        with pytest.raises(KeyError):
            await threads.run(fail)

    anyio.run(scenario)


def test_more_calls_than_threads_take_turns() -> None:
    running: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def work() -> None:
        with lock:
            running.append(1)
            most.append(len(running))
        with lock:
            running.pop()

    async def scenario() -> None:
        threads = PatientThreads(limit=3, timeout_s=5)
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(threads.run, work)

    anyio.run(scenario)

    assert len(most) == 20
    assert max(most) <= 3
