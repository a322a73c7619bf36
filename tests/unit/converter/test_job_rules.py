"""States as people see them, and pauses between tries."""

import pytest

from converter.job_rules import ImageState, JobState, Rules, image_state
from converter.owners import Owner, is_dead


@pytest.mark.parametrize(
    ("job", "image"),
    [
        (None, ImageState.WANTED),
        (JobState.SUPERSEDED, ImageState.WANTED),
        (JobState.QUEUED, ImageState.QUEUED),
        (JobState.RUNNING, ImageState.RUNNING),
        (JobState.DONE, ImageState.DONE),
        (JobState.UNCHANGED, ImageState.DONE),
        (JobState.FAILED, ImageState.FAILED),
    ],
)
def test_the_state_of_an_image(job: JobState | None, image: ImageState) -> None:
    assert image_state(job) is image


def test_pauses_grow_up_to_a_limit_and_are_spread() -> None:
    rules = Rules(first_pause_s=2, longest_pause_s=100)

    assert [rules.pause_s(attempt, lambda: 1.0) for attempt in (1, 2, 3, 4, 9)] == [2, 8, 32, 100, 100]
    assert rules.pause_s(1, lambda: 0.0) == 1


def test_an_owner_is_written_and_read() -> None:
    owner = Owner("host#1/boot/pid:[1]", 12, 345)

    assert Owner.parse(str(owner)) == owner
    for text in ("", "one", "host#x.1", "host#1", "#1.2"):
        assert Owner.parse(text) is None


def test_only_an_ended_process_of_this_machine_is_known_to_be_dead() -> None:
    me = Owner.current()

    assert not is_dead(str(me))
    assert is_dead(str(Owner(me.place, me.pid, me.started + 1)))  # the pid was given to somebody else
    assert not is_dead(str(Owner("elsewhere", me.pid, me.started + 1)))
    assert not is_dead("text of another version")
