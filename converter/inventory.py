"""Which images a repository holds, read from its newest revision."""

from collections.abc import Iterator
from dataclasses import dataclass

from converter import placement
from converter.errors import ImageAbsentError, RecordError
from converter.image_records import (
    RECORD_LIMIT_BYTES,
    Event,
    Pin,
    PlatformImage,
    Provenance,
    SourceRecord,
    decode_history,
    ducc_images,
)
from fs.format.paths import components
from fs.publish.view import View

PROVENANCE_FILE, STATEMENT_FILE = b"provenance.json", b"provenance.dsse.json"
_DIGEST_PREFIX = "sha256:"
_DEPTH = 64  # components of a name; the registries' limit is far lower


@dataclass(frozen=True, slots=True)
class NamedImage:
    """A name that users know, and what it leads to. Without a record it is one that DUCC published."""

    name: str
    record: SourceRecord | None
    ducc_config: str | None = None
    ducc_layers: tuple[str, ...] = ()


def names(view: View) -> list[str]:
    """The names of all images, ascending."""
    if view.lookup(placement.METADATA) is None:
        return []
    found: list[str] = []
    pending = [placement.METADATA]
    while pending:
        here = pending.pop()
        entries = view.list(here)
        if {b"source.json", b"manifest.json"} & {entry.name for entry in entries if entry.is_regular}:
            found.append(here[len(placement.METADATA) + 1 :].decode("utf-8", "surrogateescape"))
            continue
        if len(components(here)) > _DEPTH:
            raise RecordError(f"{here.decode('utf-8', 'replace')} is too deep to be the record of an image")
        pending += [here + b"/" + entry.name for entry in entries if entry.is_directory]
    return sorted(found)


def named_image(view: View, name: str) -> NamedImage:
    """What the name leads to.

    Raises:
        ImageAbsentError: there is no image of that name.
        RecordError: its record cannot be read.
    """
    path = placement.record_path(name)
    if view.lookup(path) is not None:
        return NamedImage(name, SourceRecord.read(view.read(path, RECORD_LIMIT_BYTES)))
    path = placement.METADATA + placement.public_path(name) + b"/manifest.json"
    if view.lookup(path) is None:
        raise ImageAbsentError(f"there is no image {name}; `unpackd images ls` lists all")
    config, layers = ducc_images(view.read(path, RECORD_LIMIT_BYTES))
    return NamedImage(name, None, config, tuple(layers))


def history(view: View, name: str) -> list[Event]:
    """What the name led to, oldest first; empty if nobody noted it. Raises RecordError."""
    path = placement.history_path(name)
    if view.lookup(path) is None:
        return []
    return decode_history(view.read(path, RECORD_LIMIT_BYTES))


def provenance(view: View, manifest: str) -> Provenance | None:
    """Where the image with that manifest digest came from; None if the repository does not have it.

    Raises:
        RecordError: the record is not there although the image is, cannot be read, or is of another image.
    """
    folder = placement.image_path(manifest)
    if view.lookup(folder) is None:
        return None
    path = folder + b"/" + PROVENANCE_FILE
    if view.lookup(path) is None:
        raise RecordError(f"{path.decode()} is missing")
    found = Provenance.parse(view.read(path, RECORD_LIMIT_BYTES))
    if found.manifest != manifest:
        raise RecordError(f"{path.decode()} is about {found.manifest}")
    return found


def provenance_of(view: View, image: PlatformImage) -> Provenance:
    """Where *image*, which has to be there, came from. Raises RecordError."""
    found = provenance(view, image.manifest)
    if found is None:
        raise RecordError(f"the records of the image {image.manifest} are missing")
    return found


def pins(view: View) -> list[Pin]:
    """All pins. Raises RecordError."""
    if view.lookup(placement.PINS) is None:
        return []
    return [
        Pin.parse(view.read(placement.PINS + b"/" + entry.name, RECORD_LIMIT_BYTES))
        for entry in view.list(placement.PINS)
    ]


