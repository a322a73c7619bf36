"""The records about images that a repository holds: what a name led to and leads to, provenance, pins. PURE.

Whoever decides from a record that something is not needed any more must not guess: what cannot be read is an error.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from converter.errors import RecordError
from registry_proxy.errors import DigestSyntaxError
from registry_proxy.oci.digest import Digest

RECORD_LIMIT_BYTES = 1 << 20
PROVENANCE_TYPE = "application/vnd.unpackd.provenance.v1+json"
_VERSION = 1
_MOST_EVENTS = 1000  # of a history; the oldest go


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformImage:
    """The image of one platform under a name."""

    platform: str  # os/architecture[/variant]
    manifest: str
    config: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """What a name led to when it was converted last; one question to the registry tells if it still does.

    ``manifest`` and ``config`` are those of the image that a reader sees whose platform is not known.
    """

    platform: str  # what was asked for: one platform, several with commas, or "all"
    resolved: str  # digest that the name had: of an index or of a manifest
    manifest: str
    config: str
    images: tuple[PlatformImage, ...] = ()  # all of them, if platforms were asked for by name or all
    converted: str = ""  # time, ISO 8601; empty if it is not known

    def encode(self) -> bytes:
        """The stored form."""
        document: dict[str, object] = {"version": _VERSION}
        document |= {key: getattr(self, key) for key in ("platform", "resolved", "manifest", "config")}
        if self.images:
            document["images"] = [
                {"platform": one.platform, "manifest": one.manifest, "config": one.config} for one in self.images
            ]
        if self.converted:
            document["converted"] = self.converted
        return _json(document)

    @classmethod
    def parse(cls, stored: bytes) -> Self | None:
        """Inverse of ``encode``; None if it is of no version that is known, which costs a conversion and no more."""
        try:
            return cls.read(stored)
        except RecordError:
            return None

    @classmethod
    def read(cls, stored: bytes) -> Self:
        """Inverse of ``encode``. Raises RecordError."""
        document = _load(stored, "source.json")
        try:
            return cls(
                platform=_text(document["platform"]),
                resolved=_text(document["resolved"]),
                manifest=_digest(document["manifest"]),
                config=_digest(document["config"]),
                images=tuple(_platform_image(one) for one in document.get("images", [])),
                converted=_text(document.get("converted", "")),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RecordError(f"a source.json is malformed ({error!r})") from error

    @property
    def all_images(self) -> tuple[PlatformImage, ...]:
        """Every image that the name stands for."""
        return self.images or (PlatformImage(platform=self.platform, manifest=self.manifest, config=self.config),)


@dataclass(frozen=True, slots=True)
class Event:
    """A name came to lead to something else."""

    record: SourceRecord
    converted: datetime


def encode_history(events: Sequence[Event]) -> bytes:
    """``history.json``: what a name led to, oldest first."""
    kept = [json.loads(event.record.encode()) | {"converted": event.converted.isoformat()} for event in events]
    return _json({"version": _VERSION, "events": kept[-_MOST_EVENTS:]})


def decode_history(stored: bytes) -> list[Event]:
    """Inverse of ``encode_history``. Raises RecordError."""
    document = _load(stored, "history.json")
    try:
        return [
            Event(SourceRecord.read(json.dumps(one).encode()), _time(one["converted"])) for one in document["events"]
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise RecordError(f"a history.json is malformed ({error!r})") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """A layer, as provenance names it."""

    digest: str
    diff_id: str
    media_type: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an image came from, and what was made of it."""

    source: str
    name: str
    platform: str
    resolved: str
    manifest: str
    config: str
    layers: tuple[LayerRecord, ...]
    tree: str  # digest of the flat tree
    tool: str
    converted: datetime
    files: int = -1  # regular files, each inode once; -1 if not known, as the next
    size: int = -1  # their bytes
    entries: int = -1
    seconds: Mapping[str, float] | None = None  # time of each step

    def encode(self) -> bytes:
        """The stored form."""
        document: dict[str, object] = {
            "version": _VERSION,
            "source": self.source,
            "name": self.name,
            "platform": self.platform,
            "resolved": self.resolved,
            "manifest": self.manifest,
            "config": self.config,
            "layers": [
                {"digest": one.digest, "diff_id": one.diff_id, "media_type": one.media_type, "size": one.size}
                for one in self.layers
            ],
            "tree": self.tree,
            "files": self.files,
            "size": self.size,
            "entries": self.entries,
            "seconds": self.seconds or {},
            "tool": self.tool,
            "converted": self.converted.isoformat(),
        }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Inverse of ``encode``. Raises RecordError."""
        document = _load(stored, "provenance.json")
        try:
            return cls(
                **{key: _text(document[key]) for key in ("source", "name", "platform", "resolved", "tree", "tool")},
                manifest=_digest(document["manifest"]),
                config=_digest(document["config"]),
                layers=tuple(
                    LayerRecord(
                        digest=_digest(one["digest"]),
                        diff_id=_digest(one["diff_id"]),
                        media_type=_text(one["media_type"]),
                        size=int(one["size"]),
                    )
                    for one in document["layers"]
                ),
                files=int(document.get("files", -1)),
                size=int(document.get("size", -1)),
                entries=int(document.get("entries", -1)),
                seconds={str(key): float(value) for key, value in document.get("seconds", {}).items()},
                converted=_time(document["converted"]),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise RecordError(f"a provenance.json is malformed ({error!r})") from error

    @property
    def compressed_size(self) -> int:
        """Bytes of the layers as the registry has them."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Pin:
    """An image that is kept whatever becomes of its names."""

    manifest: str
    reason: str
    pinned: datetime

    def encode(self) -> bytes:
        """The stored form."""
        return _json(
            {
                "version": _VERSION,
                "manifest": self.manifest,
                "reason": self.reason,
                "pinned": self.pinned.isoformat(),
            }
        )

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Inverse of ``encode``. Raises RecordError."""
        document = _load(stored, "pin")
        try:
            return cls(_digest(document["manifest"]), _text(document["reason"]), _time(document["pinned"]))
        except (TypeError, KeyError, ValueError) as error:
            raise RecordError(f"a pin is malformed ({error!r})") from error


def encode_unneeded(since: Mapping[bytes, int]) -> bytes:
    """``unneeded.json``: since when (Unix seconds) nothing keeps a path."""
    return _json({"version": _VERSION, "since": {path.decode("ascii"): since[path] for path in sorted(since)}})


def decode_unneeded(stored: bytes) -> dict[bytes, int]:
    """Inverse of ``encode_unneeded``. Raises RecordError."""
    document = _load(stored, "unneeded.json")
    try:
        return {str(path).encode("ascii"): int(time) for path, time in document["since"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RecordError(f"the unneeded.json is malformed ({error!r})") from error


def ducc_images(stored: bytes) -> tuple[str, list[str]]:
    """Config digest and layer digests of DUCC's ``manifest.json``. Raises RecordError."""
    try:
        document = json.loads(stored)
        folded = {str(key).lower(): value for key, value in document.items()}
        config = {str(key).lower(): value for key, value in folded["config"].items()}
        layers = [{str(key).lower(): value for key, value in one.items()} for one in folded["layers"]]
        return _digest(config["digest"]), [_digest(one["digest"]) for one in layers]
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise RecordError(f"a manifest.json is malformed ({error!r})") from error


