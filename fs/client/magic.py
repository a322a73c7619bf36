"""Magic extended attributes: what a mount tells about itself, its revision, its catalogs and objects.

The names and forms are the reference client's, so that scripts written for it work. They can be read everywhere and
are never listed, because tools that copy attributes would copy them. Where a stored attribute has the same name, the
magic one is shown. Source: CernVM-FS 2.12, magic_xattr.cc.
"""

import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fs.client.catalogs import Found
from fs.client.operations import Operations
from fs.format.catalog import Catalog
from fs.format.compression import Compression
from fs.format.entries import Flag
from fs.store.failover import FailoverReader
from fs.store.http import without_secrets
from fs.store.proxies import DIRECT, ProxyChooser

_PAGE_CHARACTERS = 40_000
_PREFIX = b"user."
_FileReader = Callable[[Found], Awaitable[bytes | None]]

_RAW_LINK = b"xfsroot.rawlink"  # Linux forbids user.* on symlinks


@dataclass(slots=True)
class MountFacts:
    """What the mount knows beyond its repository."""

    external: FailoverReader | None = None
    proxies: ProxyChooser | None = None
    started_unix_s: float = field(default_factory=time.time)
    io_errors: int = 0
    last_io_error_unix_s: int = 0
    opened_files: int = 0
    opened_directories: int = 0
    next_check_unix_s: float = field(default_factory=time.time)
    log_lines: Sequence[str] = ()

    @property
    def proxy(self) -> str:
        """The proxy that is used now, without secrets."""
        return without_secrets(self.proxies.current) if self.proxies is not None else DIRECT

    @property
    def proxy_list(self) -> list[str]:
        """All proxies."""
        return [without_secrets(one) for one in self.proxies.members] if self.proxies is not None else [DIRECT]


