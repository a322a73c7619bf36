"""The S3 store behind a network and a server that fail in every way that leaves a doubt."""

import time
from collections.abc import Callable

import pytest

from fs.errors import AbsentError, FsError, OvertakenError, RefusedError, UnreachableError
from fs.format.hashes import Hash, Suffix
from fs.store.base import REFRESH_AFTER_S
from fs.store.s3_place import S3Place
from tests.conformance.store.conftest import SMALL_LIMITS
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.s3 import S3Server

pytest.importorskip("boto3")

from fs.store.s3 import S3Store

STORED = b"some stored bytes" * 100
NAME = Hash.of(STORED)
MANIFEST = ".cvmfspublished"
PASSING = [fault for fault in Fault if fault not in (Fault.FORBIDDEN, Fault.ERROR_BODY)]
DOUBTFUL = [Fault.UNAVAILABLE, Fault.LOST_REPLY, Fault.LATE_REPLY]


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(proxy: FaultyProxy, bucket: str) -> S3Store:
    return S3Store(S3Place(bucket, "p", proxy.endpoint), SMALL_LIMITS)


@pytest.fixture
def direct(s3_server: S3Server, bucket: str) -> S3Store:
    """The same place without the proxy."""
    return S3Store(S3Place(bucket, "p", s3_server.endpoint), SMALL_LIMITS)


WORKS: dict[str, tuple[str, Callable[[S3Store], bool]]] = {
    "get": ("GET", lambda store: store.get(NAME, Suffix.PLAIN, limit_bytes=10_000) == STORED),
    "swap": ("PUT", lambda store: store.swap_named(MANIFEST, b"two", expected=b"one") is None),
    "compare": ("GET", lambda store: store.swap_named(MANIFEST, b"two", expected=b"one") is None),
    "put": ("PUT", lambda store: store.put(Hash.of(b"new"), Suffix.CHUNK, b"new")),
    "has": ("HEAD", lambda store: store.has(NAME, Suffix.PLAIN)),
    "list": ("GET", lambda store: len(list(store.objects())) == 1),
    "remove": ("DELETE", lambda store: store.remove(list(store.objects())) is None),
}
"""The first request of that method is spoiled; the second word is True if all is well."""


