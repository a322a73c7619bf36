"""Tells each mount which trees containers use: what is read of them then stays in its cache.

The wanted state is told as a whole, so it does not matter what was lost on the way: when a tree comes into use, after a
Cleanup, at the start, and every minute, since a mount may be a new one. A mount that is not ours, or does not answer,
has no pins; nothing waits for it for longer than a second, and no call fails because of it.

A repository says in ``.unpackd/unneeded.json`` what will be collected because no name leads to it any more. If a tree
in use is among it, the log says so, days before it goes: see ``docs/decisions``, "no leases from nodes".
"""

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
import structlog

from fs.client.control import ask
from fs.client.mountpoints import absolute, control_socket, find_mount
from fs.errors import FsError
from snapshotter.errors import LayerUnavailableError
from snapshotter.figures import TreeReads
from snapshotter.hanging import PatientThreads
from snapshotter.repositories import Member, Repositories
from snapshotter.snapshots import LayerSource

_log = structlog.get_logger()

_TIMEOUT_S = 1.0
_THREADS = 8
_AGAIN_S = 60.0
_RECORD_LIMIT_BYTES = 64 << 20


@dataclass(slots=True)
class _Told:
    """What a mount was told last."""

    sources: frozenset[LayerSource] = frozenset()
    paths: dict[LayerSource, str] = field(default_factory=dict)  # where they lead, as far as is known


class Pinner:
    """Keeps the pins of all mounts as the rows say.

    Args:
        root: the snapshotter's directory, by which a mount tells its pins from those of others.
        repositories: where layers come from.
        in_use: the layers below Active snapshots and Views, with the name of the image if that is known; blocks.
    """

    def __init__(self, root: Path, repositories: Repositories, in_use: Callable[[], Mapping[LayerSource, str]]) -> None:
        self._owner = f"snapshotter {str(root)[-180:]}"
        self._repositories = repositories
        self._in_use = in_use
        self._threads = PatientThreads(limit=_THREADS, timeout_s=_TIMEOUT_S)
        self._told = {member.name: _Told() for member in repositories.members}
        self._turn = anyio.Lock()
        self._doomed: dict[str, frozenset[str]] = {}  # paths in use, by repository

    @property
    def doomed_count(self) -> int:
        """How many trees are in use and will be collected."""
        return sum(len(paths) for paths in self._doomed.values())

    async def run(self) -> None:
        """Tell the mounts everything, again and again."""
        while True:
            await self.tell(is_repeated=True)
            await anyio.sleep(_AGAIN_S)

    async def tell(self, *, is_repeated: bool = False) -> None:
        """Tell each mount whose trees in use are others than it was told last; all of them if *is_repeated*."""
        async with self._turn:
            used = frozenset(await anyio.to_thread.run_sync(self._in_use))
            for member in self._repositories.members:
                its = frozenset(source for source in used if source.repository == member.name)
                if is_repeated or its != self._told[member.name].sources:
                    await self._tell(member, its)
                    await self._look_for_doomed(member)

    async def _tell(self, member: Member, sources: frozenset[LayerSource]) -> None:
        told = self._told[member.name]
        paths = {source: told.paths[source] for source in sources if source in told.paths}
        try:
            for source in sources - paths.keys():
                paths[source] = await self._threads.run(lambda source=source: self._place(member, source))  # type: ignore[misc]  # the default binds it
            request = {"command": "pin", "owner": self._owner, "paths": sorted(set(paths.values())), "replace": True}
            await self._asked(member, request)
        except (FsError, OSError, LayerUnavailableError) as error:  # TimeoutError is an OSError
            _log.debug("not_pinned", mountpoint=str(member.mountpoint), reason=str(error))
            self._told[member.name] = _Told(paths=paths)  # told again at the next occasion
        else:
            self._told[member.name] = _Told(sources, paths)

    async def _look_for_doomed(self, member: Member) -> None:
        """Say which trees in use will be collected."""
        before = self._doomed.get(member.name, frozenset())
        used = self._told[member.name].paths
        if not used:
            self._doomed[member.name] = frozenset()
            return
        try:
            unneeded = await self._threads.run(lambda: _unneeded(member.mountpoint / ".unpackd" / "unneeded.json"))
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            _log.debug("unneeded_not_known", mountpoint=str(member.mountpoint), reason=str(error))
            return
        doomed = {path: unneeded[place] for path in used.values() for place in _at_or_above(path) if place in unneeded}
        for path in sorted(doomed.keys() - before):
            _log.warning(
                "tree_in_use_will_be_collected",
                mountpoint=str(member.mountpoint),
                path=path,
                unneeded_since_unix_s=doomed[path],
                advice="pin its image in the repository (unpackd images pin), or start the containers again",
            )
        self._doomed[member.name] = frozenset(doomed)

    @staticmethod
    def _place(member: Member, source: LayerSource) -> str:
        """Path of the layer's content from the repository's root on. Blocks for the mount."""
        real = os.path.realpath(member.layers.path(source), strict=True)
        return "/" + os.path.relpath(real, os.path.realpath(member.mountpoint))

    async def _asked(self, member: Member, request: Mapping[str, object]) -> Any:  # noqa: ANN401  # JSON

        def talk() -> Any:  # noqa: ANN401
            where = absolute(member.mountpoint)
            mounted = find_mount(where)
            if mounted is None:
                return []
            return ask(control_socket(where, mounted.uid), request, timeout_s=_TIMEOUT_S)

        return await self._threads.run(talk)

    async def reads(self) -> Sequence[TreeReads]:
        """What was read of the trees in use, as far as the mounts tell."""
        images = await anyio.to_thread.run_sync(self._in_use)
        found: list[TreeReads] = []
        for member in self._repositories.members:
            names = {path: images.get(source, "") for source, path in self._told[member.name].paths.items()}
            try:
                pins = await self._asked(member, {"command": "pins"})
            except (FsError, OSError):
                continue
            found += [
                TreeReads(
                    mountpoint=str(member.mountpoint),
                    path=pin["path"],
                    image=names.get(pin["path"], ""),
                    files=int(pin["files_read"]),
                    size_bytes=int(pin["bytes_read"]),
                )
                for pin in pins
                if pin["owner"] == self._owner
            ]
        return found


def _at_or_above(path: str) -> list[str]:
    return [path, *(str(above) for above in PurePosixPath(path).parents)]


def _unneeded(path: Path) -> dict[str, int]:
    """What nothing keeps, and since when. Blocks for the mount. Raises OSError, and others if it is malformed."""
    try:
        with path.open("rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return {}
            document = json.loads(stream.read(_RECORD_LIMIT_BYTES))
    except FileNotFoundError:
        return {}
    return {"/" + str(name).lstrip("/"): int(since) for name, since in document["since"].items()}
