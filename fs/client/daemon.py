"""The process behind a mount: builds the parts, serves until it is unmounted or told to end, cleans up."""

import json
import os
import resource
import signal
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog
import trio

from fs.client.bundles import Bundles
from fs.client.cache import ObjectCache
from fs.client.catalogs import Catalogs
from fs.client.chain import Anchor
from fs.client.content_view import VIEW
from fs.client.control import Handler, serve_control
from fs.client.frontend import Kept, Session
from fs.client.held import hold
from fs.client.holder import Inheritance
from fs.client.magic import MountFacts
from fs.client.memory import MemoryTier
from fs.client.metrics import Labels, Metric, exposition, listen_for_metrics, serve_metrics
from fs.client.mountpoints import (
    MountError,
    control_socket,
    own_file,
    prepare_runtime_directory,
    take_lock,
    tear_down,
)
from fs.client.objects import Objects
from fs.client.operations import Operations
from fs.client.preloaded import PreloadedCaches
from fs.client.profile import Read, parse_profile, profile_document, read_profile
from fs.client.refresher import Refresher
from fs.client.repository import Repository, Selection
from fs.errors import CatalogError, RefusedError
from fs.format.trust import load_public_keys
from fs.runtime.collecting import collect_rarely
from fs.store.geo import host_of, ordered_by_distance
from fs.store.limits import HttpLimits
from fs.store.network import Network, RetrySettings, open_network
from fs.store.patient import PatientReader
from fs.store.proxies import DIRECT, ProxyGroups

_log = structlog.get_logger()

