"""The watcher: what is wished and what registries hold becomes jobs, and jobs become messages.

A hint (a notification, a new wishlist, a request) makes it look at one source at once; polling makes it look at all of
them now and then, because notifications get lost. In either case the registry itself is asked for its present state.
A registry that cannot be read changes nothing.
"""

import os
import random
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio
import anyio.abc
import anyio.to_thread
import structlog
from sqlalchemy.exc import SQLAlchemyError

from converter.app import Queue, make_app
from converter.config import ConversionSettings
from converter.dispatch import Dispatcher
from converter.errors import FarmUsageError
from converter.farm_config import FarmSettings, farm_rules
from converter.farm_database import FarmDatabase
from converter.jobs import JobStore
from converter.terms import USUAL
from converter.wish import Source, Wish
from converter.wishes import WishStore, apply_file
from fs.runtime.errors import UnpackdError
from registry_proxy.client import open_client
from registry_proxy.errors import AbsentError, RateLimitedError
from registry_proxy.oci.manifest import Descriptor
from registry_proxy.oci.reference import Reference

_log = structlog.get_logger()

_TICK_S = 0.15
_FILE_INTERVAL_S = 1.0
_SOURCES_INTERVAL_S = 2.0
_LOOK_TIMEOUT_S = 300.0
_BATCH = 50  # images that are looked up before the first of them becomes a job
_DEFAULT_RETRY_AFTER_S = 60.0


class RegistryReader(Protocol):
    """What the watcher asks registries."""

    async def resolve(self, reference: Reference) -> Descriptor:
        """What the tag names now."""
        ...

    async def tags(self, reference: Reference) -> Sequence[str]:
        """All tags of the repository."""
        ...


