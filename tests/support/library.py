"""A repository opened at library level, looked at path by path without a mount."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from fs.client.bundles import Bundles
from fs.client.cache import ObjectCache
from fs.client.catalogs import Catalogs
from fs.client.chain import Anchor
from fs.client.inodes import ROOT
from fs.client.listings import Listing, Listings
from fs.client.magic import MagicAttributes, MountFacts
from fs.client.objects import Objects
from fs.client.operations import Operations
from fs.client.repository import Repository, Selection
from fs.format.trust import load_public_keys
from fs.store.limits import HttpLimits
from fs.store.network import RetrySettings, open_network
from fs.store.proxies import ProxyGroups


@dataclass
class Library:
    """An open repository and the loop it lives in."""

    portal: BlockingPortal
    repository: Repository
    operations: Operations
    facts: MountFacts

    def run(self, function: Any, *arguments: Any) -> Any:  # noqa: ANN401  # whatever it gives
        """Call an async function in the repository's loop."""
        return self.portal.call(function, *arguments)

    def inode(self, path: bytes) -> int:
        """The inode of *path*, looked up name by name; FileNotFoundError if there is none."""
        inode: int = ROOT
        for name in path.split(b"/")[1:]:
            attributes = self.run(self.operations.lookup, inode, name)
            if attributes is None:
                raise FileNotFoundError(path)
            inode = attributes.inode
        return inode

    def stat(self, path: bytes) -> os.stat_result:
        attributes = self.run(self.operations.attributes, self.inode(path))
        seconds = attributes.mtime_ns // 1_000_000_000
        times = (seconds,) * 3 + (attributes.mtime_ns / 1e9,) * 3 + (attributes.mtime_ns,) * 3
        return os.stat_result(
            (
                attributes.mode,
                attributes.inode,
                0,
                attributes.nlink,
                _shown_id(attributes.uid),
                _shown_id(attributes.gid),
                attributes.size,
                *times,
                4096,
                attributes.blocks,
                attributes.rdev,
            )
        )

    def names(self, path: bytes) -> list[bytes]:
        def shown(listing: Listing) -> list[bytes]:
            return sorted(listed.name for listed in listing.since(0) if listed.key)  # dots have none

        return self.run(Listings(self.operations).read, self.inode(path), shown)  # type: ignore[no-any-return]

    def readlink(self, path: bytes) -> bytes:
        return self.operations.readlink(self.inode(path))

    def content(self, path: bytes, piece: int = 100_000) -> bytes:
        inode = self.inode(path)
        parts: list[bytes] = []
        while part := self.run(self.operations.read, inode, sum(map(len, parts)), piece):
            parts.append(part)
        return b"".join(parts)

    def xattrs(self, path: bytes) -> Mapping[bytes, bytes]:
        return self.operations.stored_attributes(self.inode(path))

    def magic(self, path: bytes, name: str) -> bytes:
        value: bytes | None = self.run(
            MagicAttributes(self.operations, self.facts).read, name.encode(), self.inode(path)
        )
        if value is None:
            raise KeyError(name)
        return value


def _shown_id(number: int) -> int:
    """What the kernel shows for a user or group: -1 is nobody."""
    return 65534 if number == 0xFFFFFFFF else number


@contextmanager
def opened(
    name: str,
    urls: Sequence[str],
    public_key: Path,
    cache: Path,
    *,
    external: str | None = None,
    selection: Selection | None = None,
    limits: HttpLimits | None = None,
    quota_bytes: int = 1 << 30,
    now: datetime | None = None,
    proxies: ProxyGroups | None = None,
    anchor: Anchor | None = None,
) -> Iterator[Library]:
    """Open the repository *name* at *urls* (http or a plain directory) in a loop of its own."""
    trust = anchor or Anchor(name, load_public_keys(public_key.read_bytes()))
    objects_on_disk = ObjectCache(cache, quota_bytes)
    objects_on_disk.start()
    facts = MountFacts()
    with start_blocking_portal("trio") as portal, ExitStack() as stack:
        network_context = portal.wrap_async_context_manager(
            open_network(limits=limits, proxies=proxies, retries=RetrySettings(backoff_s=0.01))
        )
        network = stack.enter_context(network_context)

        def places(urls: Sequence[str]) -> list[str]:
            return [url if url.startswith("http") else Path(url).as_uri() for url in urls]

        async def start() -> tuple[Repository, Operations]:
            mirrors = network.mirrors(places(urls))
            outside = network.mirrors(places([external])) if external is not None else None
            catalogs = Catalogs(Objects(objects_on_disk, mirrors, outside, bundles=Bundles(mirrors)))
            repository = Repository(trust, mirrors, catalogs, selection=selection, now=lambda: now or datetime.now(UTC))
            with anyio.fail_after(60):
                await repository.open()
                root = await repository.find(b"")
            assert root is not None
            return repository, Operations(repository, root, variables={})

        try:
            repository, operations = portal.call(start)
            yield Library(portal, repository, operations, facts)
            portal.call(repository.objects.settle)
        finally:
            objects_on_disk.close()
