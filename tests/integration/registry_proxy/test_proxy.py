"""The proxy in front of a registry that misbehaves: what is served, kept, and never served."""

import http.client
import json
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.registry_proxy.conftest import Got, Proxy, StartProxy
from tests.support.bad_registry import INDEX, MANIFEST, BadRegistry, Fault, digest_of
from tests.support.processes import wait_until

DATA = os.urandom(3 << 20)
SMALL = os.urandom(10_000)
BLOB = f"/v2/t/a/blobs/{digest_of(DATA)}"
SMALL_BLOB = f"/v2/t/a/blobs/{digest_of(SMALL)}"
TAG = "/v2/t/a/manifests/1"


def in_parallel(count: int, call: Callable[[], Got]) -> list[Got]:
    with ThreadPoolExecutor(count) as pool:
        return [one.result() for one in [pool.submit(call) for _ in range(count)]]


def code_of(got: Got) -> str:
    return str(json.loads(got.body)["errors"][0]["code"])


def test_the_root_is_answered_without_the_upstream(bad: BadRegistry, proxy: Proxy) -> None:
    got = proxy.get("/v2/")

    assert (got.status, got.headers["docker-distribution-api-version"]) == (200, "registry/2.0")
    assert proxy.get("/healthz").status == 200
    assert bad.seen == []


@pytest.mark.parametrize("path", [TAG, "/v2/up/t/a/manifests/1", "/v2/{host}/t/a/manifests/1", TAG + "?ns={host}"])
def test_a_manifest_is_given_as_it_is(bad: BadRegistry, proxy: Proxy, path: str) -> None:
    digest = bad.add_image("t/a", "1", [SMALL])

    got = proxy.get(path.format(host=bad.host))

    assert got.body == bad.manifests["t/a", digest][1]
    assert got.headers["content-type"] == MANIFEST
    assert got.headers["docker-content-digest"] == digest
    assert got.headers["etag"] == f'"{digest}"'
    assert ("oci-namespace" in got.headers) == ("ns=" in path)


@pytest.mark.parametrize("path", [TAG, BLOB], ids=["tag", "blob"])
def test_head_gives_the_headers_of_get(bad: BadRegistry, proxy: Proxy, path: str) -> None:
    bad.add_image("t/a", "1", [DATA])

    head, get = proxy.get(path, "HEAD"), proxy.get(path)

    for headers in (head.headers, get.headers):
        headers.pop("date")
    assert head.headers == get.headers
    assert head.body == b""
    assert get.status == 200


def test_head_of_a_blob_fetches_nothing(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])

    assert proxy.get(BLOB, "HEAD").headers["content-length"] == str(len(DATA))
    assert bad.count("GET", "/blobs/") == 0


def test_what_was_fetched_is_given_again_without_the_upstream(bad: BadRegistry, proxy: Proxy) -> None:
    digest = bad.add_image("t/a", "1", [DATA])
    for path in (TAG, BLOB):
        proxy.get(path)
    bad.seen.clear()

    assert proxy.get(BLOB).body == DATA
    assert proxy.get(f"/v2/t/a/manifests/{digest}").status == 200
    assert bad.seen == []
    assert proxy.get(TAG).status == 200
    assert [one.method for one in bad.seen] == ["HEAD"]