class MagicAttributes:
    """Reads magic attributes of one mount."""

    def __init__(self, operations: Operations, facts: MountFacts) -> None:
        self._operations = operations
        self._repository = operations.repository
        self._facts = facts
        self._of_the_mount: dict[str, Callable[[], str]] = {
            "expires": self._expires,
            "external_host": self._external_host,
            "fqrn": lambda: self._repository.name,
            "hitrate": self._hit_rate,
            "host": lambda: self._repository.mirrors.url,
            "host_list": lambda: ";".join(self._repository.mirrors.urls),
            "logbuffer": lambda: "".join(line + "\n" for line in self._facts.log_lines),
            "nclg": lambda: str(self._repository.catalogs.open_count),
            "ncleanup24": lambda: str(self._repository.objects.cache.counts.cleanups),
            "ndiropen": lambda: str(self._facts.opened_directories),
            "ndownload": lambda: str(self._repository.objects.counts.objects),
            "nioerr": lambda: str(self._facts.io_errors),
            "nopen": lambda: str(self._facts.opened_files),
            "pid": lambda: str(os.getpid()),
            "proxy": lambda: self._facts.proxy,
            "proxy_list": lambda: "".join(one + "\n" for one in self._facts.proxy_list),
            "pubkeys": self._pubkeys,
            "revision": lambda: str(self._repository.revision.number),
            "root_hash": lambda: str(self._repository.revision.root.hash),
            "rx": lambda: str(self._repository.objects.counts.stored_bytes // 1024),
            "tag": lambda: self._repository.revision.tag,
            "timestamp_last_ioerr": lambda: str(self._facts.last_io_error_unix_s),
            "uptime": lambda: str(int(time.time() - self._facts.started_unix_s) // 60),
            "version": lambda: f"unpackd {version('unpackd')}",
        }
        self._of_the_repository: dict[str, _FileReader] = {
            "catalog_counters": self._catalog_counters,
            "repo_counters": self._repository_counters,
            "repo_metainfo": self._metainfo,
        }
        self._of_files: dict[str, _FileReader] = {
            "chunk_list": self._chunk_list,
            "chunks": self._chunk_count,
            "compression": self._compression,
            "direct_io": self._direct_io,
            "external_file": self._is_external,
            "external_url": self._external_url,
            "hash": self._hash,
            "lhash": self._local_hash,
        }

    async def read(self, name: bytes, inode: int) -> bytes | None:
        """The value of attribute *name* of *inode*; None if it is not magic or does not apply there."""
        if name == _RAW_LINK:
            name = _PREFIX + b"rawlink"
        if not name.startswith(_PREFIX):
            return None
        plain = name.removeprefix(_PREFIX).decode("utf-8", "replace")
        for mark in "~@":
            base, found, page = plain.partition(mark)
            if found:
                return _page(await self._value(base, inode), page, is_for_people=mark == "@")
        return _page(await self._value(plain, inode), "0", is_for_people=False)

    async def _value(self, name: str, inode: int) -> bytes | None:
        found = self._operations.found(inode)
        if name in self._of_the_mount:
            return self._of_the_mount[name]().encode("utf-8", "surrogateescape")
        if name in self._of_the_repository:
            return await self._of_the_repository[name](found)
        if found.entry.is_regular and name in self._of_files:
            return await self._of_files[name](found)
        return found.entry.target if name == "rawlink" and found.entry.is_symlink else None

    # of the mount

    def _expires(self) -> str:
        if self._repository.selection.is_fixed:
            return "never (fixed root catalog)"
        return str(max(0, math.ceil((self._facts.next_check_unix_s - time.time()) / 60)))

    def _pubkeys(self) -> str:
        pem = (
            key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in self._repository.anchor.keys
        )
        return b"".join(pem).decode()

    def _hit_rate(self) -> str:
        counts = self._repository.objects.cache.counts
        total = counts.hits + counts.misses
        return f"{100 * counts.hits / total:.3f}" if total else "n/a"

    def _external_host(self) -> str:
        return self._facts.external.url if self._facts.external is not None else ""

    # of the repository and its catalogs

    async def _catalog_counters(self, found: Found) -> bytes:
        serving = found.inside  # a mount point tells about the catalog behind it
        catalog = await self._repository.catalogs.get(serving)
        head = b"catalog_hash: %s\ncatalog_mountpoint: %s\n" % (str(serving.hash).encode(), serving.mountpoint)
        return head + _counters(catalog)

    async def _repository_counters(self, _: Found) -> bytes:
        return _counters(await self._repository.catalogs.get(self._repository.revision.root))

    async def _metainfo(self, _: Found) -> bytes:
        return await self._repository.metainfo() or b"no metainfo"

    # of regular files

    async def _chunks(self, found: Found) -> list[tuple[str, int, int]]:
        content = (await self._repository.content(found.home, found.path, found.entry)).content
        if content.hash is not None:
            return [(str(content.hash), 0, content.size)]
        return [(str(chunk.hash), chunk.offset, chunk.size) for chunk in content.chunks]

    async def _chunk_list(self, found: Found) -> bytes:
        lines = ["hash,offset,size", *(f"{name},{offset},{size}" for name, offset, size in await self._chunks(found))]
        return "".join(line + "\n" for line in lines).encode()

    async def _chunk_count(self, found: Found) -> bytes:
        return str(len(await self._chunks(found))).encode()

    async def _compression(self, found: Found) -> bytes:
        return b"none" if found.entry.compression is Compression.NONE else b"zlib"

    async def _direct_io(self, found: Found) -> bytes:
        return b"1" if found.entry.has(Flag.DIRECT_IO) else b"0"

    async def _is_external(self, found: Found) -> bytes:
        return b"1" if found.entry.has(Flag.EXTERNAL) else b"0"

    async def _external_url(self, found: Found) -> bytes | None:
        if not found.entry.has(Flag.EXTERNAL):
            return None
        placed = await self._repository.content(found.home, found.path, found.entry)
        return f"{self._external_host()}{placed.external}".encode()

    async def _hash(self, found: Found) -> bytes | None:
        return None if found.entry.hash is None else str(found.entry.hash).encode()

    async def _local_hash(self, found: Found) -> bytes | None:
        """The hash if the copy in the cache is there and intact."""
        name = found.entry.hash
        if name is None:
            return None
        if not found.entry.size:
            return str(name).encode()  # nothing has to be read for it
        objects = self._repository.objects
        is_here = objects.is_arriving(name) or objects.cache.find(name) is not None
        return str(name).encode() if is_here else b"Not in cache"


def _counters(catalog: Catalog) -> bytes:
    total = catalog.counters().total
    return "".join(f"{name},{total[name]}\n" for name in sorted(total)).encode()


def _page(value: bytes | None, page: str, *, is_for_people: bool) -> bytes | None:
    """Page *page* of a long value; None if there is no such page."""
    if value is None:
        return None
    pages = max(1, -(-len(value) // _PAGE_CHARACTERS))
    if page == "?":
        return (
            f"there are {pages} pages (0 to {pages - 1})\n".encode()
            if is_for_people
            else f"num_pages, {pages}".encode()
        )
    if not page.isascii() or not page.isdigit() or int(page) >= pages:
        return None
    start = int(page) * _PAGE_CHARACTERS
    head = f"# page {page} of {pages}\n".encode() if is_for_people else b""
    return head + value[start : start + _PAGE_CHARACTERS]
