"""PURE: which upstream a request means. Hosts come from the configuration alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from registry_proxy.oci.reference import DEFAULT_REGISTRY, canonical_registry


class Named(Protocol):
    """What routing has to know of an upstream."""

    @property
    def name(self) -> str:
        """Its name in paths."""
        ...

    @property
    def registry(self) -> str:
        """Its canonical name in image names."""
        ...


_U = TypeVar("_U", bound=Named)


class UnknownUpstreamError(Exception):
    """A request that means no upstream."""


class AmbiguousUpstreamError(Exception):
    """A request whose path and ``ns`` parameter mean different upstreams."""


@dataclass(frozen=True, slots=True)
class Route(Generic[_U]):
    """An upstream, and the repository's name there."""

    upstream: _U
    repository: str
    is_by_namespace: bool


class Routes(Generic[_U]):
    """Finds upstreams. Source: OCI distribution-spec, "Registry Proxying", for ``ns``; Harbor's path prefixes."""

    def __init__(self, upstreams: Sequence[_U], default: str) -> None:
        self._by_name = {one.name: one for one in upstreams}
        self._by_registry = {one.registry: one for one in upstreams}
        self._default = self._by_name.get(default) or (upstreams[0] if len(upstreams) == 1 else None)

    def find(self, path: str, namespace: str | None) -> Route[_U]:
        """The upstream of a request for repository *path*.

        ``ns`` decides, then the path's first component (an upstream's name, or its registry's host), then the default.

        Raises:
            UnknownUpstreamError: nothing configured is meant.
            AmbiguousUpstreamError: ``ns`` and the first component disagree.
        """
        first, slash, rest = path.partition("/")
        prefixed = (self._by_name.get(first) or self._by_registry.get(canonical_registry(first))) if slash else None
        if namespace is not None:
            upstream = self._by_registry.get(canonical_registry(namespace))
            if upstream is None:
                raise UnknownUpstreamError(f"{namespace[:255]!r} is not an upstream of this proxy")
            if prefixed is not None and prefixed is not upstream:
                raise AmbiguousUpstreamError(
                    f"the path means {prefixed.registry}, the parameter ns {upstream.registry}"
                )
        else:
            upstream = prefixed or self._default
            if upstream is None:
                raise UnknownUpstreamError(f"{first[:255]!r} is not an upstream of this proxy")
        repository = rest if prefixed is not None else path
        if upstream.registry == DEFAULT_REGISTRY and repository and "/" not in repository:
            repository = f"library/{repository}"
        return Route(upstream, repository, namespace is not None)
