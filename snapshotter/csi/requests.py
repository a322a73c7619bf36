"""PURE: what callers may ask for, checked at the boundary.

Attributes of a volume: ``repository``, its name below the directory of repositories, and ``path``, in it; by default
the whole repository. All volumes are read-only, so every access mode is granted and none allows to write: Kubernetes
asks for a writable one for volumes that are written into a pod's own specification.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from snapshotter.csi.errors import VolumeRequestError

_REPOSITORY = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_PATH_LIMIT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class VolumeSource:
    """What a volume shows."""

    repository: str
    path: PurePosixPath  # relative to the root of the repository; ``.`` for all of it


def parse_source(context: Mapping[str, str]) -> VolumeSource:
    """The source that a volume's attributes name. Raises VolumeRequestError."""
    repository = context.get("repository", "")
    if not repository:
        raise VolumeRequestError("the volume has no attribute 'repository'")
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        raise VolumeRequestError(f"{repository!r} cannot be the name of a repository")
    path = context.get("path", "")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names or "\0" in path or len(path.encode(errors="surrogateescape")) > _PATH_LIMIT_BYTES:
        raise VolumeRequestError(f"{path!r} cannot be a path in a repository")
    return VolumeSource(repository, PurePosixPath(*names))


def required(value: str, name: str) -> str:
    """*value*, the field *name* of a request. Raises VolumeRequestError if it is not set."""
    if not value:
        raise VolumeRequestError(f"{name} is not set")
    return value


def required_path(value: str, name: str) -> Path:
    """The absolute path in the field *name*. Raises VolumeRequestError."""
    path = Path(required(value, name))
    if not path.is_absolute() or ".." in path.parts or "\0" in value:
        raise VolumeRequestError(f"{name} is not an absolute path: {value!r}")
    return path


def require_mountable(access_type: str | None) -> None:
    """Refuse what is no file system; *access_type* is the field of the capability that is set, if one is.

    Raises:
        VolumeRequestError: there is no capability, or it asks for a block device.
    """
    if access_type is None:
        raise VolumeRequestError("volume_capability is not set, or does not say 'mount'")
    if access_type != "mount":
        raise VolumeRequestError(f"a repository cannot be a volume of the type {access_type!r}, only of 'mount'")
