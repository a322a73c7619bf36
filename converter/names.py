"""Under which name the repository shows an image: the one that its user wrote. PURE."""

from registry_proxy.oci.reference import Reference, canonical_registry


def written_repository(text: str) -> tuple[str, str]:
    """Registry and repository of the image that a user calls *text*, as they are written there.

    Docker Hub has several host names, and its own images have a short name; whoever writes one of them finds the image
    under what was written, as with DUCC. Only where no registry is written the name is the complete one,
    ``docker.io/library/…``.

    Raises:
        ReferenceSyntaxError: *text* is not the name of an image.
    """
    reference = Reference.parse(text)
    registry, slash, rest = text.rpartition("://")[2].partition("/")
    if not slash or canonical_registry(registry) != reference.registry:
        return reference.registry, reference.repository
    return registry, rest.partition("@")[0].partition(":")[0]


def published_name(text: str) -> str:
    """``registry/repository:tag`` of the image that a user calls *text*; the digest stands for a tag that is missing.

    Raises:
        ReferenceSyntaxError: *text* is not the name of an image.
    """
    reference = Reference.parse(text)
    return f"{'/'.join(written_repository(text))}:{reference.tag or reference.digest}"
