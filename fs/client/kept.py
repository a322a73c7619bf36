"""What a reader keeps of the newest revision it has seen: its number, and the documents that prove it.

========================  ==========================================================================
file of the directory     content
========================  ==========================================================================
``newest.json``           number and root catalog of the newest revision; nothing older is adopted
``manifest``,             the trust chain of that revision, as it came; verified again whenever it
``whitelist``,            is used
``whitelist.pkcs7``,
``certificate``
========================  ==========================================================================
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import structlog

from fs.client.chain import Anchor, Chain
from fs.errors import AbsentError, FsError, MalformedError, NotTrustedError, RollbackError
from fs.format.hashes import Hash
from fs.format.manifest import Manifest
from fs.runtime.files import write_atomically

_log = structlog.get_logger()

_WHITELIST, _PKCS7, _CERTIFICATE, _MANIFEST = "whitelist", "whitelist.pkcs7", "certificate", "manifest"


class KeptRevision:
    """The newest revision in a directory of a mount, and in others that may only be read.

    Args:
        directory: where it is kept.
        anchor: what a chain is verified with.
        others: directories of the same form, of preloaded caches.
    """

    def __init__(self, directory: Path, anchor: Anchor, others: Sequence[Path] = ()) -> None:
        self._directory = directory
        self._anchor = anchor
        self._others = tuple(others)

    def newest_seen(self) -> tuple[int, Hash | None]:
        """Number and root of the newest revision that was ever seen; -1 if none was."""
        try:
            kept = json.loads((self._directory / "newest.json").read_bytes())
            return int(kept["revision"]), Hash.parse(kept["root"])
        except FileNotFoundError:
            return -1, None
        except (OSError, ValueError, KeyError, TypeError, FsError) as error:
            _log.warning("newest_revision_unreadable", repository=self._anchor.name, reason=str(error))
            return -1, None

    def refuse_rollback(self, manifest: Manifest, seen: int, seen_root: Hash | None) -> None:
        """Raises RollbackError if *manifest* is older than what was seen, or another one of the same number."""
        name = self._anchor.name
        if manifest.revision < seen:
            raise RollbackError(
                f"{name} is offered in revision {manifest.revision}, but revision {seen} was seen before"
            )
        if manifest.revision == seen and seen_root is not None and manifest.root_catalog != seen_root:
            raise RollbackError(f"{name} is offered with other content under revision {seen}, which was seen before")

    def has(self, chain: Chain) -> bool:
        """True if *chain* is the one that is kept: a whitelist may be renewed without a new revision."""
        try:
            return (self._directory / _WHITELIST).read_bytes() == chain.whitelist
        except OSError:
            return False

    def keep(self, chain: Chain, manifest: Manifest) -> None:
        """Keep the chain first: a crash in between must not leave a revision that nothing proves."""
        document = {"revision": manifest.revision, "root": str(manifest.root_catalog), "name": manifest.name}
        files = {
            _WHITELIST: chain.whitelist,
            _PKCS7: chain.pkcs7,
            _CERTIFICATE: chain.certificate,
            _MANIFEST: chain.manifest,
            "newest.json": json.dumps(document).encode(),
        }
        try:
            for file, content in files.items():
                write_atomically(self._directory / file, content, mode=0o600)
        except OSError as error:
            _log.warning("newest_revision_not_kept", repository=self._anchor.name, reason=error.strerror)

    def manifest(self, now: datetime) -> Manifest | None:
        """The newest manifest of an earlier life or a preloaded cache, proven again; None if there is none."""
        seen, seen_root = self.newest_seen()
        found: list[Manifest] = []
        for directory in (self._directory, *self._others):
            try:
                manifest = _read(directory).verify(self._anchor, now)
                self.refuse_rollback(manifest, seen, seen_root)
            except FileNotFoundError:
                continue
            except (OSError, AbsentError, MalformedError, NotTrustedError) as error:
                _log.warning("kept_revision_refused", repository=self._anchor.name, reason=str(error))
            else:
                found.append(manifest)
        return max(found, key=lambda manifest: manifest.revision, default=None)


def _read(directory: Path) -> Chain:
    pkcs7 = directory / _PKCS7
    return Chain(
        whitelist=(directory / _WHITELIST).read_bytes(),
        certificate=(directory / _CERTIFICATE).read_bytes(),
        manifest=(directory / _MANIFEST).read_bytes(),
        pkcs7=pkcs7.read_bytes() if pkcs7.exists() else b"",
    )
