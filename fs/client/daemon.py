"""The process behind a mount: builds the parts, serves until it is unmounted or told to end, cleans up."""

import json
import os
import resource
import signal
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread
import httpx
import pyfuse3
import structlog
import trio

from fs.client.cache import ObjectCache
from fs.client.catalogs import Catalogs
from fs.client.chain import Anchor
from fs.client.control import Handler, serve_control
from fs.client.inodes import Inode
from fs.client.magic import MountFacts
from fs.client.mountpoints import FILESYSTEM, MountError, control_socket, prepare_runtime_directory
from fs.client.objects import Objects
from fs.client.operations import Invalidations, Operations
from fs.client.pyfuse3_frontend import Kept, Pyfuse3Frontend
from fs.client.refresher import Refresher
from fs.client.repository import Repository, Selection
from fs.errors import CatalogError, RefusedError
from fs.format.trust import load_public_keys
from fs.store.directory import DirectoryReader
from fs.store.failover import FailoverReader
from fs.store.http import HttpLimits, HttpReader, open_http_client
from fs.store.reading import StorageReader
from fs.store.retrying import RetryingReader

_log = structlog.get_logger()

_ANSWER_TIMEOUT_S = 30.0
_GRACE_S = 2.0
_LOG_LINES = 500
_OPEN_FILES = 8192
_REVOCATIONS_AT_ONCE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """Everything that decides about a mount."""

    name: str
    mountpoint: Path
    urls: tuple[str, ...]
    public_keys_pem: bytes
    cache: Path  # of this mount alone
    quota_bytes: int = 4_000_000_000
    external_urls: tuple[str, ...] = ()
    proxy: str | None = None
    selection: Selection = field(default_factory=Selection)
    variables: Mapping[bytes, bytes] | None = field(default_factory=dict)  # None: targets are shown as stored
    allows_other: bool = True
    frontend: str = "pyfuse3"  # the only one so far
    retries: int = 1
    limits: HttpLimits = field(default_factory=HttpLimits)


def reader_for(url: str, client: httpx.AsyncClient, limits: HttpLimits) -> StorageReader:
    """The reader that *url* asks for. Raises RefusedError for schemes that nobody reads."""
    parts = urlsplit(url)
    match parts.scheme:
        case "http" | "https":
            return HttpReader(url, client, limits)
        case "file":
            return DirectoryReader(Path(unquote(parts.path)))
        case _:
            raise RefusedError(f"{url} is no URL that can be read: http, https and file can")


def mirrors_for(urls: tuple[str, ...], client: httpx.AsyncClient, settings: MountSettings) -> FailoverReader:
    """All of *urls*, with retries, as one reader."""
    readers = [reader_for(url, client, settings.limits) for url in urls]
    return FailoverReader([RetryingReader(reader, retries=settings.retries) for reader in readers])


class LogTail:
    """A structlog processor that keeps the last lines for ``mountctl log``."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)

    def __call__(self, _: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """See structlog's processors."""
        self.lines.append(json.dumps(event, default=str))
        return event

    def install(self) -> None:
        """Put it before the renderer of the present configuration."""
        processors = structlog.get_config()["processors"]
        structlog.configure(processors=[*processors[:-1], self, processors[-1]])