class Ticking(Protocol):
    """What takes jobs further: see Dispatcher."""

    def tick(self) -> int:
        """Do what is due."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """How the watcher behaves."""

    repository: str
    poll_interval_s: float
    collapse_s: float
    registry_connections: int
    tags_per_look: int = 100  # of those that are known, per source
    wishlist: Path | None = None  # applied at the start and whenever the file changes


class Watcher:
    """One watcher; several of one farm do no harm. Databases are used in threads, one call after the other."""

    def __init__(
        self,
        settings: WatchSettings,
        wishes: WishStore,
        jobs: JobStore,
        dispatcher: Ticking,
        registry: RegistryReader,
    ) -> None:
        self._settings = settings
        self._wishes = wishes
        self._jobs = jobs
        self._dispatcher = dispatcher
        self._registry = registry
        self._questions = anyio.CapacityLimiter(settings.registry_connections)
        self._looks = anyio.CapacityLimiter(settings.registry_connections)
        self._busy: set[Source] = set()
        self._looked: dict[Source, float] = {}
        self._next_poll: dict[Source, float] = {}
        self._wake = anyio.Event()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._dispatch)
            tasks.start_soon(self._follow_hints, tasks)
            tasks.start_soon(self._poll, tasks)
            if self._settings.wishlist is not None:
                tasks.start_soon(self._follow_wishlist, self._settings.wishlist)

    # Jobs into the queue

    async def _dispatch(self) -> None:
        while True:
            try:
                await anyio.to_thread.run_sync(self._dispatcher.tick)
            except SQLAlchemyError as error:
                _log.error("job database unusable", error=str(error))
            with anyio.move_on_after(_TICK_S):
                await self._wake.wait()
                self._wake = anyio.Event()

    # When to look

    async def _follow_hints(self, tasks: anyio.abc.TaskGroup) -> None:
        """Look where something was hinted at; more hints of the same source within a moment make one more look."""
        while True:
            fresh = time.monotonic() - self._settings.collapse_s
            self._looked = {source: at for source, at in self._looked.items() if at > fresh}
            waiting = self._busy | self._looked.keys()
            try:
                for source in await anyio.to_thread.run_sync(partial(self._wishes.take_hints, except_for=waiting)):
                    self._start_look(tasks, source, "hint")
            except SQLAlchemyError as error:
                _log.error("job database unusable", error=str(error))
            await anyio.sleep(_TICK_S)

    async def _poll(self, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            try:
                sources = await anyio.to_thread.run_sync(self._wishes.sources)
            except SQLAlchemyError as error:
                _log.error("job database unusable", error=str(error))
                sources = []
            now = time.monotonic()
            for source in sources:
                if self._next_poll.get(source, 0.0) <= now and source not in self._busy:
                    self._start_look(tasks, source, "poll")
            await anyio.sleep(min(_SOURCES_INTERVAL_S, self._settings.poll_interval_s))

    def _start_look(self, tasks: anyio.abc.TaskGroup, source: Source, reason: str) -> None:
        now = time.monotonic()
        self._busy.add(source)
        self._looked[source] = now
        jitter = 0.9 + 0.2 * random.random()  # noqa: S311  # so that not all registries are asked at once
        self._next_poll[source] = now + self._settings.poll_interval_s * jitter
        tasks.start_soon(self._look_safely, source, reason)

    async def _look_safely(self, source: Source, reason: str) -> None:
        """One look; whatever goes wrong with one source is noted and leaves the others alone."""
        log = _log.bind(registry=source.registry, image_repository=source.repository, reason=reason)
        try:
            async with self._looks:
                with anyio.fail_after(_LOOK_TIMEOUT_S):
                    count = await self._look(source)
            if count:
                log.info("images changed", jobs=count)
        except Exception as error:  # the edge of one source
            known = isinstance(error, UnpackdError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            log.warning("registry could not be read", error=text, exc_info=None if known else error)
            await self._note(source, text)
        finally:
            self._busy.discard(source)

    async def _note(self, source: Source, error: str | None) -> None:
        try:
            await anyio.to_thread.run_sync(self._wishes.note_source, source, error)
        except SQLAlchemyError as failure:
            _log.error("job database unusable", error=str(failure))

    # Looking

    async def _look(self, source: Source) -> int:
        """Ask for what *source* holds of what is wished; gives how many jobs that makes."""
        repository = self._settings.repository
        listed = await anyio.to_thread.run_sync(self._wishes.wished, source)
        requested = await anyio.to_thread.run_sync(self._wishes.requested, source)
        exact = [wish for wish in listed if not wish.is_pattern]
        await anyio.to_thread.run_sync(self._jobs.expect, repository, exact)
        failure: UnpackdError | None = None
        matching: list[Wish] = []
        patterns = [wish for wish in listed if wish.is_pattern]
        if patterns:
            try:
                tags = await self._tags(patterns[0])
                matching = [wish.with_tag(tag) for wish in patterns for tag in tags if wish.matches(tag)]
                gone = await anyio.to_thread.run_sync(self._jobs.note_tags, repository, source, tags)
                if gone:
                    _log.info("tags vanished", registry=source.registry, image_repository=source.repository, tags=gone)
            except UnpackdError as error:  # what is named exactly is looked up all the same
                failure = error
        by_name = _joined(matching) | _joined(exact)  # what is said of one tag wins over what a pattern says
        special = [wish for wish in by_name.values() if wish.terms != USUAL]
        await anyio.to_thread.run_sync(self._jobs.expect, repository, special)
        terms = {name: wish.terms for name, wish in by_name.items()}
        await anyio.to_thread.run_sync(self._jobs.set_terms, repository, terms)
        held = await anyio.to_thread.run_sync(self._jobs.held, repository, source)
        checked = await anyio.to_thread.run_sync(self._jobs.checked, repository, source)
        now = self._to_look_up(by_name, checked) | {wish.simple_name: wish for wish in requested}
        count = 0
        wanted = list(now.values())
        for start in range(0, len(wanted), _BATCH):
            made, trouble = await self._look_up(source, wanted[start : start + _BATCH], held)
            failure = failure or trouble
            count += made
        if failure is None:
            names = [wish.simple_name for wish in (*matching, *exact)]
            await anyio.to_thread.run_sync(self._jobs.set_wished, repository, source, names)
        await self._note(source, None if failure is None else str(failure))
        return count

    async def _tags(self, wish: Wish) -> Sequence[str]:
        async with self._questions:
            return await self._registry.tags(_reference(wish.with_tag("latest")))

    def _to_look_up(self, wanted: Mapping[str, Wish], checked: Mapping[str, float | None]) -> dict[str, Wish]:
        """Which of *wanted* the registry is asked for: the new, the distrusted, and some of those known for long.

        So a repository with thousands of tags costs one list and a few questions; each tag has its turn.
        """
        known = [(at, name) for name in wanted if (at := checked.get(name)) is not None]
        rested = {name for _, name in sorted(known)[self._settings.tags_per_look :]}
        return {name: wish for name, wish in wanted.items() if name not in rested}

    async def _look_up(
        self, source: Source, wanted: Iterable[Wish], held: Mapping[str, str]
    ) -> tuple[int, UnpackdError | None]:
        """Resolve the tags of *wanted* at once; gives the jobs that makes, and an error of the registry itself.

        Images that stay with a digest are *held*: nobody is asked what their tags name now.
        """
        digests: dict[Wish, str] = {}
        failures: list[UnpackdError] = []

        async def resolve(wish: Wish) -> None:
            known = wish.digest or held.get(wish.simple_name)
            if known is not None:
                digests[wish] = known
                return
            try:
                async with self._questions:
                    digests[wish] = str((await self._registry.resolve(_reference(wish))).digest)
            except UnpackdError as error:
                is_absent = isinstance(error, AbsentError)
                if not is_absent:
                    failures.append(error)
                note = partial(self._jobs.observe_trouble, is_absent=is_absent)
                await anyio.to_thread.run_sync(note, self._settings.repository, wish, str(error))

        async with anyio.create_task_group() as tasks:
            for wish in wanted:
                tasks.start_soon(resolve, wish)
        count = await anyio.to_thread.run_sync(self._jobs.observe, self._settings.repository, digests)
        if count:
            self._wake.set()
        for error in failures:
            if isinstance(error, RateLimitedError):
                pause_s = error.retry_after_s or _DEFAULT_RETRY_AFTER_S
                self._next_poll[source] = max(self._next_poll[source], time.monotonic() + pause_s)
        return count, failures[0] if failures else None

    # The wishlist's file

    async def _follow_wishlist(self, path: Path) -> None:
        """Apply the file whenever it is another one; a file with mistakes leaves the wishes as they were."""
        seen: tuple[int, int, int] | None = None
        while True:
            try:
                status = await anyio.to_thread.run_sync(os.stat, path)
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if version != seen:
                    seen = version
                    await anyio.to_thread.run_sync(apply_file, self._wishes, self._settings.repository, path)
            except (OSError, UnpackdError, SQLAlchemyError) as error:
                _log.error("wishlist not applied", path=str(path), error=str(error))
            await anyio.sleep(_FILE_INTERVAL_S)


def _joined(wishes: Iterable[Wish]) -> dict[str, Wish]:
    """The wishes by the names of their images; if there are several of one name, their terms are joined."""
    found: dict[str, Wish] = {}
    for wish in wishes:
        known = found.get(wish.simple_name)
        found[wish.simple_name] = wish if known is None else replace(wish, terms=wish.terms.joined(known.terms))
    return found


def _reference(wish: Wish) -> Reference:
    return Reference.parse(wish.reference)


async def run_watch(settings: ConversionSettings, farm: FarmSettings) -> None:
    """Watch as the settings say, until SIGTERM or SIGINT.

    Raises:
        FarmUsageError: the repository's name is missing.
    """
    if settings.repo is None:
        raise FarmUsageError("which repository? Set UNPACKD_REPO")
    database = FarmDatabase(farm.database_url)
    jobs = JobStore(database, rules=farm_rules(farm))
    queue = Queue(make_app(farm.broker_url, deadline_s=farm.deadline_s))
    watching = WatchSettings(
        repository=settings.repo,
        poll_interval_s=farm.poll_interval_s,
        collapse_s=farm.collapse_s,
        registry_connections=farm.registry_connections,
        tags_per_look=farm.tags_per_look,
        wishlist=farm.wishlist,
    )
    async with open_client() as client:
        watcher = Watcher(watching, WishStore(database), jobs, Dispatcher(jobs, queue), client)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watcher.run)
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    break
