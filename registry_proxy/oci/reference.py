"""References: the names of images in registries."""

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Literal, Self

from registry_proxy.errors import DigestSyntaxError, ReferenceSyntaxError
from registry_proxy.oci.digest import Digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_DOCKER_HUB_API = "registry-1.docker.io"
_DOCKER_HUB_NAMES = frozenset({"docker.io", "index.docker.io", _DOCKER_HUB_API})
_MAX_NAME = 255  # host, slash and repository together

# Source: OCI distribution-spec, "Pulling manifests": grammar of names and tags.
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)
_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(
    rf"(?P<host>{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:.]+\])(?::(?P<port>[0-9]{{1,5}}))?", re.ASCII
)
_MAX_PORT = 65535

Scheme = Literal["http", "https"]


def is_repository(text: str) -> bool:
    """True if *text* follows the grammar of repository names."""
    return len(text) <= _MAX_NAME and _REPOSITORY.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """True if *text* follows the grammar of tags."""
    return _TAG.fullmatch(text) is not None


def is_host(text: str) -> bool:
    """True if *text* is a host name or address with an optional port."""
    match = _HOST.fullmatch(text)
    return match is not None and int(match["port"] or 1) in range(1, _MAX_PORT + 1)


def is_loopback(host: str) -> bool:
    """True if *host* (with or without a port) names this machine only."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match["host"].strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def canonical_registry(host: str) -> str:
    """The one name of a registry that has several: Docker Hub's are all ``docker.io``."""
    lowered = host.lower()
    return DEFAULT_REGISTRY if lowered in _DOCKER_HUB_NAMES else lowered


def api_host(registry: str) -> str:
    """Host and port at which *registry* answers requests."""
    return _DOCKER_HUB_API if registry == DEFAULT_REGISTRY else registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Name of an image: registry, repository, and a tag, a digest or both.

    If both are there the digest decides. ``scheme`` is None unless the text said ``http://`` or ``https://``.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None
    scheme: Scheme | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[docker://|http://|https://][registry[:port]/]repository[:tag][@digest]``.

        Docker's defaults: no registry means ``docker.io``, one-component names there are ``library/<name>``, neither
        tag nor digest means ``:latest``. After ``http://`` and ``https://`` the first component is always a registry.

        Source: distribution/reference, "normalize": what counts as a registry.

        Raises:
            ReferenceSyntaxError: *text* is not a reference; the message says which part of it is wrong.
        """
        rest, scheme = _split_scheme(text)
        rest, digest = _split_digest(text, rest)
        rest, tag = _split_tag(text, rest)
        first, slash, below = rest.partition("/")
        if slash and (scheme is not None or _looks_like_host(first)):
            registry, repository = first, below
        elif scheme is not None:
            raise ReferenceSyntaxError(text, "a repository has to follow the registry")
        else:
            registry, repository = DEFAULT_REGISTRY, rest
        if not is_host(registry):
            raise ReferenceSyntaxError(text, f"{registry!r} is not a registry's host")
        registry = canonical_registry(registry)
        if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
            repository = f"library/{repository}"
        _check_repository(text, registry, repository)
        if tag is None and digest is None:
            tag = DEFAULT_TAG
        return cls(registry=registry, repository=repository, tag=tag, digest=digest, scheme=scheme)

    @property
    def name(self) -> str:
        """``registry/repository``, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What a manifest is asked by: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest is not None else self.tag or DEFAULT_TAG

    def with_digest(self, digest: Digest) -> Self:
        """The same image pinned to *digest*."""
        return replace(self, digest=digest)

    def with_tag(self, tag: str) -> Self:
        """Another tag of the same image repository, not pinned.

        Raises:
            ReferenceSyntaxError: *tag* is not one.
        """
        if not is_tag(tag):
            raise ReferenceSyntaxError(f"{self.name}:{tag}", f"{tag!r} is not a tag")
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        scheme = f"{self.scheme}://" if self.scheme else ""
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"{scheme}{self.name}{tag}{digest}"


def _split_scheme(text: str) -> tuple[str, Scheme | None]:
    prefix, separator, rest = text.partition("://")
    if not separator:
        return text, None
    match prefix:
        case "http" | "https":
            return rest, prefix
        case "docker":
            return rest, None
        case _:
            raise ReferenceSyntaxError(text, "the scheme has to be docker://, https:// or http://")


def _split_digest(text: str, rest: str) -> tuple[str, Digest | None]:
    rest, at, digest = rest.partition("@")
    if not at:
        return rest, None
    try:
        return rest, Digest.parse(digest)
    except DigestSyntaxError as error:
        raise ReferenceSyntaxError(text, f"what follows the @ is not a digest: {digest[:200]!r}") from error


def _split_tag(text: str, rest: str) -> tuple[str, str | None]:
    path, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if not colon:
        return rest, None
    if not is_tag(tag):
        raise ReferenceSyntaxError(text, f"{tag[:200]!r} is not a tag")
    return path + slash + last, tag


def _looks_like_host(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost" or component != component.lower()


def _check_repository(text: str, registry: str, repository: str) -> None:
    if not repository:
        raise ReferenceSyntaxError(text, "it names no repository")
    if not is_repository(repository):
        upper = " (upper case is not allowed)" if repository.lower() != repository else ""
        raise ReferenceSyntaxError(text, f"{repository[:200]!r} is not a repository name{upper}")
    if len(registry) + 1 + len(repository) > _MAX_NAME:
        raise ReferenceSyntaxError(text[:200], f"registry and repository are longer than {_MAX_NAME} characters")
