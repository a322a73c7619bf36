"""Proxies that the network names, and servers by their distance, with real servers and a real mount."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fs.errors import RefusedError, UnreachableError
from fs.store.pac import groups_of, with_discovered
from tests.support.flaky_origin import flaky_origin
from tests.support.mounts import mounted
from tests.support.processes import free_port, unmount_below
from tests.support.published import Published, publish

URLS = ["http://one.example.org/r", "http://two.example.net/r"]
PROGRAM = """
function FindProxyForURL(url, host) {
  if (dnsDomainIs(host, ".example.net")) return "PROXY net:1; DIRECT";
  if (shExpMatch(url, "http://one*")) return "PROXY a:3128; SOCKS s:1; HTTPS b:443";
  return "DIRECT";
}
"""


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Published]:
    made = publish(tmp_path / "made")
    made.put(file=b"content")
    yield made
    unmount_below(tmp_path)


def _pac(folder: Path, program: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "wpad.dat").write_text(program)


def test_answers_of_configurations_become_groups() -> None:
    assert groups_of("PROXY a:1; HTTP b:2;HTTPS c:3 ; SOCKS d:4; DIRECT; nonsense;") == [
        "http://a:1", "http://b:2", "https://c:3", "DIRECT",
    ]  # fmt: skip


def test_the_first_configuration_that_is_there_counts_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    _pac(tmp_path / "web", PROGRAM)
    kept = tmp_path / "kept"
    with flaky_origin(tmp_path / "web") as web:
        places = [f"http://127.0.0.1:{free_port()}/x", f"{web.url}/none", f"{web.url}/wpad.dat"]
        found = with_discovered("http://first;auto;DIRECT", URLS, places, kept)
        assert found == "http://first;http://a:3128;https://b:443;http://net:1;DIRECT;DIRECT"
    assert with_discovered("auto", URLS, places, kept) == "http://a:3128;https://b:443;http://net:1;DIRECT"
    monkeypatch.setenv("http_proxy", "http://env:1")
    assert with_discovered("auto", URLS, places, kept) == "http://env:1"
    monkeypatch.delenv("http_proxy")
    kept.unlink()
    with pytest.raises(UnreachableError, match="--pac-url"):
        with_discovered("auto", URLS, places, kept)


@pytest.mark.parametrize(
    "program",
    [
        "function FindProxyForURL(url, host) { while (true) {} }",
        "function FindProxyForURL(url, host) { var a = 'x'; while (true) { a = a + a; } }",
        "nonsense(",
        "<html>Please log in</html>",
        "var x = 1;",
    ],
)
def test_a_configuration_that_is_none_or_hostile_is_refused(tmp_path: Path, program: str) -> None:
    _pac(tmp_path / "web", program)
    with flaky_origin(tmp_path / "web") as web, pytest.raises(RefusedError, match="proxy configuration"):
        with_discovered("auto", URLS[:1], [f"{web.url}/wpad.dat"], tmp_path / "kept")


@pytest.mark.root
def test_a_mount_goes_through_what_the_network_names(published: Published, tmp_path: Path) -> None:
    with flaky_origin(published.storage) as origin, flaky_origin(published.storage) as proxy:
        _pac(tmp_path / "web", f'function FindProxyForURL(u, h) {{ return "PROXY 127.0.0.1:{proxy.port}; DIRECT"; }}')
        with flaky_origin(tmp_path / "web") as web:
            options = ("--proxy", "auto", "--pac-url", f"{web.url}/wpad.dat")
            with mounted(published.name, [origin.url], published.public_key, tmp_path / "w", *options) as mount:
                assert (mount.path / "file").read_bytes() == b"content"
                assert os.getxattr(mount.path, "user.proxy") == proxy.url.encode()
        assert f"{origin.url}/.cvmfspublished" in proxy.requests
        assert not origin.count(".cvmfspublished")


@pytest.mark.root
def test_a_mount_asks_which_server_is_near(published: Published, tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    for place in (far, near):
        place.symlink_to(published.storage)
    with flaky_origin(far) as one, flaky_origin(near) as other:
        urls = [one.url, other.url.replace("127.0.0.1", "localhost")]

        def order(_: bytes) -> tuple[int, bytes]:
            return 200, b"2,1\n"  # of 127.0.0.1 and localhost

        for server in (one, other):
            server.generated["/api/v1.0/geo/"] = order
        with mounted(published.name, urls, published.public_key, tmp_path / "w", "--geo") as mount:
            assert (mount.path / "file").read_bytes() == b"content"
            assert os.getxattr(mount.path, "user.host") == urls[1].encode()
        assert not one.count("/data/")
        asked = [path for server in (one, other) for path in server.requests if "/geo/" in path]
        assert len(asked) == 1
        assert asked[0].endswith("/127.0.0.1,localhost")