def test_if_none_match_is_answered_with_304(bad: BadRegistry, proxy: Proxy) -> None:
    digest = bad.add_image("t/a", "1", [SMALL])

    for path, name in ((TAG, digest), (SMALL_BLOB, digest_of(SMALL))):
        got = proxy.get(path, If_None_Match=f'"x", "{name}"')
        assert (got.status, got.body) == (304, b"")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/t/a/manifests/absent", 404, "MANIFEST_UNKNOWN"),
        ("/v2/t/a/manifests/sha256:" + "a" * 64, 404, "MANIFEST_UNKNOWN"),
        ("/v2/t/a/manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"),
        ("/v2/t/a/blobs/sha256:baddigeststring", 400, "DIGEST_INVALID"),
        ("/v2/t/a/blobs/sha256:" + "a" * 64, 404, "BLOB_UNKNOWN"),
        ("/v2/t/a/blobs/blake3:" + "a" * 64, 404, "BLOB_UNKNOWN"),
        ("/v2/t/a/manifests/-bad", 404, "MANIFEST_UNKNOWN"),
        ("/v2/T/A/manifests/1", 400, "NAME_INVALID"),
        ("/v2/../../etc/manifests/1", 400, "NAME_INVALID"),
        ("/v2/%2e%2e/%2e%2e/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%2f..%2fb/manifests/1", 400, "NAME_INVALID"),
        ("/v2/a%00b/manifests/1", 400, "NAME_INVALID"),
        ("/v2/" + "a" * 300 + "/manifests/1", 400, "NAME_INVALID"),
        ("/v2/t/a/manifests/1?ns=169.254.169.254", 404, "NAME_UNKNOWN"),
        ("/v2/absent/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/_catalog", 404, "NAME_UNKNOWN"),
        ("/v2/t/a/referrers/sha256:" + "a" * 64, 404, "UNSUPPORTED"),
    ],
)
def test_what_is_not_there_is_said_in_the_protocols_words(
    bad: BadRegistry, proxy: Proxy, path: str, status: int, code: str
) -> None:
    bad.add_image("t/a", "1", [SMALL])

    got = proxy.get(path)

    assert (got.status, code_of(got)) == (status, code)
    assert got.headers["content-type"] == "application/json"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_writes_are_refused(proxy: Proxy, method: str) -> None:
    got = proxy.get("/v2/t/a/blobs/uploads/", method)

    assert (got.status, got.headers["allow"], code_of(got)) == (405, "GET, HEAD", "UNSUPPORTED")


def test_nothing_is_ever_encoded(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [SMALL])

    for path in (TAG, SMALL_BLOB):
        assert "content-encoding" not in proxy.get(path, Accept_Encoding="zstd;q=1.0, gzip;q=0.8").headers
    assert {one.headers["Accept-Encoding"] for one in bad.seen} == {"identity"}


def test_the_clients_authorization_stays_here(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [SMALL])

    proxy.get(TAG, Authorization="Basic c2VjcmV0")

    assert not any("Authorization" in one.headers for one in bad.seen)