class MountDaemon:
    """One mount, from the trust chain to the unmounting."""

    def __init__(self, settings: MountSettings, tail: LogTail) -> None:
        self._settings = settings
        self._tail = tail
        self._facts = MountFacts(log_lines=tail.lines)
        self._is_ending = False

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, call *ready* when the mount answers, serve until the end, unmount.

        Raises:
            FsError: it cannot be mounted.
        """
        settings = self._settings
        _allow_open_files()
        keys = load_public_keys(settings.public_keys_pem)
        cache = ObjectCache(settings.cache, settings.quota_bytes)
        await anyio.to_thread.run_sync(cache.start)
        try:
            async with open_http_client(settings.limits, proxy=settings.proxy) as client:
                mirrors = mirrors_for(settings.urls, client, settings)
                if settings.external_urls:
                    self._facts.external = mirrors_for(settings.external_urls, client, settings)
                catalogs = Catalogs(Objects(cache, mirrors, self._facts.external))
                repository = Repository(Anchor(settings.name, keys), mirrors, catalogs, selection=settings.selection)
                try:
                    await repository.open()
                    await self._serve(repository, client, ready)
                finally:
                    catalogs.close()
        finally:
            cache.close()

    async def _serve(self, repository: Repository, client: httpx.AsyncClient, ready: Callable[[], None]) -> None:
        settings = self._settings
        root = await repository.find(b"")
        if root is None or not root.entry.is_directory:
            raise CatalogError(f"the root of {settings.name} is no directory")
        operations = Operations(repository, root, variables=settings.variables)
        frontend = Pyfuse3Frontend(operations, self._facts, Kept(is_fixed=settings.selection.is_fixed))
        refresher = Refresher(operations, self._facts, _revoke)
        socket = control_socket(settings.mountpoint, os.geteuid())
        prepare_runtime_directory(os.geteuid())
        handlers = Control(operations, refresher, self._facts, settings, self._tail).handlers()
        _mount(frontend, settings)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._main, nursery.cancel_scope)
                nursery.start_soon(self._end_on_signals, nursery.cancel_scope)
                nursery.start_soon(serve_control, socket, handlers)
                await _wait_for_answer(settings.mountpoint)
                _log.info(
                    "mounted",
                    repository=settings.name,
                    revision=repository.revision.number,
                    mountpoint=str(settings.mountpoint),
                    pid=os.getpid(),
                )
                ready()
                nursery.start_soon(refresher.run)
                http_urls = [url for url in settings.urls if url.startswith("http")]
                nursery.start_soon(refresher.listen, client, http_urls)
        finally:
            pyfuse3.close(unmount=True)
            _log.info("unmounted", repository=settings.name, mountpoint=str(settings.mountpoint))

    async def _main(self, scope: trio.CancelScope) -> None:
        """Answer the kernel until the file system is unmounted; then everything ends."""
        try:
            await pyfuse3.main(min_tasks=4, max_tasks=99)
        finally:
            scope.cancel()

    async def _end_on_signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                _log.info("ending", signal=signal.Signals(number).name)
                pyfuse3.terminate()
                await trio.sleep(_GRACE_S)  # requests that are being answered
                scope.cancel()


def _mount(frontend: Pyfuse3Frontend, settings: MountSettings) -> None:
    options = {f"fsname={FILESYSTEM}:{settings.name}", f"subtype={FILESYSTEM}", "ro", "default_permissions"}
    if os.geteuid() == 0:
        options |= {"suid", "dev"}  # root file systems of containers are made of this; others may not ask for it
    if settings.allows_other:
        options.add("allow_other")
    with tempfile.TemporaryFile() as said, _stderr_to(said.fileno()):
        try:
            pyfuse3.init(frontend, str(settings.mountpoint), options)
        except RuntimeError as error:
            said.seek(0)
            reason = said.read().decode("utf-8", "replace").strip() or str(error)
            raise MountError(
                f"{settings.mountpoint} could not be mounted: {reason}; 'unpackd doctor' says what this machine lacks"
            ) from error


def _allow_open_files() -> None:
    """Raise the soft limit: catalogs and objects are kept open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    """Send what a C library says to *descriptor*: libfuse has no other way to give its reasons."""
    kept = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


async def _wait_for_answer(mountpoint: Path) -> None:
    """Return when the kernel gives our root directory at *mountpoint*. Raises MountError."""

    def stat() -> None:
        os.listdir(mountpoint)  # noqa: PTH208  # only whether it answers

    try:
        with anyio.fail_after(_ANSWER_TIMEOUT_S):
            await anyio.to_thread.run_sync(stat, abandon_on_cancel=True)
    except OSError as error:
        raise MountError(f"the mount at {mountpoint} does not answer: {error.strerror}") from error


