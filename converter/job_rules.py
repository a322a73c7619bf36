"""Rules of a conversion's life: states, tries, pauses between them. PURE.

::

    queued --claim--> running --finish--> done | unchanged
      ^                 |  `--fail--> failed        (permanent, or the last try)
      |                 `--fail, transient--.
      |--- owner dead (sweeper) ------------'
      `--- queued and a newer digest seen --> superseded
    failed, superseded, done --wanted again--> queued
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Where the conversion of one digest of one image stands."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    UNCHANGED = "unchanged"  # the repository already had it
    FAILED = "failed"
    SUPERSEDED = "superseded"  # its tag moved on before it was started


SUCCESSFUL = frozenset({JobState.DONE, JobState.UNCHANGED})
OPEN = frozenset({JobState.QUEUED, JobState.RUNNING})


class ImageState(StrEnum):
    """Where an image stands, as people see it."""

    WANTED = "wanted"  # nothing is known of it yet, or its registry does not have it (now)
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


def image_state(job: JobState | None) -> ImageState:
    """The image's state from that of the job for its newest digest."""
    if job is None or job is JobState.SUPERSEDED:
        return ImageState.WANTED
    return ImageState.DONE if job in SUCCESSFUL else ImageState(job.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How patient the farm is."""

    max_attempts: int = 5
    first_pause_s: float = 2.0
    longest_pause_s: float = 120.0
    stale_after_s: float = 30.0  # without a heartbeat for so long, an owner on another machine counts as dead
    put_off_s: float = 1.0  # while another digest of the same image is being converted
    resend_after_s: float = 10.0  # a message that nobody took although the queue is empty was lost
    revive_after_s: float = 300.0  # a job that failed because of an outage is tried again when the registry answers

    def pause_s(self, attempts: int, jitter: Callable[[], float]) -> float:
        """How long to wait after *attempts* tries; *jitter* gives a number from 0 to 1."""
        full = min(self.longest_pause_s, self.first_pause_s * 4.0 ** (attempts - 1))
        return full * (0.5 + 0.5 * jitter())
