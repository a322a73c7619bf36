"""Notifications of registries, as their documentation and a real docker-registry 2.8 write them."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import HookError
from converter.webhooks import parse_distribution, parse_harbor
from converter.wish import Source

DIGEST = "sha256:" + "f" * 64


def event(action: str = "push", **target: object) -> dict[str, object]:
    described = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": DIGEST,
        "size": 708,
        "repository": "group/tool",
        "url": f"http://r.example:5000/v2/group/tool/manifests/{DIGEST}",
        "tag": "latest",
    }
    described.update(target)
    return {
        "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
        "action": action,
        "target": described,
        "request": {"host": "r.example:5000", "method": "PUT"},
    }


def distribution(*events: object) -> set[Source]:
    return {hint.source for hint in parse_distribution(json.dumps({"events": events}).encode())}


def harbor(document: object) -> set[Source]:
    return {hint.source for hint in parse_harbor(json.dumps(document).encode())}


def test_a_pushed_manifest_is_a_hint() -> None:
    assert distribution(event(), event(tag="other")) == {Source("r.example:5000", "group/tool")}


def test_hints_name_the_tag_if_one_changed() -> None:
    body = json.dumps({"events": [event(), event(tag="v2"), event(tag=None)]}).encode()

    assert {hint.tag for hint in parse_distribution(body)} == {"latest", "v2", ""}
    assert {
        hint.tag for hint in parse_harbor(json.dumps({"type": "PUSH_ARTIFACT", "event_data": ARTIFACT}).encode())
    } == {"v1"}


def test_blobs_and_pulls_are_not() -> None:
    blob = event(mediaType="application/octet-stream", url=f"http://r.example:5000/v2/group/tool/blobs/{DIGEST}")

    assert distribution(blob, event("pull"), event(mediaType="", url="http://r/v2/a/blobs/x")) == set()


def test_a_deleted_tag_has_no_address() -> None:
    deleted = {"action": "delete", "target": {"repository": "group/tool", "tag": "1"}, "request": {}}

    assert distribution(deleted) == {Source("", "group/tool")}


ARTIFACT = {
    "resources": [{"digest": DIGEST, "tag": "v1", "resource_url": "harbor.example/library/a/b:v1"}],
    "repository": {"name": "a/b", "namespace": "library", "repo_full_name": "library/a/b", "repo_type": "public"},
}
EXPECTED = {Source("harbor.example", "library/a/b")}


@pytest.mark.parametrize("kind", ["PUSH_ARTIFACT", "DELETE_ARTIFACT"])
def test_harbors_default_payload(kind: str) -> None:
    assert harbor({"type": kind, "occur_at": 1678082303, "operator": "admin", "event_data": ARTIFACT}) == EXPECTED


def test_harbors_cloud_events() -> None:
    document = {
        "specversion": "1.0",
        "id": "66c4b9e3-3a7a-4dbb-b7e8-6ed9a3a3c8b9",
        "source": "/projects/1/webhook/policies/2",
        "type": "harbor.artifact.pushed",
        "datacontenttype": "application/json",
        "data": ARTIFACT,
    }

    assert harbor(document) == EXPECTED


@pytest.mark.parametrize("reference", ["harbor.example/library/a/b:v1", f"harbor.example/library/a/b@{DIGEST}"])
def test_the_address_is_enough(reference: str) -> None:
    document = {"type": "PUSH_ARTIFACT", "event_data": {"resources": [{"resource_url": reference}]}}

    assert harbor(document) == EXPECTED


def test_a_replication_is_about_both_sides() -> None:
    replication = {
        "dest_resource": {"endpoint": "https://harbor.example", "namespace": "mirror"},
        "src_resource": {"endpoint": "https://other.example/", "namespace": "library"},
        "successful_artifact": [{"name_tag": "redis [1 item(s) in total]", "references": ["7"]}],
    }
    document = {"type": "REPLICATION", "event_data": {"replication": replication}}

    assert harbor(document) == {Source("harbor.example", "mirror/redis"), Source("other.example", "library/redis")}


def test_a_retention_run_is_about_what_it_deleted() -> None:
    retention = {
        "harbor_hostname": "harbor.example",
        "project_name": "library",
        "deleted_artifact": [{"name_tag": "a/b:old", "references": None}, {"name_tag": f"c@{DIGEST}"}],
    }

    assert harbor({"type": "TAG_RETENTION", "event_data": {"retention": retention}}) == {
        Source("harbor.example", "library/a/b"),
        Source("harbor.example", "library/c"),
    }


@pytest.mark.parametrize("kind", ["SCANNING_COMPLETED", "QUOTA_EXCEED", "PULL_ARTIFACT", "SOMETHING_NEW"])
def test_other_events_hint_at_nothing(kind: str) -> None:
    assert harbor({"type": kind, "event_data": ARTIFACT}) == set()


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"type":5,"events":5}'])
def test_what_is_no_notification_says_so(body: bytes) -> None:
    for parse in (parse_distribution, parse_harbor):
        with pytest.raises(HookError):
            parse(body)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(anything, anything)
def test_no_shape_raises_anything_else(target: object, request: object) -> None:
    envelope = {"events": [{"action": "push", "target": target, "request": request}, target]}
    replication = {"successful_artifact": target, "dest_resource": request}
    documents = [
        envelope,
        {"type": "PUSH_ARTIFACT", "event_data": {"resources": target, "repository": request}},
        {"type": "REPLICATION", "event_data": {"replication": replication}},
        {"type": "TAG_RETENTION", "event_data": {"retention": target}},
    ]
    for document in documents:
        for parse in (parse_distribution, parse_harbor):
            with suppress(HookError):
                parse(json.dumps(document).encode())
