"""Manifests, indexes and image configs: bytes to frozen values.

The bytes themselves are what a digest names; nothing here is ever turned back into JSON.

Source: OCI image-spec, "manifest.md", "image-index.md", "config.md"; Docker's manifest schema 2.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Self

from registry_proxy.errors import (
    DigestSyntaxError,
    ManifestError,
    PlatformAbsentError,
    PlatformSyntaxError,
    UnsupportedManifestError,
)
from registry_proxy.oci import media_types
from registry_proxy.oci.digest import Digest

MAX_MANIFEST_BYTES = 4 << 20
MAX_CONFIG_BYTES = 8 << 20
_MAX_CHILDREN = 10_000
_MAX_SIZE = (1 << 63) - 1
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
}
_DEFAULT_VARIANTS = {"arm64": "v8", "amd64": "v1", "arm": "v7"}
_ATTESTATION = "vnd.docker.reference.type"  # BuildKit's mark of what lies in an index and is no image


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``os/architecture[/variant]``; the kernel's words for architectures are understood too.

        Raises:
            PlatformSyntaxError: *text* has another form.
        """
        match text.lower().split("/"):
            case [os, architecture] if os and architecture:
                return cls(os, _ARCHITECTURES.get(architecture, architecture))
            case [os, architecture, variant] if os and architecture and variant:
                return cls(os, _ARCHITECTURES.get(architecture, architecture), variant)
            case _:
                raise PlatformSyntaxError(text)

    @property
    def exact_variant(self) -> str:
        """The variant, with the one that is meant if none is named."""
        return self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Media type, digest and size of a blob or manifest."""

    media_type: str
    digest: Digest
    size_bytes: int
    platform: Platform | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()  # shown to people, never followed


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageManifest:
    """An image, or an artifact that has the same form: ``require_image`` tells them apart."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageIndex:
    """Several manifests under one name, usually one a platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    artifact_type: str | None = None
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image's config says, as far as anybody here asks."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    created: str = ""
    user: str = ""
    working_directory: str = ""
    environment: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class _Object(dict[str, object]):
    """A JSON object that remembers which of its names some parser could read as another value.

    Python and Go take the last of two equal names, others the first; Go also takes names in another case.
    """

    __slots__ = ("ambiguous",)

    def __init__(self, pairs: Sequence[tuple[str, object]]) -> None:
        super().__init__(pairs)
        seen: dict[str, str] = {}
        self.ambiguous: set[str] = set()
        for name, _ in pairs:
            folded = name.casefold()
            if folded in seen:
                self.ambiguous |= {name, seen[folded]}
            seen[folded] = name


def manifest_type(body: bytes, content_type: str | None) -> str:
    """The media type of a manifest, from its own field, else from *content_type* (an answer's header), else its form.

    Only what decides the type is looked at, so this is also for manifests that are passed on and not understood.

    Raises:
        ManifestError: not a JSON object, too large, or ambiguous in the sense of CVE-2021-41190.
        UnsupportedManifestError: schema 1.
    """
    return _type_of(_load(body, "manifest", MAX_MANIFEST_BYTES), content_type)


def parse_manifest(body: bytes, content_type: str | None = None) -> ImageManifest | ImageIndex:
    """Read a manifest or an index.

    Raises:
        ManifestError: see manifest_type; or a field is missing or malformed.
        UnsupportedManifestError: schema 1, or a media type that is neither manifest nor index.
    """
    document = _load(body, "manifest", MAX_MANIFEST_BYTES)
    media_type = _type_of(document, content_type)
    artifact_type = _optional_text(document, "artifactType")
    subject = document.get("subject")
    annotations = _texts(document.get("annotations"), "annotations")
    if media_type in media_types.INDEXES:
        return ImageIndex(
            media_type=media_type,
            manifests=_descriptors(document, "manifests"),
            artifact_type=artifact_type,
            subject=None if subject is None else _descriptor(subject, "subject"),
            annotations=annotations,
        )
    if media_type in media_types.MANIFESTS:
        return ImageManifest(
            media_type=media_type,
            config=_descriptor(document.get("config"), "config"),
            layers=_descriptors(document, "layers"),
            artifact_type=artifact_type,
            subject=None if subject is None else _descriptor(subject, "subject"),
            annotations=annotations,
        )
    raise UnsupportedManifestError(f"a manifest of type {media_type!r} is not an image; only images can be used here")


def require_image(manifest: ImageManifest) -> None:
    """Make sure that *manifest* is a container image that can be unpacked.

    Raises:
        UnsupportedManifestError: it is an artifact (a Helm chart, a signature, …), or its layers are encrypted or of
            an unknown type; the message names the type and what to do.
    """
    kind = manifest.config.media_type
    is_image = kind in media_types.IMAGE_CONFIGS or (
        # the first Docker versions that pushed schema 2 said nothing better about their configs
        kind == media_types.OCTET_STREAM and manifest.media_type == media_types.DOCKER_MANIFEST
    )
    if not is_image:
        what, named = media_types.artifact_name(kind), manifest.artifact_type or kind
        raise UnsupportedManifestError(f"this is {what} of type {named!r}, not a container image; name an image")
    for layer in manifest.layers:
        if media_types.is_encrypted(layer.media_type):
            raise UnsupportedManifestError(
                f"layer {layer.digest} is encrypted ({layer.media_type!r}); decrypt the image first, "
                "for example with skopeo copy --decryption-key"
            )
        if layer.media_type not in media_types.LAYERS:
            raise UnsupportedManifestError(
                f"layer {layer.digest} has the type {layer.media_type!r}, which is not a tar layer; rebuild the image"
            )


def select_platform(index: ImageIndex, platform: Platform) -> Descriptor:
    """The manifest of *index* for *platform*.

    The same variant is best, then for ``arm`` lower ones, highest first. An index with one entry that names no
    platform gives that one. BuildKit's attestations are no images.

    Raises:
        PlatformAbsentError: there is none; the message lists what there is.
    """
    images = [one for one in index.manifests if _ATTESTATION not in one.annotations]
    fitting = [
        one
        for one in images
        if one.platform is not None
        and (one.platform.os, one.platform.architecture) == (platform.os, platform.architecture)
        and _runs_on(one.platform, platform)
    ]
    if fitting:
        # max() gives the first of equals, which is the rule for equal entries
        return max(fitting, key=lambda one: one.platform.exact_variant if one.platform else "")
    if len(images) == 1 and images[0].platform is None:
        return images[0]
    offered = ", ".join(sorted({str(one.platform) for one in images if one.platform is not None})) or "none"
    raise PlatformAbsentError(f"the image is not there for {platform}; there is: {offered}")


def parse_config(body: bytes) -> ImageConfig:
    """Read an image's config.

    Raises:
        ManifestError: it is malformed, or too large.
    """
    document = _load(body, "image config", MAX_CONFIG_BYTES)
    rootfs = _object(document.get("rootfs"), "rootfs")
    _refuse_ambiguous(document, ("rootfs", "os", "architecture", "variant"))
    _refuse_ambiguous(rootfs, ("diff_ids", "type"))
    raw_settings = document.get("config")
    settings = _Object(()) if raw_settings is None else _object(raw_settings, "config")
    return ImageConfig(
        platform=Platform(
            _optional_text(document, "os") or "linux",
            _optional_text(document, "architecture") or "",
            _optional_text(document, "variant") or "",
        ),
        diff_ids=tuple(_digest(one, "diff_ids") for one in _list(rootfs.get("diff_ids"), "diff_ids")),
        created=_optional_text(document, "created") or "",
        user=_optional_text(settings, "User") or "",
        working_directory=_optional_text(settings, "WorkingDir") or "",
        environment=_text_list(settings, "Env"),
        entrypoint=_text_list(settings, "Entrypoint"),
        command=_text_list(settings, "Cmd"),
        labels=_texts(settings.get("Labels"), "Labels"),
    )


def _runs_on(offered: Platform, wanted: Platform) -> bool:
    if offered.exact_variant == wanted.exact_variant:
        return True
    return wanted.architecture == "arm" and offered.exact_variant < wanted.exact_variant


def _load(body: bytes, what: str, limit: int) -> _Object:
    if len(body) > limit:
        raise ManifestError(f"the {what} has {len(body)} bytes, more than the {limit} that are allowed")
    try:
        document = json.loads(body.decode(), object_pairs_hook=_Object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"the {what} is not JSON: {_word(error)}") from error
    return _object(document, what)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def _word(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _type_of(document: _Object, content_type: str | None) -> str:
    _refuse_ambiguous(document, ("mediaType", "manifests", "layers", "config", "fsLayers", "schemaVersion", "subject"))
    inside = _optional_text(document, "mediaType")
    outside = (content_type or "").partition(";")[0].strip().lower() or None
    if document.get("schemaVersion") == 1 or {inside, outside} & media_types.SCHEMA_1:
        raise UnsupportedManifestError(
            "the image has a manifest of Docker's schema 1 "
            "(application/vnd.docker.distribution.manifest.v1), which is not supported; "
            "rebuild it, or copy it with a tool that converts, such as skopeo copy --format oci"
        )
    if inside is not None and outside is not None and inside != outside:
        raise ManifestError(f"the manifest says that it is {inside!r}, the registry that it is {outside!r}")
    if "manifests" in document and {"layers", "config", "fsLayers"} & document.keys():
        raise ManifestError("the document is a manifest and an index at once")
    media_type = inside or outside or (media_types.OCI_INDEX if "manifests" in document else media_types.OCI_MANIFEST)
    if media_type in media_types.INDEXES and "manifests" not in document:
        raise ManifestError("the document is said to be an index, but lists no manifests")
    if media_type in media_types.MANIFESTS and not {"config", "layers"} <= document.keys():
        raise ManifestError("the document is said to be an image manifest, but has no config or no layers")
    return media_type


def _refuse_ambiguous(document: _Object, names: Iterable[str]) -> None:
    for name in names:
        if name in document.ambiguous:
            raise ManifestError(f"the name {name!r} occurs twice in one object, so that readers would differ")
        folded = name.casefold()
        other = next((one for one in document if one != name and one.casefold() == folded), None)
        if other is not None:
            raise ManifestError(f"the name {other!r} would be read as {name!r} by some readers")


def _object(value: object, what: str) -> _Object:
    if not isinstance(value, _Object):
        raise ManifestError(f"{what} is missing or not an object")
    return value


def _list(value: object, what: str) -> list[object]:
    if value is None:  # how Go writes an empty list
        return []
    if not isinstance(value, list):
        raise ManifestError(f"{what} is not a list")
    if len(value) > _MAX_CHILDREN:
        raise ManifestError(f"{what} has more than {_MAX_CHILDREN} entries")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ManifestError(f"{what} is missing or not a text")
    return value


def _optional_text(document: _Object, name: str) -> str | None:
    value = document.get(name)
    return None if value is None else _text(value, name)


def _texts(value: object, what: str) -> Mapping[str, str]:
    if value is None:
        return {}
    return {name: _text(text, f"{what}.{name}") for name, text in _object(value, what).items()}


def _text_list(document: _Object, name: str) -> tuple[str, ...]:
    value = document.get(name)
    if isinstance(value, str):  # Docker once wrote a single command without its list
        return (value,)
    return tuple(_text(one, name) for one in _list(value, name))


def _digest(value: object, what: str) -> Digest:
    try:
        return Digest.parse(_text(value, what))
    except DigestSyntaxError as error:
        raise ManifestError(f"{what}: {error}") from error


def _descriptors(document: _Object, name: str) -> tuple[Descriptor, ...]:
    listed = enumerate(_list(document.get(name), name))
    return tuple(_descriptor(one, f"{name}[{number}]") for number, one in listed)


def _descriptor(value: object, what: str) -> Descriptor:
    document = _object(value, what)
    _refuse_ambiguous(document, ("mediaType", "digest", "size", "platform"))
    size = document.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _MAX_SIZE:
        raise ManifestError(f"{what}.size is missing or not a size")
    media_type = _optional_text(document, "mediaType")
    if not media_type:
        raise ManifestError(f"{what}.mediaType is missing")
    return Descriptor(
        media_type=media_type,
        digest=_digest(document.get("digest"), f"{what}.digest"),
        size_bytes=size,
        platform=_platform(document.get("platform"), f"{what}.platform"),
        artifact_type=_optional_text(document, "artifactType"),
        annotations=_texts(document.get("annotations"), f"{what}.annotations"),
        urls=_text_list(document, "urls"),
    )


def _platform(value: object, what: str) -> Platform | None:
    if value is None:
        return None
    document = _object(value, what)
    return Platform(
        _optional_text(document, "os") or "",
        _optional_text(document, "architecture") or "",
        _optional_text(document, "variant") or "",
    )
