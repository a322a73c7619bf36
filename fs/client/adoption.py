"""Going over to a newer revision: what the kernel was told is compared with it, and what is not true any more is noted.

Whole catalogs that did not change are not looked into. Requests are answered meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import anyio.lowlevel
import structlog

from fs.client.catalogs import CatalogRef, Found
from fs.client.dormants import Dormant
from fs.client.inodes import Inode, InodeTable, Node
from fs.client.repository import Repository
from fs.errors import FsError
from fs.format.paths import name_of, parent_path

_log = structlog.get_logger()

_COMPARED_AT_ONCE = 128


@dataclass(slots=True)
class Invalidations:
    """What the kernel has to forget."""

    entries: list[tuple[Inode, bytes]] = field(default_factory=list)  # directory, name
    directories: list[Inode] = field(default_factory=list)  # their attributes and listings

    def add_name(self, inodes: InodeTable, path: bytes) -> None:
        """The kernel has to forget what is at *path*, if it knows the directory."""
        parent = inodes.directory(parent_path(path))
        if path and parent is not None:
            self.entries.append((parent, name_of(path)))


class Answering(Protocol):
    """What answers the kernel; its repository shows the newer revision already."""

    repository: Repository
    inodes: InodeTable
    generation: int

    async def find(self, start: CatalogRef, path: bytes) -> Found | None:
        """The entry at *path*, searched from catalog *start*. Raises FsError."""

    async def key(self, found: Found) -> bytes:
        """What identifies an entry. Raises FsError."""

    async def recall(self, inode: int) -> None:
        """Find out what a dormant inode stands for. Raises FsError, FileError."""


class Adoption:
    """One change to a newer revision."""

    def __init__(self, view: Answering) -> None:
        self._view = view
        self._unchanged: dict[CatalogRef, bool] = {}
        self._forgotten = Invalidations()

    async def compare(self) -> Invalidations:
        """Compare everything that the kernel knows."""
        inodes = self._view.inodes
        with inodes.noting_woken() as woken:
            for number, node in enumerate(inodes.known()):
                if number % _COMPARED_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()  # requests are answered meanwhile
                await self._compare(node)
            for number, (inode, dormant) in enumerate(inodes.all_dormant()):
                if number % _COMPARED_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
                await self._compare_dormant(Inode(inode), dormant)
        for inode in woken:
            await self._compare_woken(inode)
        return self._forgotten

    async def _compare(self, node: Node) -> None:
        """Note what the kernel knows of *node*, which was awake before, and is not true any more."""
        before = node.found
        try:
            # what a request has found anew lies in new catalogs, and says nothing of its other names
            if node.generation < self._view.generation and all(
                [await self._is_unchanged(catalog) for catalog in (before.home, before.inside)]
            ):
                node.generation = self._view.generation
                return
            await self._compare_names(node)
        except FsError as error:  # a catalog cannot be had: the kernel shall ask, and get this error
            _log.warning("entry_not_compared", path=before.path.decode("utf-8", "replace"), reason=str(error))
            self._forget_names(node.paths)

    async def _compare_dormant(self, inode: Inode, dormant: Dormant) -> None:
        """As ``_compare``, for *inode*, which was asleep; what was compared before does no harm."""
        try:
            if await self._is_unchanged(dormant.home) and await self._is_unchanged(dormant.inside):
                return
        except FsError as error:
            _log.warning("inode_not_compared", inode=inode, reason=str(error))
            self._forget_names(dormant.paths)
        else:
            await self._compare_woken(inode)

    async def _compare_woken(self, inode: Inode) -> None:
        """As ``_compare``, for *inode*, which a request may have found by any of its names, in any revision."""
        dormant, node = self._view.inodes.dormant(inode), self._view.inodes.get(inode)
        paths = dormant.paths if dormant is not None else node.paths if node is not None else ()
        try:
            await self._view.recall(inode)
            node = self._view.inodes.get(inode)
            if node is not None:
                await self._compare_names(node)
        except FsError as error:
            _log.warning("inode_not_compared", inode=inode, reason=str(error))
            self._forget_names(paths)

    async def _compare_names(self, node: Node) -> None:
        before = node.found
        if before.entry.is_directory:
            after = await self._view.find(self._view.repository.revision.root, before.path)
            if after is None or not after.entry.is_directory:
                self._forget_names(node.paths)
                return
            node.found, node.generation = after, self._view.generation
            self._forgotten.directories.append(node.inode)
            return
        for path in list(node.paths):
            after = await self._view.find(self._view.repository.revision.root, path)
            if after is None or after.entry.is_directory or await self._view.key(after) != node.key:
                self._forgotten.add_name(self._view.inodes, path)
                node.paths.discard(path)
            else:
                node.found, node.generation = after, self._view.generation

    async def _is_unchanged(self, catalog: CatalogRef) -> bool:
        """True if the newest revision has the same catalog at the same place."""
        if catalog not in self._unchanged:
            root = self._view.repository.revision.root
            self._unchanged[catalog] = catalog == await self._view.repository.catalogs.serving(root, catalog.mountpoint)
        return self._unchanged[catalog]

    def _forget_names(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._forgotten.add_name(self._view.inodes, path)