def test_an_upstreams_challenge_is_never_passed_on(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    bad.basic = "Basic eDp5"

    got = proxy.get(TAG)

    assert (got.status, code_of(got), "www-authenticate" in got.headers) == (404, "NAME_UNKNOWN", False)


def test_tags_are_paged(bad: BadRegistry, proxy: Proxy) -> None:
    bad.tags["t/a"] = ["b", "c", "a", "d"]

    whole, first = proxy.get("/v2/t/a/tags/list"), proxy.get("/v2/t/a/tags/list?n=2")
    following = first.headers["link"].partition(">")[0].removeprefix("<")

    assert json.loads(whole.body) == {"name": "t/a", "tags": ["a", "b", "c", "d"]}
    assert json.loads(first.body)["tags"] == ["a", "b"]
    assert json.loads(proxy.get(following).body)["tags"] == ["c", "d"]
    assert json.loads(proxy.get("/v2/t/a/tags/list?last=aa").body)["tags"] == ["b", "c", "d"]
    assert json.loads(proxy.get("/v2/t/a/tags/list?n=0").body)["tags"] == []


def test_a_moved_tag_is_seen_at_once(bad: BadRegistry, proxy: Proxy) -> None:
    first = bad.add_image("t/a", "1", [SMALL])
    assert proxy.get(TAG).headers["docker-content-digest"] == first

    second = bad.add_image("t/a", "1", [DATA])

    assert proxy.get(TAG).headers["docker-content-digest"] == second


def test_a_tag_that_is_gone_is_gone(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    proxy.get(TAG)
    del bad.manifests["t/a", "1"]

    assert proxy.get(TAG).status == 404


@pytest.mark.parametrize(
    "fault",
    [
        Fault("manifests", "status", 500),
        Fault("manifests", "status", 429),
        Fault("manifests", "reset"),
        Fault("manifests", "wait", 1.2),
    ],
    ids=lambda fault: f"{fault.action}-{fault.value:g}",
)
def test_an_upstream_that_is_down_leaves_the_last_answer(bad: BadRegistry, proxy: Proxy, fault: Fault) -> None:
    digest = bad.add_image("t/a", "1", [SMALL])
    proxy.get(TAG)
    bad.faults = [fault]

    got = proxy.get(TAG)

    assert (got.status, got.headers["docker-content-digest"]) == (200, digest)
    assert got.headers["warning"].startswith(f'299 - "stale: upstream {bad.host} not reachable since 20')
    assert proxy.metric("stale_total") == 1
    unknown = proxy.get("/v2/t/a/manifests/other")
    assert unknown.status in (503, 429)
    assert "retry-after" in unknown.headers


def test_an_answer_that_is_too_old_is_not_given(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    with start_proxy(tag_ttl_s=0, stale_limit_s=0) as proxy:
        proxy.get(TAG)
        bad.faults = [Fault("manifests", "status", 500)]

        assert proxy.get(TAG).status == 503


def test_a_young_tag_is_believed(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    with start_proxy(tag_ttl_s=60) as proxy:
        for _ in range(3):
            proxy.get(TAG)

    assert bad.count("HEAD", "/manifests/") == 1


def test_withdrawn_access_is_not_papered_over(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    proxy.get(TAG)
    bad.faults = [Fault("manifests", "status", 403)]

    assert proxy.get(TAG).status == 404


def test_a_registry_without_head_or_digests_is_asked_with_get(bad: BadRegistry, proxy: Proxy) -> None:
    digest = bad.add_image("t/a", "1", [SMALL])
    for fault in (Fault("manifests", "status", 405, method="HEAD"), Fault("manifests", "no-digest")):
        bad.faults = [fault]
        assert proxy.get(TAG).headers["docker-content-digest"] == digest


def test_many_clients_of_one_tag_are_one_question(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [SMALL])
    bad.faults = [Fault("manifests", "wait", 0.3)]
    with start_proxy(tag_ttl_s=60) as proxy:
        answers = in_parallel(20, lambda: proxy.get(TAG))

    assert {one.status for one in answers} == {200}
    assert (bad.count("HEAD", "/manifests/"), bad.count("GET", "/manifests/")) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault("manifests", "flip", 30, method="GET"), 502, "MANIFEST_INVALID"),
        (Fault("manifests", "type", text=INDEX, method="GET"), 502, "MANIFEST_INVALID"),
        (Fault("manifests", "other", text="<html>login</html>"), 502, "MANIFEST_INVALID"),
        (
            Fault("manifests", "type", text="application/vnd.docker.distribution.manifest.v1+prettyjws"),
            404,
            "MANIFEST_UNKNOWN",
        ),
    ],
    ids=lambda value: value.action if isinstance(value, Fault) else "",
)
def test_bad_manifests_are_neither_given_nor_kept(
    bad: BadRegistry, proxy: Proxy, fault: Fault, status: int, code: str
) -> None:
    bad.add_image("t/a", "1", [SMALL])
    bad.faults = [fault]

    got = proxy.get(TAG)

    assert (got.status, code_of(got)) == (status, code)
    assert proxy.stored() == []


def test_artifacts_pass(bad: BadRegistry, proxy: Proxy) -> None:
    config = {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest_of(b"{}"), "size": 2}
    body = json.dumps({"mediaType": MANIFEST, "config": config, "layers": [], "unknown": [1.50]}).encode()
    bad.add_manifest("t/a", "1", body)

    assert proxy.get(TAG).body == body


def test_thirty_cold_pulls_are_one_fetch(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 4e6)]  # slow enough that all come while it runs

    answers = in_parallel(30, lambda: proxy.get(BLOB))

    assert all(one.body == DATA for one in answers)
    assert bad.count("GET", "/blobs/") == 1
    assert len(proxy.stored()) == 1


def test_a_client_that_leaves_does_not_end_the_download(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 4e6)]
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    connection.request("GET", BLOB)
    connection.getresponse().read(len(DATA) // 10)
    connection.close()

    wait_until(lambda: len(proxy.stored()) == 1, "the end of the download")
    assert proxy.get(BLOB).body == DATA
    assert bad.count("GET", "/blobs/") == 1


def test_a_download_with_much_left_ends_without_readers_and_is_resumed(
    bad: BadRegistry, start_proxy: StartProxy
) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 4e6, times=1)]
    with start_proxy(unread_limit_bytes=1 << 20, verify_first_bytes=1) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request("GET", BLOB)
        connection.getresponse().read(len(DATA) // 10)
        connection.close()
        wait_until(lambda: proxy.metric("downloads") == 0, "the end of the download")
        assert proxy.stored() == []

        assert proxy.get(BLOB).body == DATA
    assert bad.seen[-1].headers["Range"].startswith("bytes=")


def test_an_upstream_that_dies_half_way_is_resumed(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "cut", len(DATA) // 2, times=1)]

    assert proxy.get(BLOB).body == DATA
    ranges = [one.headers.get("Range") for one in bad.seen if one.method == "GET"]
    assert ranges == [None, f"bytes={len(DATA) // 2}-"]


def test_a_partial_file_is_resumed_after_a_restart(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 2e6)]
    with start_proxy() as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        connection.request("GET", BLOB)
        wait_until(lambda: any((proxy.directory / "partial").iterdir()), "a partial file")
        time.sleep(0.3)
        connection.close()
    left = next((proxy.directory / "partial").iterdir()).stat().st_size
    assert 0 < left < len(DATA)
    bad.faults = []
    bad.seen.clear()

    with start_proxy() as proxy:
        assert proxy.get(BLOB).body == DATA

    assert [one.headers.get("Range") for one in bad.seen] == [f"bytes={left}-"]


@pytest.mark.parametrize("offset", [0, len(DATA) // 2, -1], ids=["start", "middle", "last"])
@pytest.mark.parametrize("verify_first_bytes", [1, 64 << 20], ids=["streamed", "verified-first"])
def test_no_client_gets_a_whole_corrupt_blob(
    bad: BadRegistry, start_proxy: StartProxy, offset: int, verify_first_bytes: int
) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "flip", offset)]
    with start_proxy(verify_first_bytes=verify_first_bytes) as proxy:
        answers = in_parallel(5, lambda: proxy.get(BLOB))

        for got in answers:
            assert got.status == 502 or not got.is_whole
            assert len(got.body) < len(DATA)
        assert proxy.stored() == []
        assert list((proxy.directory / "partial").iterdir()) == []
        if verify_first_bytes == 1:
            poisoned = proxy.get(BLOB, Range=f"bytes={1 << 20}-")
            assert (poisoned.status, poisoned.headers["retry-after"]) == (503, "5")
        bad.faults = []
        assert proxy.get(BLOB).body == DATA


def test_a_blob_that_was_wrong_once_is_fetched_again_unseen(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "flip", 5, times=1)]
    with start_proxy() as proxy:
        assert proxy.get(BLOB).body == DATA
        assert proxy.metric("corrupt_total") == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault("blobs", "status", 500), 503),
        (Fault("blobs", "status", 429, headers={"Retry-After": "99"}), 429),
        (Fault("blobs", "status", 404), 404),
        (Fault("blobs", "encoding", text="gzip"), 502),
        (Fault("blobs", "empty"), 502),
    ],
    ids=lambda value: f"{value.action}-{value.value:g}" if isinstance(value, Fault) else "",
)
def test_failures_have_the_status_that_clients_understand(
    bad: BadRegistry, proxy: Proxy, fault: Fault, status: int
) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [fault]

    assert proxy.get(BLOB).status == status
    assert proxy.stored() == []


