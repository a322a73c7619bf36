"""Reading from the first of several places that can give it."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import structlog

from fs.errors import AbsentError, CorruptError, FsError, RefusedError, UnreachableError
from fs.store.reading import Receiver, Request, StorageReader

_log = structlog.get_logger()

_OF_THE_MIRROR = (AbsentError, CorruptError, RefusedError, UnreachableError)
"""What another mirror may do better; anything else is the receiver's own trouble."""


@dataclass(slots=True)
class MirrorCounts:
    """How a mirror did since the start."""

    answered: int = 0
    failed: int = 0
    unreached: int = 0  # times in a row


class FailoverReader:
    """A StorageReader over several mirrors of one repository.

    The mirror that answered last is asked first; some time after a change the first of the list gets its turn again.

    Args:
        readers: the mirrors, best first.
        reset_after_s: how long a change of mirror lasts.
        give_up_after_s: no further mirror is asked this long after the beginning of a request.
    """

    def __init__(
        self, readers: Sequence[StorageReader], *, reset_after_s: float = 300.0, give_up_after_s: float = 35.0
    ) -> None:
        if not readers:
            raise ValueError("at least one mirror is needed")
        self._readers = tuple(readers)
        self._reset_after_s = reset_after_s
        self._give_up_after_s = give_up_after_s
        self._current = 0
        self._changed_at = 0.0
        self.counts = {reader.url: MirrorCounts() for reader in readers}

    @property
    def url(self) -> str:
        """See StorageReader.url: the mirror that is asked first."""
        return self._readers[self._current].url

    @property
    def urls(self) -> list[str]:
        """All mirrors, beginning with the one that is asked first."""
        return [reader.url for reader in self.ordered()]

    def ordered(self) -> list[StorageReader]:
        """The mirrors in the order in which they are asked now."""
        return [*self._readers[self._current :], *self._readers[: self._current]]

    async def read(self, request: Request, receiver: Receiver) -> None:
        """See StorageReader.read. If all mirrors fail, the error is that of the one that came closest."""
        began = anyio.current_time()
        if self._current and began - self._changed_at > self._reset_after_s:
            self._current = 0
        errors: list[FsError] = []
        for reader in self.ordered():
            if errors and anyio.current_time() - began > self._give_up_after_s:
                break
            try:
                await reader.read(request, receiver)
            except _OF_THE_MIRROR as error:
                errors.append(error)
                self._note_failure(reader.url, request, error)
            else:
                self._note_answer(reader.url)
                self._keep(reader, errors)
                return
        raise _worst(errors)

    def _note_failure(self, url: str, request: Request, error: FsError) -> None:
        counts = self.counts[url]
        counts.failed += 1
        counts.unreached = counts.unreached + 1 if isinstance(error, UnreachableError) else 0
        # a server that is away fails every object: that is said once, until it answers again
        say = _log.debug if counts.unreached > 1 else _log.warning
        say("read_failed", url=url, object=request.path, reason=str(error))

    def _note_answer(self, url: str) -> None:
        counts = self.counts[url]
        counts.answered += 1
        if counts.unreached:
            _log.info("mirror_answers_again", url=url, failed=counts.unreached)
        counts.unreached = 0

    def _keep(self, reader: StorageReader, errors: list[FsError]) -> None:
        """Go on with *reader* if the mirrors before it could not be reached; one bad object is no reason to leave."""
        if any(isinstance(error, UnreachableError) for error in errors):
            self._current = self._readers.index(reader)
            self._changed_at = anyio.current_time()
            _log.warning("mirror_changed", url=reader.url)


def _worst(errors: list[FsError]) -> FsError:
    """What to tell the caller: corrupt says more than unreachable, unreachable more than absent."""
    for kind in (CorruptError, UnreachableError, AbsentError):
        for error in errors:
            if isinstance(error, kind):
                return error
    return errors[0]
