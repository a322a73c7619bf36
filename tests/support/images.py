"""Small images made by hand: OCI layouts from lists of tar members, with nothing but the standard library."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(slots=True)
class Member:
    """One tar member; ``kind`` is one of tarfile's type constants."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    kind: bytes = tarfile.REGTYPE
    linkname: str = ""
    uid: int = 0
    gid: int = 0
    mtime: float = 1_700_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755) -> Member:
    """A directory."""
    return Member(name, mode=mode, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Member:
    """A symbolic link."""
    return Member(name, mode=0o777, kind=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Member:
    """A hard link to an earlier member, or one of a lower layer."""
    return Member(name, kind=tarfile.LNKTYPE, linkname=target)


def tar(members: Sequence[Member]) -> bytes:
    """An uncompressed tar of *members*."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.size, info.mode, info.type = len(member.data), member.mode, member.kind
            info.linkname, info.uid, info.gid, info.mtime = member.linkname, member.uid, member.gid, member.mtime
            info.devmajor, info.devminor = member.device
            info.pax_headers = member.pax
            archive.addfile(info, io.BytesIO(member.data))
    return stream.getvalue()


def digest(data: bytes) -> str:
    """``sha256:<hex>`` of *data*."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Layout:
    """An OCI image layout with one tagged image."""

    path: Path
    tag: str
    manifest: bytes
    config: bytes
    layers: tuple[bytes, ...]  # compressed blobs, lowest first

    @property
    def source(self) -> str:
        """The form that skopeo and ``unpackd convert`` take."""
        return f"oci:{self.path}:{self.tag}"


def make_layout(
    path: Path,
    layers: Sequence[Sequence[Member]],
    *,
    tag: str = "1",
    settings: dict[str, object] | None = None,
    architecture: str = "amd64",
) -> Layout:
    """Write an image of *layers* (lowest first) as an OCI layout; *settings* go into the config's ``config``."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def store(data: bytes) -> dict[str, object]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"digest": digest(data), "size": len(data)}

    plain = [tar(members) for members in layers]
    compressed = [gzip.compress(data, 1, mtime=0) for data in plain]
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": settings or {},
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in plain]},
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **store(config)},
            "layers": [{"mediaType": LAYER, **store(data)} for data in compressed],
        }
    ).encode()
    described = {
        "mediaType": MANIFEST,
        **store(manifest),
        "annotations": {"org.opencontainers.image.ref.name": tag},
        "platform": {"architecture": architecture, "os": "linux"},
    }
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return Layout(path, tag, manifest, config, tuple(compressed))