def test_an_upstream_that_drips_is_given_up(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 100)]

    assert not proxy.get(BLOB).is_whole
    assert proxy.stored() == []


@pytest.mark.parametrize("is_cached", [True, False])
def test_ranges(bad: BadRegistry, proxy: Proxy, is_cached: bool) -> None:
    bad.add_image("t/a", "1", [DATA])
    if is_cached:
        proxy.get(BLOB)
    size = len(DATA)
    for asked, part in {
        "bytes=10-19": range(10, 20),
        f"bytes={size - 5}-": range(size - 5, size),
        "bytes=-7": range(size - 7, size),
        f"bytes={size - 3}-{size + 100}": range(size - 3, size),
    }.items():
        got = proxy.get(BLOB, Range=asked)
        assert (got.status, got.body) == (206, DATA[part.start : part.stop])
        assert got.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
    for asked in ("bytes=-0", f"bytes={size}-", "bytes=500-0"):
        got = proxy.get(BLOB, Range=asked)
        assert (got.status, got.headers["content-range"]) == (416, f"bytes */{size}")
    if not is_cached:
        assert proxy.stored() == []
    for asked in ("bytes=0-1,5-6", "lines=1-2"):
        assert proxy.get(BLOB, Range=asked).status == 200
    assert proxy.get(BLOB, Range="bytes=1-2", If_Range='"other"').body == DATA


