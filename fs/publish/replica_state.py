"""What a mirror knows about itself: which part it holds, and what a power cut may have spoiled."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from fs.errors import AbsentError, HashSyntaxError, MalformedError
from fs.format.hashes import Hash
from fs.format.paths import is_below
from fs.runtime.boot import boot_id
from fs.store.base import TendedStore

STATE = ".unpackd_replica.json"
_MAX_STATE_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a repository that is mirrored: everything at and below some paths; no paths mean everything."""

    paths: tuple[bytes, ...] = ()

    def holds(self, path: bytes) -> bool:
        """True if everything below *path* belongs to it."""
        return not self.paths or any(is_below(path, each) for each in self.paths)

    def leads_to(self, path: bytes) -> bool:
        """True if *path* belongs to it or lies on the way."""
        return self.holds(path) or any(is_below(each, path) for each in self.paths)


@dataclass(slots=True)
class ReplicaState:
    """Kept in the storage itself, in the file STATE.

    ``partial`` names the catalogs that are there although not everything below them is: those on the way to the
    scope. All other catalogs imply everything below.
    """

    scope: Scope | None = None  # None: of no scope is everything there yet
    partial: set[Hash] = field(default_factory=set)
    unsettled_since_unix_s: float = 0.0  # 0: everything is on disk
    boot: str = ""  # which start of the machine that was in

    @classmethod
    def read(cls, store: TendedStore) -> "ReplicaState":
        """What the storage says; a new state if it says nothing. Raises MalformedError."""
        try:
            content = store.read_named(STATE, limit_bytes=_MAX_STATE_BYTES)
        except AbsentError:
            return cls()
        try:
            document = json.loads(content)
            paths = document["paths"]
            return cls(
                None if paths is None else Scope(tuple(path.encode("utf-8", "surrogateescape") for path in paths)),
                {Hash.parse(text) for text in document["partial"]},
                float(document["unsettled_since_unix_s"]),
                str(document["boot"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, HashSyntaxError) as error:
            raise MalformedError(f"{STATE} is damaged; remove it to have everything compared anew") from error

    def write(self, store: TendedStore) -> None:
        """Let the storage say it."""
        paths = None if self.scope is None else [path.decode("utf-8", "surrogateescape") for path in self.scope.paths]
        document = {
            "paths": paths,
            "partial": sorted(str(name) for name in self.partial),
            "unsettled_since_unix_s": self.unsettled_since_unix_s,
            "boot": self.boot,
        }
        store.replace_named(STATE, json.dumps(document).encode())

    def begin(self, store: TendedStore, scope: Scope) -> bool:
        """Note that writing begins; True if the catalogs in ``partial`` are complete as far as *scope* goes.

        What was written before a power cut, and not synced, may be there with wrong bytes: it is removed. A process
        that was killed leaves no such doubt.
        """
        boot = boot_id()
        if self.unsettled_since_unix_s and self.boot != boot:
            doubtful = [each for each in store.objects() if each.modified_unix_s >= self.unsettled_since_unix_s - 1]
            store.remove(doubtful)
        if not self.unsettled_since_unix_s or self.boot != boot:
            self.unsettled_since_unix_s, self.boot = store.now_unix_s(), boot
        is_same = self.scope == scope
        if not is_same:
            self.scope = None
        self.write(store)
        return is_same

    def end(self, store: TendedStore, scope: Scope, unneeded: Sequence[Hash] = ()) -> None:
        """Note that everything is there and on disk; *unneeded* are catalogs that have become complete."""
        self.scope = scope
        self.partial.difference_update(unneeded)
        self.unsettled_since_unix_s = 0.0
        self.write(store)