# --- signatures


@dataclass(frozen=True, slots=True)
class SignedStatement:
    """A DSSE envelope around a provenance record.

    Source: Dead Simple Signing Envelope, protocol and envelope, version 1.0. ``cert`` beside a signature is ours.
    """

    payload: bytes
    signature: bytes
    certificate_pem: bytes

    @staticmethod
    def signed_bytes(payload: bytes) -> bytes:
        """What the signature is of: DSSE's pre-authentication encoding."""
        kind = PROVENANCE_TYPE.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)

    def encode(self) -> bytes:
        """The stored form."""
        signature = {"sig": b64encode(self.signature).decode(), "cert": self.certificate_pem.decode()}
        payload = b64encode(self.payload).decode()
        return _json({"payloadType": PROVENANCE_TYPE, "payload": payload, "signatures": [signature]})

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Inverse of ``encode``; nothing is verified. Raises RecordError."""
        try:
            document = json.loads(stored)
            if document["payloadType"] != PROVENANCE_TYPE:
                raise RecordError(f"a statement of type {document['payloadType']!r} says nothing about provenance")
            [signature] = document["signatures"]
            return cls(
                b64decode(document["payload"], validate=True),
                b64decode(signature["sig"], validate=True),
                _text(signature["cert"]).encode(),
            )
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise RecordError(f"a signed statement is malformed ({error!r})") from error


def _load(stored: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a {what} is no JSON ({error})") from error
    if not isinstance(document, dict) or document.get("version") != _VERSION:
        raise RecordError(f"a {what} is not of version {_VERSION}")
    return document


def _platform_image(document: Mapping[str, object]) -> PlatformImage:
    return PlatformImage(
        platform=_text(document["platform"]), manifest=_digest(document["manifest"]), config=_digest(document["config"])
    )


def _digest(value: object) -> str:
    try:
        return str(Digest.parse(_text(value)))
    except DigestSyntaxError as error:
        raise ValueError(str(error)) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _time(value: object) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError(f"{value!r} names no time zone")
    return time


def _json(document: Mapping[str, object] | Iterable[object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