_ANSWER_TIMEOUT_S = 30.0
_GRACE_S = 2.0
_ANSWERED_S = 0.1  # until the answer to a command was sent
_LOG_LINES = 500
_OPEN_FILES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """Everything that decides about a mount."""

    name: str
    mountpoint: Path
    urls: tuple[str, ...]
    public_keys_pem: bytes
    ca_directories: tuple[Path, ...] = ()
    blacklists: tuple[Path, ...] = ()
    cache: Path  # may be shared with other mounts
    state: Path  # what is kept of the repository; may be shared with its other mounts
    quota_bytes: int = 4_000_000_000
    memory_bytes: int = 0  # for objects, before the disk
    preloaded: tuple[Path, ...] = ()  # caches that are only read
    external_urls: tuple[str, ...] = ()
    proxies: ProxyGroups = field(default_factory=ProxyGroups)
    selection: Selection = field(default_factory=Selection)
    variables: Mapping[bytes, bytes] | None = field(default_factory=dict)  # None: targets are shown as stored
    allows_other: bool = True
    frontend: str = "pyfuse3"  # or "wire"
    inherited: Inheritance | None = None  # from a holder
    retries: int = 1
    host_reset_s: float = 300.0  # how long after a change of server the first gets its turn again
    orders_by_distance: bool = False  # ask a server which is near
    profile: Sequence[Read] | None = None  # fetched at once
    reads_ahead: bool = True  # fetch what readers seem to want next
    metrics: tuple[str, int] | None = None  # where to serve figures over HTTP
    limits: HttpLimits = field(default_factory=HttpLimits)

    def own_file(self, kind: str) -> Path:
        """A file of this mount alone."""
        return own_file(self.state, self.mountpoint, kind)


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
        self._is_to_restart = trio.Event()

    async def run(self, ready: Callable[[], None]) -> None:
        """Mount, call *ready* when the mount answers, serve until the end, unmount.

        Raises:
            FsError: it cannot be mounted.
        """
        settings = self._settings
        _allow_open_files()
        keys = load_public_keys(settings.public_keys_pem) if settings.public_keys_pem else ()
        cache = ObjectCache(settings.cache, settings.quota_bytes)
        lock = -1
        if settings.inherited is None:
            lock = await anyio.to_thread.run_sync(take_lock, settings.own_file("lock"), settings.mountpoint)
        try:
            await anyio.to_thread.run_sync(cache.start)
            async with open_network(
                limits=settings.limits,
                proxies=settings.proxies,
                retries=RetrySettings(settings.retries, host_reset_s=settings.host_reset_s),
            ) as network:
                mirrors = network.mirrors(await self._urls(network))
                self._facts.proxies = network.proxies
                if settings.external_urls:
                    self._facts.external = network.mirrors(settings.external_urls)
                preloaded = PreloadedCaches(settings.preloaded)
                preloaded.check()
                objects = Objects(
                    cache,
                    PatientReader(mirrors),
                    self._facts.external,
                    preloaded=preloaded,
                    memory=MemoryTier(settings.memory_bytes),
                    bundles=Bundles(mirrors),
                )
                catalogs = Catalogs(objects)
                anchor = Anchor(settings.name, keys, settings.ca_directories, settings.blacklists)
                repository = Repository(
                    anchor,
                    mirrors,
                    catalogs,
                    selection=settings.selection,
                    state=settings.state,
                    preloaded=[folder / "mounts" / settings.name for folder in settings.preloaded],
                )
                try:
                    await repository.open()
                    await self._serve(repository, network, ready)
                finally:
                    catalogs.close()
                    catalogs.objects.settle()
        finally:
            cache.close()
            if lock >= 0:
                os.close(lock)

    async def _urls(self, network: Network) -> Sequence[str]:
        """The servers, best first."""
        if not self._settings.orders_by_distance:
            return self._settings.urls
        proxy = network.proxies.current
        who = str(uuid.uuid4()) if proxy == DIRECT else host_of(proxy)
        return await ordered_by_distance(network.client, self._settings.urls, who)

    async def _serve(self, repository: Repository, network: Network, ready: Callable[[], None]) -> None:
        settings = self._settings
        root = await repository.find(b"")
        if root is None or not root.entry.is_directory:
            raise CatalogError(f"the root of {settings.name} is no directory")
        operations = Operations(repository, root, variables=settings.variables)
        operations.prefetcher.looks_ahead = settings.reads_ahead
        operations.prefetcher.mountpoint = settings.mountpoint
        operations.pins.load(settings.own_file("pins"))
        session = open_session(operations, self._facts, settings)
        refresher = Refresher(operations, self._facts, session.revoke, self._end_for_all)
        socket = control_socket(settings.mountpoint, os.geteuid())
        prepare_runtime_directory(os.geteuid())
        control = Control(operations, refresher, self._facts, settings, self._tail)
        collect_rarely()
        listener = None if settings.metrics is None else await listen_for_metrics(*settings.metrics)
        session.mount()
        try:
            async with operations.prefetcher.running(), trio.open_nursery() as nursery:
                nursery.start_soon(self._main, session, nursery.cancel_scope)
                nursery.start_soon(self._end_on_signals, session, nursery.cancel_scope)
                nursery.start_soon(self._end_for_restart, session, nursery.cancel_scope)
                restart: Handler = partial(self._restart, session)
                nursery.start_soon(serve_control, socket, control.handlers() | {"restart": restart})
                if listener is not None:
                    nursery.start_soon(serve_metrics, listener, control.metrics)
                await refresher.alone(session.resume)  # what answers a refresh must hold for the kernel too
                await _wait_for_answer(settings.mountpoint)
                _log.info(
                    "mounted",
                    repository=settings.name,
                    revision=repository.revision.number,
                    mountpoint=str(settings.mountpoint),
                    pid=os.getpid(),
                )
                if settings.profile is not None:
                    operations.prefetcher.start(settings.profile)
                ready()
                nursery.start_soon(refresher.run)
                http_urls = [url for url in settings.urls if url.startswith("http")]
                nursery.start_soon(refresher.listen, network, http_urls)
        finally:
            session.close()
            operations.pins.close()
            event = "left_mounted" if session.keeps_mount else "unmounted"
            _log.info(event, repository=settings.name, mountpoint=str(settings.mountpoint))

    async def _main(self, session: Session, scope: trio.CancelScope) -> None:
        """Answer the kernel until the file system is unmounted; then everything ends."""
        try:
            await session.serve()
        finally:
            scope.cancel()

    async def _end_on_signals(self, session: Session, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                _log.info("ending", signal=signal.Signals(number).name)
                session.stop()
                await trio.sleep(_GRACE_S)  # requests that are being answered
                scope.cancel()

    async def _restart(self, session: Session, _: Mapping[str, Any]) -> object:
        """Answer ``mountctl restart``. Raises RefusedError."""
        if self._settings.inherited is None:
            raise RefusedError("this mount cannot be restarted: it was made without --resumable")
        session.keeps_mount = True
        self._is_to_restart.set()
        return {"pid": os.getpid()}

    def _end_for_all(self) -> None:
        """What is shown must not be shown any more, not even to those who have files open."""
        tear_down(self._settings.mountpoint)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _end_for_restart(self, session: Session, scope: trio.CancelScope) -> None:
        await self._is_to_restart.wait()
        await trio.sleep(_ANSWERED_S)
        session.stop()
        await trio.sleep(_GRACE_S)
        scope.cancel()  # what is not answered now is asked again


def open_session(operations: Operations, facts: MountFacts, settings: MountSettings) -> Session:
    """The session that the settings ask for; its front end alone is imported."""
    kept = Kept(is_fixed=settings.selection.is_fixed)
    name, where, allows_other = settings.name, settings.mountpoint, settings.allows_other
    inherited = settings.inherited
    held = None if inherited is None else hold(operations, inherited, settings.own_file("journal"))
    journal = None if held is None else held.journal
    if settings.frontend == "wire":
        from fs.client.wire_frontend import WireFrontend  # noqa: PLC0415
        from fs.client.wire_session import WireSession  # noqa: PLC0415

        wire = WireFrontend(operations, facts, kept, journal)
        return WireSession(wire, name, where, allows_other=allows_other, held=held)
    from fs.client.pyfuse3_frontend import Pyfuse3Frontend  # noqa: PLC0415
    from fs.client.pyfuse3_session import Pyfuse3Session  # noqa: PLC0415

    frontend = Pyfuse3Frontend(operations, facts, kept, journal)
    if held is None:
        return Pyfuse3Session(frontend, name, where, allows_other=allows_other)
    from fs.client.pyfuse3_held import HeldPyfuse3Session  # noqa: PLC0415

    return HeldPyfuse3Session(
        frontend, name, where, allows_other=allows_other, held=held, record=settings.own_file("init")
    )


def _allow_open_files() -> None:
    """Raise the soft limit: catalogs and objects are kept open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _wait_for_answer(mountpoint: Path) -> None:
    """Return when the kernel gives our root directory at *mountpoint*. Raises MountError."""

    def stat() -> None:
        os.listdir(mountpoint)  # noqa: PTH208  # only whether it answers

    try:
        with anyio.fail_after(_ANSWER_TIMEOUT_S):
            await anyio.to_thread.run_sync(stat, abandon_on_cancel=True)
    except OSError as error:
        raise MountError(f"the mount at {mountpoint} does not answer: {error.strerror}") from error


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
        with_arguments: dict[str, Handler] = {
            "prefetch": self._prefetch,
            "prefetch_progress": self._prefetch_progress,
            "pin": self._pin,
            "unpin": self._unpin,
        }
        answers: dict[str, Callable[[], Awaitable[object]]] = {
            "status": self._status,
            "revision": self._revision,
            "refresh": self._refresh,
            "cache": self._cache,
            "log": self._log_lines,
            "profile": self._profile,
            "pins": self._pins,
            "metrics": self.metrics,
        }
        return with_arguments | {name: partial(_without_arguments, answer) for name, answer in answers.items()}

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
            "is_resumable": self._settings.inherited is not None,
            "uptime_s": round(time.time() - self._facts.started_unix_s, 1),
            **revision,
            "is_offline": self._repository.is_offline,
            "next_check": None if is_fixed else datetime.fromtimestamp(next_check, UTC).isoformat(),
            "urls": self._repository.mirrors.urls,
            "hosts": self._hosts(),
            "proxy": self._facts.proxy,
            "open_catalogs": self._repository.catalogs.open_count,
            "known_inodes": len(self._operations.inodes),
            "opened_files": self._facts.opened_files,
            "io_errors": self._facts.io_errors,
            "fetched_objects": transfers.objects,
            "fetched_bytes": transfers.stored_bytes,
            "failed_objects": transfers.failed,
            "fetch_ms": self._fetch_ms(),
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
        self._repository.objects.count_arrived()
        cache = self._repository.objects.cache
        return {
            "directory": str(cache.directory),
            "quota_bytes": cache.quota_bytes,
            "used_bytes": cache.used_bytes,
            "objects": cache.object_count,
            "pinned_bytes": cache.held_bytes,
            "memory_bytes": self._repository.objects.memory.used_bytes,
            "memory_hits": self._repository.objects.memory.hits,
            "preloaded_hits": self._repository.objects.preloaded.hits,
            **asdict(cache.counts),
            "hit_rate": self._hit_rate(),
            "past_cache": self._repository.objects.counts.past_cache + self._repository.objects.counts.not_kept,
        }

    def _hit_rate(self) -> float | None:
        counts = self._repository.objects.cache.counts
        asked = counts.hits + counts.misses
        return round(counts.hits / asked, 4) if asked else None

    def _fetch_ms(self) -> dict[str, float | None]:
        latencies = self._repository.objects.latencies
        shares = {"p50": 0.5, "p99": 0.99}
        found = {name: latencies.percentile(share) for name, share in shares.items()}
        return {name: None if value is None else round(value * 1000, 3) for name, value in found.items()}

    def _hosts(self) -> list[dict[str, object]]:
        external = self._facts.external
        counts = self._repository.mirrors.counts | (external.counts if external is not None else {})
        return [{"url": url, "answered": one.answered, "failed": one.failed} for url, one in counts.items()]

    async def metrics(self) -> str:
        """Everything as text for Prometheus."""
        objects, facts = self._repository.objects, self._facts
        objects.count_arrived()
        cache, counts = objects.cache, objects.cache.counts
        by_host: dict[str, dict[Labels, float]] = {
            outcome: {
                (("url", url),): float(getattr(one, outcome)) for url, one in self._repository.mirrors.counts.items()
            }
            for outcome in ("answered", "failed")
        }
        return exposition(
            [
                Metric("revision", "gauge", "Revision that is shown", self._repository.revision.number),
                Metric("offline", "gauge", "1 while no server was reached", int(self._repository.is_offline)),
                Metric("cache_hits_total", "counter", "Reads of objects that were there", counts.hits),
                Metric("cache_misses_total", "counter", "Reads of objects that had to be fetched", counts.misses),
                Metric("cache_used_bytes", "gauge", "What cached objects take", cache.used_bytes),
                Metric("cache_quota_bytes", "gauge", "What they may take", cache.quota_bytes),
                Metric("cache_objects", "gauge", "Cached objects", cache.object_count),
                Metric("cache_evicted_total", "counter", "Objects that made room", counts.evicted),
                Metric("cache_damaged_total", "counter", "Cached objects found damaged", counts.damaged),
                Metric("cache_pinned_bytes", "gauge", "What cached objects take that are pinned", cache.held_bytes),
                Metric("fetched_objects_total", "counter", "Objects fetched", objects.counts.objects),
                Metric("fetched_bytes_total", "counter", "Bytes fetched, as stored", objects.counts.stored_bytes),
                Metric("failed_objects_total", "counter", "Objects that no server gave", objects.counts.failed),
                Metric("fetch_seconds", "histogram", "Time to fetch an object", objects.latencies),
                Metric("host_answered_total", "counter", "Requests that a server answered", by_host["answered"]),
                Metric("host_failed_total", "counter", "Requests that a server failed", by_host["failed"]),
                Metric("open_catalogs", "gauge", "Catalogs open", self._repository.catalogs.open_count),
                Metric("known_inodes", "gauge", "Inodes that the kernel knows", len(self._operations.inodes)),
                Metric("opened_files_total", "counter", "Files opened", facts.opened_files),
                Metric("io_errors_total", "counter", "Requests answered with EIO", facts.io_errors),
                Metric("tree_files_read_total", "counter", "Files read in a pinned tree", self._by_tree("files_read")),
                Metric("tree_bytes_read_total", "counter", "Bytes read in a pinned tree", self._by_tree("bytes_read")),
            ],
            self._repository.name,
        )

    def _by_tree(self, figure: str) -> dict[Labels, float]:
        """A figure of the pinned trees; a tree that several have pinned is counted once."""
        pins = self._operations.pins.all()
        return {(("tree", pin.path.decode("utf-8", "replace")),): float(getattr(pin, figure)) for pin in pins}

    async def _pins(self) -> list[dict[str, object]]:
        return [
            {
                "owner": pin.owner,
                "path": os.fsdecode(pin.path),
                "objects": len(pin.objects),
                "files_read": pin.files_read,
                "bytes_read": pin.bytes_read,
            }
            for pin in self._operations.pins.all()
        ]

    async def _pin(self, request: Mapping[str, Any]) -> list[dict[str, object]]:
        """Pin ``paths`` for ``owner``; with ``replace`` those alone. Raises MalformedError, RefusedError."""
        owner, paths = str(request.get("owner", "")), [os.fsencode(str(path)) for path in request.get("paths", [])]
        pins = self._operations.pins
        if request.get("replace"):
            pins.replace(owner, paths)
        else:
            for path in paths:
                pins.add(owner, path)
        return await self._pins()

    async def _unpin(self, request: Mapping[str, Any]) -> dict[str, object]:
        owner, paths = str(request.get("owner", "")), request.get("paths", [])
        removed = [self._operations.pins.remove(owner, os.fsencode(str(path))) for path in paths]
        return {"removed": sum(removed)}

    async def _profile(self) -> dict[str, object]:
        reads = self._operations.recorder.reads()
        return profile_document(self._repository.name, self._repository.revision.number, reads)

    async def _prefetch(self, request: Mapping[str, Any]) -> dict[str, object]:
        """Begin to fetch paths, or what a profile in a file of this machine names; who reads ``through`` what view."""
        if "profile" in request:
            reads = await anyio.to_thread.run_sync(read_profile, Path(str(request["profile"])))
        else:
            reads = parse_profile("\n".join(map(str, request.get("paths", []))).encode("utf-8", "surrogateescape"))
        view = VIEW if request.get("through") == "content" else b""
        return {"job": self._operations.prefetcher.start(reads, view)}

    async def _prefetch_progress(self, request: Mapping[str, Any]) -> dict[str, object]:
        return asdict(self._operations.prefetcher.progress(int(request["job"])))

    async def _log_lines(self) -> list[str]:
        return list(self._tail.lines)


async def _without_arguments(answer: Callable[[], Awaitable[object]], _: Mapping[str, Any]) -> object:
    return await answer()
