"""Fetching many small objects with one request, where a server can do that. See docs/format/bundle.md.

Only what will probably be wanted is fetched so. Nothing in here can make a read fail: what a bundle does not give, or
gives damaged, is fetched by itself, with all the care that is taken there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
import structlog

from fs.client.receiving import ObjectRef
from fs.errors import CorruptError, FsError, RefusedError, UnreachableError
from fs.format.bundle import MOST_BYTES, MOST_OBJECTS, bundle_path, decode_bundle
from fs.format.compression import Compression, inflate
from fs.format.hashes import Hash
from fs.store.failover import FailoverReader
from fs.store.reading import BytesReceiver, Request

_log = structlog.get_logger()

MOST_PLAIN_BYTES = 1 << 20
"""As much, uncompressed, is asked for at once: a reader may be waiting for one of them."""
SMALL_BYTES = 1 << 16
"""Larger objects are not worth it."""
_LENGTHS_BYTES = 4 * MOST_OBJECTS
_AGAIN_S = 3600.0  # until a server that has no bundles is asked once more


@dataclass(frozen=True, slots=True)
class Given:
    """What came of a bundle."""

    objects: dict[Hash, bytes]  # uncompressed
    stored_bytes: int = 0


class Bundles:
    """What the mirror that is asked first gives in bundles. Belongs to one event loop."""

    def __init__(self, mirrors: FailoverReader) -> None:
        self._mirrors = mirrors
        self._refused: dict[str, float] = {}  # when the mirror of this URL said that it has none

    @property
    def are_offered(self) -> bool:
        """False if the mirror is known to have none."""
        url = self._mirrors.url
        refused_at = self._refused.get(url)
        return url.startswith("http") and (refused_at is None or anyio.current_time() - refused_at > _AGAIN_S)

    async def fetch(self, refs: Sequence[ObjectRef]) -> Given:
        """Those of *refs* (``is_small``; one of ``batches``) that came, verified."""
        mirror = self._mirrors.ordered()[0]
        names = [f"{ref.hash}{ref.suffix.value}" for ref in refs]
        receiver = BytesReceiver("a bundle", MOST_BYTES + _LENGTHS_BYTES)
        try:
            await mirror.read(Request(bundle_path(names)), receiver)
            parts = decode_bundle(receiver.content, len(refs))
        except UnreachableError as error:
            _log.debug("bundle_not_fetched", url=mirror.url, reason=type(error).__name__)
            return Given({})
        except FsError as error:  # there are none, or something on the way does not let them through
            _log.info("no_bundles", url=mirror.url, reason=type(error).__name__)
            self._refused[mirror.url] = anyio.current_time()
            return Given({})
        given: dict[Hash, bytes] = {}
        for ref, stored in zip(refs, parts, strict=True):
            if stored is None:
                continue
            try:
                given[ref.hash] = verified(ref, stored)
            except (CorruptError, RefusedError) as error:
                _log.warning("object_corrupt_in_bundle", url=mirror.url, object=str(ref.hash), reason=str(error))
        return Given(given, len(receiver.content))


def is_small(ref: ObjectRef) -> bool:
    """True if it is worth having *ref* in a bundle."""
    return ref.size is not None and ref.size <= SMALL_BYTES and ref.external is None


def verified(ref: ObjectRef, stored: bytes) -> bytes:
    """The uncompressed bytes of *ref*, a small object of known size. Raises CorruptError, RefusedError."""
    name = f"{ref.hash}{ref.suffix.value}"
    size = ref.size or 0
    if Hash.of(stored, ref.hash.algorithm) != ref.hash:
        raise CorruptError(name)
    data = stored if ref.compression is Compression.NONE else inflate(stored, limit_bytes=size, name=name)
    if len(data) != size:
        raise CorruptError(name, f"it has {len(data)} bytes; the catalog says {size}")
    return data


def batches(refs: Sequence[ObjectRef]) -> list[list[ObjectRef]]:
    """*refs* in their order, as many at a time as a bundle may have."""
    made: list[list[ObjectRef]] = []
    room = 0
    for ref in refs:
        size = ref.size or 0
        if not made or room < size or len(made[-1]) == MOST_OBJECTS:
            made.append([])
            room = MOST_PLAIN_BYTES
        made[-1].append(ref)
        room -= size
    return made