async def _revoke(forgotten: Invalidations) -> None:
    """Make the kernel forget. In threads: it may have to wait for requests that this loop answers."""
    for start in range(0, len(forgotten.entries), _REVOCATIONS_AT_ONCE):
        part = forgotten.entries[start : start + _REVOCATIONS_AT_ONCE]
        await anyio.to_thread.run_sync(_revoke_entries, part)
    if forgotten.attributes:
        await anyio.to_thread.run_sync(_revoke_attributes, forgotten.attributes)


def _revoke_entries(entries: list[tuple[Inode, bytes]]) -> None:
    for parent, name in entries:
        try:
            pyfuse3.invalidate_entry(parent, name)
        except OSError as error:  # mostly: the kernel did not know it any more
            _log.debug("entry_not_revoked", reason=error.strerror)


def _revoke_attributes(inodes: list[Inode]) -> None:
    for inode in inodes:
        try:
            pyfuse3.invalidate_inode(inode, attr_only=True)
        except OSError as error:
            _log.debug("attributes_not_revoked", reason=error.strerror)


class Control:
    """What ``mountctl`` can ask."""

    def __init__(
        self,
        operations: Operations,
        refresher: Refresher,
        facts: MountFacts,
        settings: MountSettings,
        tail: LogTail,
    ) -> None:
        self._operations = operations
        self._repository = operations.repository
        self._refresher = refresher
        self._facts = facts
        self._settings = settings
        self._tail = tail

    def handlers(self) -> dict[str, Handler]:
        """The commands by name."""
        answers: dict[str, Callable[[], Awaitable[object]]] = {
            "status": self._status,
            "revision": self._revision,
            "refresh": self._refresh,
            "cache": self._cache,
            "log": self._log_lines,
        }
        return {name: partial(_without_arguments, answer) for name, answer in answers.items()}

    async def _status(self) -> dict[str, object]:
        revision = await self._revision()
        transfers = self._repository.objects.counts
        next_check = self._facts.next_check_unix_s
        is_fixed = self._settings.selection.is_fixed
        return {
            "repository": self._repository.name,
            "mountpoint": str(self._settings.mountpoint),
            "frontend": self._settings.frontend,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self._facts.started_unix_s, 1),
            **revision,
            "is_offline": self._repository.is_offline,
            "next_check": None if is_fixed else datetime.fromtimestamp(next_check, UTC).isoformat(),
            "urls": self._repository.mirrors.urls,
            "open_catalogs": self._repository.catalogs.open_count,
            "known_inodes": len(self._operations.inodes),
            "opened_files": self._facts.opened_files,
            "io_errors": self._facts.io_errors,
            "fetched_objects": transfers.objects,
            "fetched_bytes": transfers.stored_bytes,
            "cache": await self._cache(),
        }

    async def _revision(self) -> dict[str, object]:
        revision = self._repository.revision
        return {
            "revision": revision.number,
            "root": str(revision.root.hash),
            "tag": revision.tag or None,
            "ttl_s": revision.ttl_s,
        }

    async def _refresh(self) -> dict[str, object]:
        changed = await self._refresher.refresh()
        return {"changed": changed, **await self._revision()}

    async def _cache(self) -> dict[str, object]:
        cache = self._repository.objects.cache
        return {
            "directory": str(cache.directory),
            "quota_bytes": cache.quota_bytes,
            "used_bytes": cache.used_bytes,
            "objects": cache.object_count,
            **asdict(cache.counts),
            "past_cache": self._repository.objects.counts.past_cache,
        }

    async def _log_lines(self) -> list[str]:
        return list(self._tail.lines)


async def _without_arguments(answer: Callable[[], Awaitable[object]], _: Mapping[str, Any]) -> object:
    return await answer()
