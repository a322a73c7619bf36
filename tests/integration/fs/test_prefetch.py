"""Prefetching, profiles and figures through the library and through real mounts."""

import json
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from fs.client.prefetch import Prefetcher, Progress
from fs.client.profile import Read
from tests.support.delaying_relay import delaying_relay
from tests.support.flaky_origin import (
    Answer,
    FlakyOrigin,
    absent,
    broken,
    cut,
    endless,
    flaky_origin,
    flipped,
    login_page,
)
from tests.support.library import opened
from tests.support.mounts import mounted, unpackd
from tests.support.processes import free_port, wait_until
from tests.support.published import Published, publish


@pytest.fixture
def published(tmp_path: Path) -> Published:
    made = publish(tmp_path / "made")
    made.nest("/deep")
    made.commit(*(made.file(f"/deep/f{number}", b"content %d" % number) for number in range(40)))
    made.put(top=b"top", empty=b"")
    return made


@pytest.fixture
def origin(published: Published) -> Iterator[FlakyOrigin]:
    with flaky_origin(published.storage) as server:
        yield server


def test_a_tree_is_fetched_once(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
        prefetcher = Prefetcher(library.repository)
        for fetched, present in ((41, 0), (0, 41)):
            progress = Progress()
            library.run(prefetcher.fetch, [Read(b"")], progress)
            assert (progress.files, progress.fetched, progress.present) == (41, fetched, present)
        origin.always("/data/", lambda _: (503, b""))
        assert library.content(b"/deep/f7") == b"content 7"


def test_what_cannot_be_had_is_counted(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    gone = published.object_of(b"content 3").relative_to(published.storage)
    with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
        origin.always(str(gone), lambda _: (404, b""))
        progress = Progress()
        library.run(Prefetcher(library.repository).fetch, [Read(b"/deep"), Read(b"/absent")], progress)
    assert asdict(progress) | {"seconds": 0, "fetched_bytes": 0} == asdict(
        Progress(files=40, objects=40, fetched=39, failed=1, missing=1)
    )


def test_many_transfers_run_at_once(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    with (
        delaying_relay(("127.0.0.1", origin.port), 0.1) as relay,
        opened(published.name, [f"http://127.0.0.1:{relay.port}"], published.public_key, tmp_path / "c") as library,
    ):
        progress = Progress()
        library.run(Prefetcher(library.repository).fetch, [Read(b"/deep")], progress)
    assert progress.fetched == 40
    assert progress.seconds < 1.5  # 4 s one after the other


def test_what_comes_in_bundles_takes_few_requests(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    origin.gives_bundles = True
    with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
        library.content(b"/deep/f0")
        before = len(origin.requests)
        progress = Progress()
        library.run(Prefetcher(library.repository).fetch, [Read(b"")], progress)
        assert (progress.fetched, progress.present, progress.failed) == (40, 1, 0)
        assert len(origin.requests) - before == 1
        origin.always("", broken)
        assert [library.content(b"/deep/f%d" % number) for number in range(40)] == [
            b"content %d" % number for number in range(40)
        ]


@pytest.mark.parametrize("fault", [flipped, cut, absent])
def test_what_a_bundle_gives_damaged_is_fetched_alone(
    published: Published, origin: FlakyOrigin, tmp_path: Path, fault: Answer
) -> None:
    origin.gives_bundles = True
    origin.always(f"in a bundle: {published.object_of(b'content 3').relative_to(published.storage)}", fault)
    with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
        progress = Progress()
        library.run(Prefetcher(library.repository).fetch, [Read(b"/deep")], progress)
        assert (progress.fetched, progress.failed) == (40, 0)
        assert origin.count("data/") - origin.count("C") <= 2  # certificate, and the one that was damaged
        assert library.content(b"/deep/f3") == b"content 3"


@pytest.mark.parametrize("fault", [login_page, cut, broken, endless])
def test_a_server_whose_bundles_are_none_gives_single_objects(
    published: Published, origin: FlakyOrigin, tmp_path: Path, fault: Answer
) -> None:
    origin.gives_bundles = True
    origin.always("/bundle/", fault)
    with opened(published.name, [origin.url], published.public_key, tmp_path / "c") as library:
        progress = Progress()
        library.run(Prefetcher(library.repository).fetch, [Read(b"/deep")], progress)
        assert (progress.fetched, progress.failed) == (40, 0)
        assert origin.count("/bundle/") <= 2


@pytest.mark.root
def test_a_profile_of_one_mount_prepares_the_next(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    big = os.urandom(40 << 20)
    published.put(big=big)
    profile = tmp_path / "profile.json"
    with mounted(published.name, [origin.url], published.public_key, tmp_path) as mount:
        for number in (7, 3, 11):
            (mount.path / f"deep/f{number}").read_bytes()
        with (mount.path / "big").open("rb") as stream:
            stream.seek(30 << 20)
            stream.read(10)
        document = mount.control("profile")
    assert [row["path"] for row in document["reads"]] == ["/deep/f7", "/deep/f3", "/deep/f11", "/big"]
    assert 0 not in document["reads"][3]["chunks"]
    profile.write_text(json.dumps(document))
    with mounted(published.name, [origin.url], published.public_key, tmp_path, "--cache", tmp_path / "other") as mount:
        before = origin.count("/data/")
        done = unpackd("mountctl", mount.path, "prefetch", "--profile", profile, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["fetched"] == 3 + len(document["reads"][3]["chunks"])
        assert origin.count("/data/") > before
        origin.always("/data/", lambda _: (503, b""))
        assert (mount.path / "deep/f3").read_bytes() == b"content 3"


@pytest.mark.root
def test_paths_are_fetched_on_request(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    with mounted(published.name, [origin.url], published.public_key, tmp_path) as mount:
        done = unpackd("mountctl", mount.path, "prefetch", "/deep", mount.path / "top", "no/such", "--json")
        assert done.returncode == 3
        answer = json.loads(done.stdout)
        assert (answer["fetched"], answer["missing"]) == (41, 1)
        assert unpackd("mountctl", mount.path, "prefetch").returncode == 2
        assert unpackd("mountctl", mount.path, "status", "/x").returncode == 2


@pytest.mark.root
def test_a_sequential_reader_finds_later_chunks_there(
    published: Published, origin: FlakyOrigin, tmp_path: Path
) -> None:
    big = os.urandom(48 << 20)
    published.put(big=big)
    with mounted(published.name, [origin.url], published.public_key, tmp_path) as mount:
        before = origin.count("/data/")
        with (mount.path / "big").open("rb") as stream:
            assert stream.read(9 << 20) == big[: 9 << 20]
        read = mount.control("profile")["reads"][0]["chunks"]
        wait_until(lambda: origin.count("/data/") - before > len(read), "fetching ahead")
        assert (mount.path / "big").read_bytes() == big
        assert origin.count("P") - before <= len(mount.control("profile")["reads"][0]["chunks"]) + 2


@pytest.mark.root
@pytest.mark.parametrize(("option", "is_ahead"), [("--read-ahead", True), ("--no-read-ahead", False)])
def test_small_files_beside_those_that_were_read(
    published: Published, origin: FlakyOrigin, tmp_path: Path, option: str, is_ahead: bool
) -> None:
    origin.delay_s = 0.02
    with mounted(published.name, [origin.url], published.public_key, tmp_path, option) as mount:
        for number in range(4):
            assert (mount.path / f"deep/f{number}").read_bytes() == b"content %d" % number
        before = mount.control("status")["fetched_objects"]
        if is_ahead:
            wait_until(lambda: mount.control("status")["fetched_objects"] >= 35, "fetching around")
        else:
            time.sleep(0.3)
            assert mount.control("status")["fetched_objects"] == before


@pytest.mark.root
def test_figures_over_socket_and_port(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    port = free_port()
    with mounted(
        published.name, [origin.url], published.public_key, tmp_path, "--metrics", f"127.0.0.1:{port}"
    ) as mount:
        (mount.path / "top").read_bytes()
        status = mount.control("status")
        assert status["fetch_ms"]["p50"] > 0
        assert status["hosts"][0]["answered"] >= 3
        assert 0 <= status["cache"]["hit_rate"] <= 1
        text = unpackd("mountctl", mount.path, "metrics").stdout
        assert "\nunpackd_mount_fetch_seconds_count " in text
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            scraped = reply.read().decode()
        assert {line.split(" ")[0] for line in scraped.splitlines()} == {
            line.split(" ")[0] for line in text.splitlines()
        }
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=10)


@pytest.mark.root
def test_a_proxy_that_is_down_is_left_out(published: Published, origin: FlakyOrigin, tmp_path: Path) -> None:
    down = free_port()
    with mounted(
        published.name, [origin.url], published.public_key, tmp_path, "--proxy", f"http://127.0.0.1:{down};DIRECT"
    ) as mount:
        assert (mount.path / "top").read_bytes() == b"top"
        assert mount.control("status")["proxy"] == "DIRECT"
        assert os.getxattr(mount.path, "user.proxy_list") == f"http://127.0.0.1:{down}\nDIRECT\n".encode()