def test_a_range_of_a_blob_on_its_way_is_waited_for(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.faults = [Fault("blobs", "drip", 4e6)]
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(proxy.get, BLOB)
        wait_until(lambda: proxy.metric("downloads") == 1, "the download")
        got = proxy.get(BLOB, Range=f"bytes={len(DATA) // 2}-{len(DATA) // 2 + 99}")
        assert whole.result().body == DATA

    assert (got.status, got.body) == (206, DATA[len(DATA) // 2 : len(DATA) // 2 + 100])
    assert bad.count("GET", "/blobs/") == 1


def test_a_blob_is_not_given_through_a_repository_that_lacks_it(bad: BadRegistry, proxy: Proxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    bad.add_image("t/b", "1", [SMALL])
    proxy.get(BLOB)

    assert proxy.get(BLOB.replace("t/a", "t/b")).status == 404
    digest = digest_of(bad.manifests["t/a", "1"][1])
    proxy.get(TAG)
    assert proxy.get(f"/v2/t/b/manifests/{digest}").status == 404


def test_repositories_that_are_not_allowed_are_unknown(bad: BadRegistry, start_proxy: StartProxy) -> None:
    from registry_proxy.config import UpstreamSettings

    bad.add_image("t/a", "1", [SMALL])
    with start_proxy(upstreams=(UpstreamSettings(name="up", url=bad.url, allow=("library/*",)),)) as proxy:
        for path in (TAG, SMALL_BLOB, "/v2/t/a/tags/list"):
            assert code_of(proxy.get(path)) == "NAME_UNKNOWN"
    assert bad.seen == []


def test_the_least_recently_used_goes_first(bad: BadRegistry, start_proxy: StartProxy) -> None:
    layers = [os.urandom(100_000) for _ in range(6)]
    bad.add_image("t/a", "1", layers)
    paths = [f"/v2/t/a/blobs/{digest_of(one)}" for one in layers]
    with start_proxy(max_bytes=450_000, low_mark=0.8) as proxy:
        for path in (TAG, *paths[:4], paths[0], paths[4]):
            assert proxy.get(path).status == 200
        bad.seen.clear()
        assert proxy.metric("cache_bytes") <= 450_000
        for path in (paths[0], paths[4]):
            proxy.get(path)
        assert bad.seen == []
        proxy.get(paths[1])
        assert bad.count("GET", "/blobs/") == 1


def test_a_blob_larger_than_the_cache_passes_through(bad: BadRegistry, start_proxy: StartProxy) -> None:
    bad.add_image("t/a", "1", [DATA])
    with start_proxy(max_bytes=1 << 20) as proxy:
        assert proxy.get(BLOB).body == DATA
        assert proxy.metric("unstored_total") == 1
        assert proxy.stored() == []
        bad.faults = [Fault("blobs", "flip", 5)]
        assert not proxy.get(BLOB).is_whole


def test_files_and_rows_are_brought_into_agreement(bad: BadRegistry, start_proxy: StartProxy) -> None:
    layers = [os.urandom(50_000) for _ in range(3)]
    bad.add_image("t/a", "1", layers)
    paths = [f"/v2/t/a/blobs/{digest_of(one)}" for one in layers]
    with start_proxy() as proxy:
        for path in paths:
            proxy.get(path)
        files = {path.name: path for path in proxy.stored()}
    lost, damaged, stray = (files[digest_of(one).removeprefix("sha256:")] for one in layers)
    lost.unlink()
    damaged.write_bytes(b"x" * 50_000)
    with sqlite3.connect(proxy.directory / "cache.db") as database:
        database.execute("DELETE FROM contents WHERE digest = ?", (f"sha256:{stray.name}",))
    forged = stray.with_name("0" * 64)
    forged.write_bytes(b"x")
    bad.seen.clear()

    with start_proxy() as proxy:
        assert [proxy.get(path).body for path in paths] == layers
        assert not forged.exists()
    fetched = {one.path for one in bad.seen if one.method == "GET"}
    assert fetched == set(paths[:2])


def test_a_cache_directory_has_one_user(start_proxy: StartProxy, proxy: Proxy) -> None:
    from registry_proxy.cache import Cache
    from registry_proxy.errors import CacheLockedError

    with pytest.raises(CacheLockedError):
        Cache(proxy.directory, max_bytes=1, low_mark=1)


def test_an_upstream_that_is_off_is_not_waited_for_again_and_again(bad: BadRegistry, proxy: Proxy) -> None:
    bad.faults = [Fault("manifests", "reset")]
    for number in range(3):
        proxy.get(f"/v2/t/a/manifests/{number}")
    bad.seen.clear()

    assert proxy.get("/v2/t/a/manifests/9").status == 503
    assert bad.seen == []