def known_name(view: View, text: str) -> str:
    """The name that a user means: as `ls` prints it, as a path in the repository, or as a reference.

    Raises:
        ImageAbsentError: there is no image of that name.
    """
    from registry_proxy.oci.reference import Reference  # noqa: PLC0415  # names as they are listed need none

    name = text.removeprefix("docker://").strip("/")
    if not _is_there(view, name):
        reference = Reference.parse(name)
        name = f"{reference.name}:{reference.tag or reference.digest}"
    if not _is_there(view, name):
        raise ImageAbsentError(f"there is no image {name}; `unpackd images ls` lists all")
    return name


def _is_there(view: View, name: str) -> bool:
    folder = placement.METADATA + placement.public_path(name)
    return any(view.lookup(folder + b"/" + record) is not None for record in (b"source.json", b"manifest.json"))


Chosen = tuple[str | None, PlatformImage]
"""An image that a user means: its name, if it was given by one, and its digests."""


def chosen(view: View, text: str, platform: str | None = None) -> Chosen:
    """The image that a user means: a name, ``name@sha256:…`` of its history, or ``sha256:…`` of a manifest.

    Raises:
        ImageAbsentError: there is none.
        RecordError: records cannot be read.
    """
    if text.startswith(_DIGEST_PREFIX):
        found = provenance(view, text)
        if found is None:
            raise ImageAbsentError(f"there is no image with the manifest {text}")
        return None, PlatformImage(platform=found.platform, manifest=found.manifest, config=found.config)
    tag, at, digest = text.partition("@")
    if at and not _is_there(view, f"{tag}:{digest}"):
        name = known_name(view, tag)
        return name, _of_platform(_led_to(view, name, digest), name, platform)
    name = known_name(view, text)
    image = named_image(view, name)
    if image.record is None:
        raise ImageAbsentError(f"{name} was published by another program; convert it to know more about it")
    return name, _of_platform(image.record, name, platform)


def last_two(view: View, text: str, platform: str | None = None) -> tuple[Chosen, Chosen]:
    """What a name led to before, and what it leads to now.

    Raises:
        ImageAbsentError: there is no such name, or it never led elsewhere.
        RecordError: records cannot be read.
    """
    name, now = chosen(view, text, platform)
    if name is not None:
        for event in reversed(history(view, name)):
            before = _of_platform(event.record, name, platform)
            if before.manifest != now.manifest:
                return (name, before), (name, now)
    raise ImageAbsentError(f"{text} never led to another image; name two images")


def _led_to(view: View, name: str, digest: str) -> SourceRecord:
    """What *name* led to when it had *digest*, at the registry or as a manifest."""
    for event in reversed(history(view, name)):
        if digest in {event.record.resolved, *(one.manifest for one in event.record.all_images)}:
            return event.record
    raise ImageAbsentError(f"{name} never led to {digest}; `unpackd images history {name}` lists what it led to")


def _of_platform(record: SourceRecord, name: str, platform: str | None) -> PlatformImage:
    if platform is None:
        default = PlatformImage(platform=record.platform, manifest=record.manifest, config=record.config)
        return next((one for one in record.images if one.manifest == record.manifest), default)
    for one in record.all_images:
        if one.platform == platform:
            return one
    offered = ", ".join(one.platform for one in record.all_images)
    raise ImageAbsentError(f"{name} is not there for {platform}; there is: {offered}")


def public_links(view: View) -> Iterator[tuple[bytes, bytes]]:
    """Every symlink that users may follow to a tree, with what is stored as its target.

    These are those outside of directories whose names begin with a dot, as DUCC has it, and those of single platforms.
    """
    tops = [b"/" + entry.name for entry in view.list(b"") if entry.is_directory and not entry.name.startswith(b".")]
    pending = [*tops, *([placement.MULTIARCH] if view.lookup(placement.MULTIARCH) is not None else [])]
    while pending:
        here = pending.pop()
        for entry in view.list(here):
            path = here + b"/" + entry.name
            if entry.is_directory:
                pending.append(path)
            elif entry.is_symlink:
                yield path, view.readlink(path)
