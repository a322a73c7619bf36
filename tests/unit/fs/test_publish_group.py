"""Threads that want something done at the same time."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from fs.errors import FsError, LockedError, OvertakenError, RefusedError
from fs.publish.group import Group, Request


class Desk:
    """Does things in batches; its door can be kept shut."""

    def __init__(self) -> None:
        self.door = threading.Lock()
        self.batches: list[list[int]] = []
        self.group: Group[int, int] = Group(self._locked, self._work)
        self.error: BaseException | None = None

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[None]:
        if not self.door.acquire(timeout=timeout_s):
            raise LockedError("shut")
        try:
            yield
        finally:
            self.door.release()

    def _work(self, batch: Sequence[Request[int, int]]) -> None:
        self.batches.append([request.wanted for request in batch])
        if self.error is not None:
            raise self.error
        for request in batch:
            if request.wanted < 0:
                request.fail(RefusedError("negative"))
            else:
                request.succeed(request.wanted * 2)

    def wait_for(self, count: int) -> None:
        while len(self.group._waiting) < count:
            threading.Event().wait(0.005)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_one_alone_is_done_at_once(desk: Desk) -> None:
    assert desk.group.submit(4, 1) == 8
    assert desk.batches == [[4]]


def test_what_waits_is_done_together_and_each_gets_its_own_answer(desk: Desk) -> None:
    with ThreadPoolExecutor(6) as pool:
        with desk.door:
            futures = [pool.submit(desk.group.submit, number, 10) for number in (1, 2, 3, -1, 5, 6)]
            desk.wait_for(6)
        answers = [future.exception() or future.result() for future in futures]

    assert [sorted(batch) for batch in desk.batches] == [[-1, 1, 2, 3, 5, 6]]
    assert [answer for answer in answers if not isinstance(answer, RefusedError)] == [2, 4, 6, 10, 12]


def test_who_waits_too_long_is_told_and_forgotten(desk: Desk) -> None:
    with desk.door, ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(desk.group.submit, number, 0.05) for number in (1, 2)]
        errors = [future.exception(5) for future in futures]

    assert [type(error) for error in errors] == [LockedError, LockedError]
    assert desk.group.submit(3, 1) == 6
    assert desk.batches == [[3]]


def test_the_patient_outlive_an_impatient_leader(desk: Desk) -> None:
    with ThreadPoolExecutor(2) as pool:
        with desk.door:
            leader = pool.submit(desk.group.submit, 1, 0.2)
            desk.wait_for(1)
            follower = pool.submit(desk.group.submit, 2, 20)
            assert isinstance(leader.exception(5), LockedError)
        assert follower.result(5) == 4


def test_an_error_of_the_work_is_everybodys(desk: Desk) -> None:
    desk.error = OvertakenError("somebody else published")
    with ThreadPoolExecutor(3) as pool:
        with desk.door:
            futures = [pool.submit(desk.group.submit, number, 10) for number in range(3)]
            desk.wait_for(3)
        errors = [future.exception(5) for future in futures]

    assert all(isinstance(error, OvertakenError) for error in errors)


def test_an_interrupt_is_raised_where_it_came_and_others_may_try_again(desk: Desk) -> None:
    desk.error = KeyboardInterrupt()
    with ThreadPoolExecutor(3) as pool:
        with desk.door:
            futures = [pool.submit(desk.group.submit, number, 10) for number in range(3)]
            desk.wait_for(3)
        errors = [future.exception(5) for future in futures]
    desk.error = None

    assert sorted(type(error).__name__ for error in errors) == ["KeyboardInterrupt", "OvertakenError", "OvertakenError"]
    assert [error.transient for error in errors if isinstance(error, FsError)] == [True, True]
    assert desk.group.submit(1, 1) == 2
