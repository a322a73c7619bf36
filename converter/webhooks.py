"""What registries send when something changes, read as hints. PURE.

A payload is never believed: it only says which repository to look at. Sources: distribution project, "Notifications"
(media types ``…events.v1+json`` of 2.8 and ``…events.v2+json``); Harbor, "Webhook Notifications", its default payload
and CloudEvents.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from converter.errors import HookError
from converter.wish import Source

MAX_BODY_BYTES = 256 << 10
ANY = "*"  # no tag
DISTRIBUTION_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.events.v1+json",
        "application/vnd.docker.distribution.events.v2+json",
        "application/json",
    }
)
HARBOR_TYPES = frozenset({"application/json", "application/cloudevents+json"})

_BLOBS = "application/octet-stream"
_CHANGES = frozenset({"push", "mount", "delete"})
_HARBOR_ARTIFACTS = frozenset({"PUSH_ARTIFACT", "DELETE_ARTIFACT", "harbor.artifact.pushed", "harbor.artifact.deleted"})
_HARBOR_REPLICATION = frozenset({"REPLICATION", "harbor.replication.status.changed"})
_HARBOR_RETENTION = frozenset({"TAG_RETENTION", "harbor.tag_retention.finished"})


@dataclass(frozen=True, slots=True)
class Hint:
    """Where to look."""

    source: Source
    tag: str = ""  # which tag has changed; "" if none has that is known, ``ANY`` if each may have


def parse_distribution(body: bytes) -> set[Hint]:
    """What an envelope of the distribution registry hints at; pulls and blobs are not of interest.

    Raises:
        HookError: the body is not JSON, or no such envelope.
    """
    events = _mapping(body).get("events")
    if not isinstance(events, list):
        raise HookError("the notification has no list of events")
    return {hint for event in events if isinstance(event, dict) for hint in _of_event(event)}


def parse_harbor(body: bytes) -> set[Hint]:
    """What a webhook of Harbor hints at; none for an event that changes no tag, or an unknown one.

    Raises:
        HookError: the body is not JSON, or has no type.
    """
    document = _mapping(body)
    kind = _text(document, "type")
    if not kind:
        raise HookError("the notification has no type")
    data = document.get("data" if "specversion" in document else "event_data")
    if not isinstance(data, dict):
        return set()
    if kind in _HARBOR_ARTIFACTS:
        return set(_of_artifacts(data))
    if kind in _HARBOR_REPLICATION:
        return set(_of_replication(_child(data, "replication")))
    if kind in _HARBOR_RETENTION:
        return set(_of_retention(_child(data, "retention")))
    return set()


def _of_event(event: Mapping[str, object]) -> Iterator[Hint]:
    target = _child(event, "target")
    about_blob = _text(target, "mediaType") == _BLOBS or "/blobs/" in _text(target, "url")
    repository = _text(target, "repository")
    if event.get("action") in _CHANGES and repository and not about_blob:
        yield Hint(Source(_text(_child(event, "request"), "host"), repository), _text(target, "tag"))


def _of_artifacts(data: Mapping[str, object]) -> Iterator[Hint]:
    """The repository's own fields; the address of the resource has no scheme and starts with the registry."""
    repository = _text(_child(data, "repository"), "repo_full_name")
    for resource in _children(data, "resources"):
        host, _, rest = _text(resource, "resource_url").partition("/")
        name = repository or rest.partition("@")[0].rpartition(":")[0] or rest.partition("@")[0]
        if name:
            yield Hint(Source(host, name), _text(resource, "tag"))


def _of_replication(replication: Mapping[str, object]) -> Iterator[Hint]:
    """Either side may be ours. ``name_tag`` is text for people: the name, without the project, ends at a blank."""
    for side in ("dest_resource", "src_resource"):
        resource = _child(replication, side)
        host = _text(resource, "endpoint").partition("://")[2] or _text(resource, "endpoint")
        namespace = _text(resource, "namespace")
        for artifact in _children(replication, "successful_artifact"):
            name = _text(artifact, "name_tag").partition(" ")[0].partition(":")[0]
            if name:
                yield Hint(Source(host.partition("/")[0], f"{namespace}/{name}" if namespace else name), ANY)


def _of_retention(retention: Mapping[str, object]) -> Iterator[Hint]:
    host, project = _text(retention, "harbor_hostname"), _text(retention, "project_name")
    for artifact in _children(retention, "deleted_artifact"):
        name = _text(artifact, "name_tag").partition("@")[0].partition(":")[0]
        if name and project:
            yield Hint(Source(host, f"{project}/{name}"))


def _mapping(body: bytes) -> Mapping[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HookError("the notification is not JSON") from error
    if not isinstance(document, dict):
        raise HookError("the notification is not a JSON object")
    return document


def _child(mapping: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = mapping.get(key)
    return value if isinstance(value, dict) else {}


def _children(mapping: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    value = mapping.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(mapping: Mapping[str, object], key: str) -> str:
    value = mapping.get(key)
    return value if isinstance(value, str) else ""