@pytest.mark.parametrize(
    ("work", "fault"),
    [(work, fault) for work in WORKS for fault in (PASSING if work in ("get", "swap") else DOUBTFUL)],
)
def test_one_fault_changes_nothing(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, work: str, fault: Fault
) -> None:
    method, run = WORKS[work]
    direct.put(NAME, Suffix.PLAIN, STORED)
    direct.replace_named(MANIFEST, b"one")
    rule = proxy.spoil(method, "", fault)

    assert run(store)

    assert rule.hits == 1


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RESET, Fault.SILENCE])
def test_a_server_that_never_recovers_is_given_up_in_time(store: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    proxy.spoil("*", "", fault, count=1000)
    began = time.monotonic()

    with pytest.raises(UnreachableError) as caught:
        store.has(NAME, Suffix.PLAIN)

    assert time.monotonic() - began < 15
    assert proxy.endpoint in str(caught.value)


def test_refused_access_is_not_tried_again(store: S3Store, proxy: FaultyProxy) -> None:
    proxy.spoil("*", "", Fault.FORBIDDEN, count=1000)

    with pytest.raises(RefusedError, match="credentials"):
        store.get(NAME, Suffix.PLAIN, limit_bytes=10)

    assert len(proxy.requests) == 1


def test_a_swap_whose_reply_is_lost_is_not_mistaken_for_somebody_elses(
    store: S3Store, direct: S3Store, proxy: FaultyProxy
) -> None:
    direct.replace_named(MANIFEST, b"one")
    proxy.spoil("PUT", MANIFEST, Fault.LOST_REPLY, count=3)

    store.swap_named(MANIFEST, b"two", expected=b"one")

    assert direct.read_named(MANIFEST, limit_bytes=10) == b"two"


def test_a_swap_that_comes_late_loses(store: S3Store, direct: S3Store, proxy: FaultyProxy) -> None:
    direct.replace_named(MANIFEST, b"one")
    proxy.spoil("PUT", MANIFEST, Fault.SILENCE)
    read = direct.read_named(MANIFEST, limit_bytes=10)
    direct.swap_named(MANIFEST, b"two", expected=read)

    with pytest.raises(OvertakenError):
        store.swap_named(MANIFEST, b"stale", expected=read)
    assert direct.read_named(MANIFEST, limit_bytes=10) == b"two"


@pytest.mark.parametrize("path", ["uploads", "partNumber=2", "uploadId=[^&]*$"])
@pytest.mark.parametrize("fault", DOUBTFUL)
def test_an_upload_in_parts_survives_a_fault(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, fault: Fault, path: str
) -> None:
    large = bytes(11 << 20)
    proxy.spoil("*", path, fault)

    assert store.put(Hash.of(large), Suffix.CATALOG, large)

    assert direct.get(Hash.of(large), Suffix.CATALOG, limit_bytes=len(large)) == large


def test_success_with_an_error_inside_is_an_error(store: S3Store, direct: S3Store, proxy: FaultyProxy) -> None:
    """Servers begin to answer before long work is done: putting parts together, and copies."""
    large = bytes(11 << 20)
    joined = proxy.spoil("POST", "uploadId=[^&]*$", Fault.ERROR_BODY)

    store.put(Hash.of(large), Suffix.CATALOG, large)

    assert joined.hits == 1
    assert direct.get(Hash.of(large), Suffix.CATALOG, limit_bytes=len(large)) == large
    store._clock = lambda: time.time() + 2 * REFRESH_AFTER_S
    copied = proxy.spoil("PUT", "C$", Fault.ERROR_BODY)
    assert store.claim(Hash.of(large), Suffix.CATALOG)
    assert copied.hits == 1


def test_an_upload_that_fails_for_good_leaves_nothing(
    store: S3Store, direct: S3Store, proxy: FaultyProxy, s3_server: S3Server, bucket: str
) -> None:
    large = bytes(11 << 20)
    proxy.spoil("PUT", "partNumber=2", Fault.UNAVAILABLE, count=1000)

    with pytest.raises(UnreachableError):
        store.put(Hash.of(large), Suffix.CATALOG, large)

    assert not direct.has(Hash.of(large), Suffix.CATALOG)
    assert "Uploads" not in s3_server.client().list_multipart_uploads(Bucket=bucket)


def test_uploads_of_writers_that_died_are_found(direct: S3Store, s3_server: S3Server, bucket: str) -> None:
    s3_server.client().create_multipart_upload(Bucket=bucket, Key="p/" + NAME.object_path())

    assert direct.remove_leftovers(0) == 0
    assert direct.remove_leftovers(time.time() + 60) == 1
    assert direct.remove_leftovers(time.time() + 60) == 0


def test_an_old_object_that_is_claimed_is_young_again(s3_server: S3Server, bucket: str) -> None:
    place = S3Place(bucket, "", s3_server.endpoint)
    S3Store(place).put(NAME, Suffix.PLAIN, STORED)
    before = S3Store(place).describe(NAME, Suffix.PLAIN)
    assert before is not None
    time.sleep(1.1)  # the server counts in seconds
    later = S3Store(place, clock=lambda: time.time() + 2 * REFRESH_AFTER_S)

    assert later.claim(NAME, Suffix.PLAIN, stored_bytes=len(STORED))

    after = S3Store(place).describe(NAME, Suffix.PLAIN)
    assert after is not None
    assert after.modified_unix_s > before.modified_unix_s
    later.settle()
    assert S3Store(place).get(NAME, Suffix.PLAIN, limit_bytes=10_000) == STORED


def test_a_machine_whose_clock_is_wrong_counts_by_the_servers(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = S3Place(bucket, "", s3_server.endpoint)
    real = time.time
    for ahead_s in (40 * 86400.0, -40 * 86400.0):
        monkeypatch.setattr("fs.store.s3.time.time", lambda: real() + ahead_s)  # noqa: B023
        store = S3Store(place)

        assert abs(store.now_unix_s() - real()) < 5

    store.put(NAME, Suffix.PLAIN, STORED)
    store.claim(NAME, Suffix.PLAIN)
    assert not store._refreshed, "it is young, whatever this machine believes"


def test_a_claimed_object_that_was_collected_is_noticed(s3_server: S3Server, bucket: str) -> None:
    place = S3Place(bucket, "", s3_server.endpoint)
    collector = S3Store(place)
    collector.put(NAME, Suffix.PLAIN, STORED)
    writer = S3Store(place, clock=lambda: time.time() + 2 * REFRESH_AFTER_S)
    writer.claim(NAME, Suffix.PLAIN)
    collector.remove(list(collector.objects()))

    with pytest.raises(OvertakenError):
        writer.settle()


def test_what_was_seen_is_not_asked_for_again(store: S3Store, proxy: FaultyProxy) -> None:
    store.put(NAME, Suffix.PLAIN, STORED)
    asked = len(proxy.requests)

    for _ in range(5):
        assert store.claim(NAME, Suffix.PLAIN, stored_bytes=len(STORED))
        assert not store.put(NAME, Suffix.PLAIN, STORED)

    assert len(proxy.requests) == asked


def test_what_is_served_may_be_cached_as_an_origin_says(direct: S3Store, s3_server: S3Server, bucket: str) -> None:
    direct.put(NAME, Suffix.PLAIN, STORED)
    direct.replace_named(MANIFEST, b"one")

    head = s3_server.client().head_object
    assert "immutable" in head(Bucket=bucket, Key="p/" + NAME.object_path())["CacheControl"]
    assert head(Bucket=bucket, Key="p/" + MANIFEST)["CacheControl"] == "public, max-age=61"


def test_a_bucket_that_is_not_there_is_named(s3_server: S3Server) -> None:
    missing = S3Store(S3Place("never-made", "", s3_server.endpoint), SMALL_LIMITS)

    with pytest.raises(AbsentError, match="never-made"):
        missing.prepare()


def test_a_stream_that_breaks_says_so(store: S3Store, direct: S3Store, proxy: FaultyProxy) -> None:
    direct.put(NAME, Suffix.PLAIN, STORED)
    proxy.spoil("GET", "", Fault.CUT_REPLY)

    with pytest.raises(FsError), store.open(NAME, Suffix.PLAIN) as stream:
        stream.read()
