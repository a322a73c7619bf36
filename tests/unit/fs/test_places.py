"""What users may call a storage, and the way back from paths to names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs.errors import RefusedError
from fs.format.hashes import Algorithm, Hash, Suffix
from fs.store.local import LocalStore
from fs.store.names import parse_object_path
from fs.store.places import open_storage
from fs.store.s3_place import S3Place

HASHES = st.builds(Hash, st.binary(min_size=20, max_size=20), st.sampled_from(Algorithm))


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://bucket", S3Place("bucket")),
        ("s3://bucket/", S3Place("bucket")),
        ("s3://bucket/a/b/", S3Place("bucket", "a/b")),
        (
            "s3://bucket/p?endpoint=https://s3.example.org:9000&region=eu-1&profile=main",
            S3Place("bucket", "p", "https://s3.example.org:9000", "eu-1", "main"),
        ),
    ],
)
def test_urls_of_buckets(url: str, place: S3Place) -> None:
    assert S3Place.parse(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket/p",
        "s3://bucket:80/p",
        "s3://bucket?colour=red",
        "s3://bucket#part",
        "s3://bucket?endpoint=s3.example.org",
        "http://bucket/p",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(RefusedError):
        S3Place.parse(url)


@pytest.mark.parametrize("text", ["/srv/x", "file:///srv/x"])
def test_directories(text: str) -> None:
    place = open_storage(text)

    assert isinstance(place.store, LocalStore)
    assert place.store.root == Path("/srv/x")
    assert place.private == Path("/srv/x/.publisher")
    assert place.shown == "/srv/x"


def test_buckets_have_a_private_folder_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("boto3")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    urls = ["s3://b/p", "s3://b/p/q", "s3://b/p?endpoint=http://127.0.0.1:1", "s3://b/p?endpoint=http://127.0.0.1:2"]

    folders = [open_storage(url).private for url in urls]

    assert len(set(folders)) == len(urls)
    assert all(folder.parent == Path("/state/unpackd/storage") for folder in folders)
    assert open_storage("s3://b/p?region=x").private == folders[0], "how it is reached does not make it another one"


def test_other_schemes_are_refused() -> None:
    with pytest.raises(RefusedError, match="ftp"):
        open_storage("ftp://x/y")


@given(HASHES, st.sampled_from(Suffix))
def test_an_objects_path_leads_back_to_its_name(name: Hash, suffix: Suffix) -> None:
    assert parse_object_path(name.object_path(suffix)) == (name, suffix)


@given(st.text(max_size=60))
def test_no_other_path_is_an_object(path: str) -> None:
    parsed = parse_object_path(path)

    assert parsed is None or parsed[0].object_path(parsed[1]) == path
