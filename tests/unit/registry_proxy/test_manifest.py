# ruff: noqa: ANN401  # JSON is any value
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.errors import ManifestError, PlatformAbsentError, PlatformSyntaxError, UnsupportedManifestError
from registry_proxy.oci import media_types
from registry_proxy.oci.manifest import (
    MAX_MANIFEST_BYTES,
    ImageIndex,
    ImageManifest,
    Platform,
    parse_config,
    parse_manifest,
    require_image,
    select_platform,
)

DIGEST = "sha256:" + "a" * 64


def descriptor(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def image(**changes: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(media_types.OCI_CONFIG),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
        **changes,
    }


def index(*platforms: str | None, **changes: Any) -> dict[str, Any]:
    manifests = []
    for number, text in enumerate(platforms):
        one = descriptor(media_types.OCI_MANIFEST, digest=f"sha256:{number:064x}")
        if text is not None:
            os, architecture, *variant = text.split("/")
            one["platform"] = {"os": os, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        manifests.append(one)
    return {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": manifests, **changes}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


def parsed_index(*platforms: str | None) -> ImageIndex:
    parsed = parse_manifest(encode(index(*platforms)))
    assert isinstance(parsed, ImageIndex)
    return parsed


def parsed_image(**changes: Any) -> ImageManifest:
    parsed = parse_manifest(encode(image(**changes)))
    assert isinstance(parsed, ImageManifest)
    return parsed


def test_an_image_manifest_is_read() -> None:
    manifest = parsed_image()

    require_image(manifest)
    assert str(manifest.config.digest) == DIGEST
    assert [layer.size_bytes for layer in manifest.layers] == [7]


def test_the_answers_type_decides_where_the_field_is_missing() -> None:
    document = image()
    del document["mediaType"]

    assert parse_manifest(encode(document), f"{media_types.DOCKER_MANIFEST}; charset=utf-8").media_type == (
        media_types.DOCKER_MANIFEST
    )
    assert parse_manifest(encode(document)).media_type == media_types.OCI_MANIFEST


@pytest.mark.parametrize(
    "document",
    [
        {**image(), **index("linux/amd64"), "mediaType": media_types.OCI_MANIFEST},
        {**index(), "config": None},
        {**index(), "fsLayers": []},
        image(mediaType=media_types.OCI_INDEX),
        index(mediaType=media_types.OCI_MANIFEST),
        image(layers="none"),
        image(layers=[descriptor("x", size=-1)]),
        image(layers=[descriptor("x", size=True)]),
        image(layers=[descriptor("x", size=1 << 63)]),
        image(layers=[descriptor("x", digest="sha256:../..")]),
        image(layers=[{"digest": DIGEST, "size": 1}]),
        image(annotations={"a": 1}),
        [],
        "text",
        None,
    ],
)
def test_confused_and_malformed_documents_are_refused(document: Any) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(encode(document))


def test_a_type_that_differs_from_the_answers_is_refused() -> None:
    with pytest.raises(ManifestError, match="the registry that it is"):
        parse_manifest(encode(image()), media_types.OCI_INDEX)


@pytest.mark.parametrize(
    "body",
    [
        b'{"layers":[],"layers":[],"config":{}}',
        b'{"layers":[],"Layers":[{}],"config":{}}',
        b'{"mediaType":"a","mediatype":"b","manifests":[]}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"size":NaN}',
        b"\xff\xfe",
        b"{" + b" " * MAX_MANIFEST_BYTES + b"}",
    ],
)
def test_bytes_that_readers_could_take_differently_are_refused(body: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(body)


def test_a_manifest_of_the_largest_size_is_read() -> None:
    body = encode(image())

    assert parse_manifest(body + b" " * (MAX_MANIFEST_BYTES - len(body))).media_type == media_types.OCI_MANIFEST


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, None),
        (image(), "application/vnd.docker.distribution.manifest.v1+prettyjws"),
    ],
)
def test_schema_1_is_refused_with_what_to_do(document: Any, content_type: str | None) -> None:
    with pytest.raises(UnsupportedManifestError, match="rebuild"):
        parse_manifest(encode(document), content_type)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"config": descriptor("application/vnd.cncf.helm.config.v1+json")}, "Helm chart"),
        ({"config": descriptor(media_types.OCI_EMPTY), "artifactType": "application/x-mine"}, "application/x-mine"),
        ({"layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")]}, "decrypt"),
        ({"layers": [descriptor("application/vnd.in-toto+json")]}, "not a tar layer"),
    ],
)
def test_what_is_no_image_is_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedManifestError, match=word):
        require_image(parsed_image(**changes))


