"""PURE: paths of requests. Source: OCI distribution-spec, "Endpoints"."""

from dataclasses import dataclass
from enum import StrEnum

_MAX_PATH = 2048


class Endpoint(StrEnum):
    """What a request is for."""

    ROOT = "root"
    MANIFEST = "manifests"
    BLOB = "blobs"
    TAGS = "tags"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names: ``item`` is a tag or digest, not checked yet."""

    endpoint: Endpoint
    name: str = ""
    item: str = ""


def parse_path(path: str) -> Target | None:
    """Read a decoded path. Keywords count from the right, for a repository may be called like one.

    Gives None for paths that mean nothing.
    """
    if path in ("/v2", "/v2/"):
        return Target(Endpoint.ROOT)
    if len(path) > _MAX_PATH:
        return None
    match path.removeprefix("/v2/").split("/"):
        case [*name, "tags", "list"] if name:
            return Target(Endpoint.TAGS, "/".join(name))
        case [*name, ("manifests" | "blobs" | "referrers") as kind, item] if name and item:
            return Target(Endpoint(kind), "/".join(name), item)
        case _:
            return None