@pytest.mark.parametrize(
    ("platforms", "wanted", "number"),
    [
        (("linux/arm64/v8", "linux/amd64"), "linux/amd64", 1),
        (("linux/amd64", "linux/arm64"), "linux/arm64/v8", 1),
        (("linux/amd64", "linux/arm64/v8"), "linux/aarch64", 1),
        (("linux/arm/v6", "linux/arm/v7", "linux/arm/v5"), "linux/arm", 1),
        (("linux/arm/v5", "linux/arm/v6"), "linux/arm/v7", 1),
        (("windows/amd64", "linux/amd64", "linux/amd64"), "linux/x86_64", 1),
        ((None,), "linux/amd64", 0),
    ],
)
def test_a_platform_is_selected(platforms: tuple[str | None, ...], wanted: str, number: int) -> None:
    assert select_platform(parsed_index(*platforms), Platform.parse(wanted)).digest.hex == f"{number:064x}"


@pytest.mark.parametrize("platforms", [(), ("linux/arm/v7",), ("linux/amd64/v3",), (None, None)])
def test_a_platform_that_is_not_there_is_told_with_what_is(platforms: tuple[str | None, ...]) -> None:
    with pytest.raises(PlatformAbsentError, match="there is: "):
        select_platform(parsed_index(*platforms), Platform.parse("linux/arm/v6"))


def test_attestations_are_not_images() -> None:
    document = index("linux/amd64", None)
    document["manifests"][1]["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
    parsed = parse_manifest(encode(document))
    assert isinstance(parsed, ImageIndex)

    with pytest.raises(PlatformAbsentError, match="linux/amd64"):
        select_platform(parsed, Platform.parse("linux/arm64"))


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7"])
def test_a_wrong_platform_is_refused(text: str) -> None:
    with pytest.raises(PlatformSyntaxError):
        Platform.parse(text)


def test_a_config_is_read() -> None:
    settings = {"Env": ["A=b"], "Cmd": None, "Entrypoint": "/bin/sh", "User": "me", "Labels": {"x": "y"}}
    document = {"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [DIGEST]}, "config": settings}

    config = parse_config(encode(document))

    assert [str(one) for one in config.diff_ids] == [DIGEST]
    assert (config.environment, config.command, config.entrypoint) == (("A=b",), (), ("/bin/sh",))
    assert (config.user, config.labels, str(config.platform)) == ("me", {"x": "y"}, "linux/amd64")


@pytest.mark.parametrize("document", [{}, {"rootfs": []}, {"rootfs": {"diff_ids": ["x"]}}, []])
def test_a_malformed_config_is_refused(document: Any) -> None:
    with pytest.raises(ManifestError):
        parse_config(encode(document))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "config", "layers", "manifests", "digest", "size", "platform", "rootfs"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_no_document_raises_anything_but_package_errors(document: Any) -> None:
    for read in (parse_manifest, parse_config):
        try:
            read(encode(document))
        except (ManifestError, UnsupportedManifestError):
            continue


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_but_package_errors(body: bytes) -> None:
    try:
        parse_manifest(body)
    except (ManifestError, UnsupportedManifestError):
        return
