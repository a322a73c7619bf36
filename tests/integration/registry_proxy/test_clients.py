"""Real clients and a real registry, with the command as it is started by users."""

import base64
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.registry_proxy.conftest import Proxy
from tests.support.bad_registry import Fault, bad_registry, digest_of
from tests.support.images import Layout, Member, directory, make_layout
from tests.support.processes import free_port, listens, require_tool, running, unmount_below, wait_until
from tests.support.registry import Registry, run_registry

UNPACKD = Path(sys.executable).with_name("unpackd")


@contextmanager
def command(folder: Path, upstream: str, settings: str = "") -> Iterator[Proxy]:
    """``unpackd proxy`` in front of *upstream*, called ``up``, with more *settings* for that."""
    port = free_port()
    config = folder / "proxy.toml"
    config.write_text(
        f'[proxy]\nlisten = "127.0.0.1:{port}"\ndirectory = "{folder}/cache"\ntag_ttl_s = 0\n'
        f'[[proxy.upstreams]]\nname = "up"\nurl = "{upstream}"\n{settings}'
    )
    with running([UNPACKD, "proxy", "--config", config], folder / "proxy.log") as process:
        wait_until(lambda: listens(port) or process.poll() is not None, "the start of unpackd proxy")
        assert process.poll() is None, (folder / "proxy.log").read_text()
        is_killed: list[bool] = []

        def kill() -> None:
            is_killed.append(True)
            process.kill()

        yield Proxy(port, folder / "cache", kill)
        if not is_killed:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    members = [directory("bin"), Member("bin/data", os.urandom(3_000_000), mode=0o755)]
    return make_layout(tmp_path / "layout", [members, [Member("etc", b"x")]])


def skopeo(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    options = ["--src-tls-verify=false"] if arguments[0] == "copy" else ["--tls-verify=false"]
    words = ["skopeo", arguments[0], *options, *arguments[1:]]
    return subprocess.run(words, check=False, capture_output=True, timeout=120)


def blob_requests(registry: Registry) -> list[str]:
    return sorted(
        str(one["http.request.uri"])
        for one in registry.requests()
        if one["http.request.method"] == "GET" and "/blobs/" in str(one["http.request.uri"])
    )


def test_skopeo_pulls_by_prefix_and_again_with_the_registry_off(layout: Layout, tmp_path: Path) -> None:
    require_tool("skopeo", "docker-registry")
    with run_registry(tmp_path) as registry, command(tmp_path, registry.url) as proxy:
        registry.push(layout.source, "t/a:1")
        before = len(blob_requests(registry))
        source = f"docker://{proxy.host}/up/t/a:1"
        for number in range(3):
            done = skopeo("copy", source, f"dir:{tmp_path}/copy{number}")
            assert done.returncode == 0, done.stderr.decode()
        assert len(blob_requests(registry)) - before == 3  # config and two layers, once each
        tags = skopeo("list-tags", source.removesuffix(":1"))
        assert json.loads(tags.stdout)["Tags"] == ["1"]
        registry_host = registry.host
        assert proxy.get(f"/v2/t/a/manifests/1?ns={registry_host}").body == layout.manifest

    with command(tmp_path, f"http://{registry_host}") as proxy:
        done = skopeo("copy", f"docker://{proxy.host}/up/t/a:1", f"dir:{tmp_path}/off")
        assert done.returncode == 0, done.stderr.decode()
        assert "stale: upstream" in proxy.get("/v2/t/a/manifests/1").headers["warning"]
        assert skopeo("copy", f"docker://{proxy.host}/up/t/b:1", f"dir:{tmp_path}/none").returncode != 0


def test_kill_leaves_nothing_unverified_and_the_download_goes_on(tmp_path: Path) -> None:
    data = os.urandom(8_000_000)
    path = f"/v2/t/a/blobs/{digest_of(data)}"
    with bad_registry() as upstream:
        upstream.add_blob("t/a", data)
        upstream.faults = [Fault("blobs", "drip", 8e6)]
        with command(tmp_path, upstream.url) as proxy, ThreadPoolExecutor(1) as pool:
            answer = pool.submit(proxy.get, path)
            partial = proxy.directory / "partial" / digest_of(data).replace(":", "-")
            wait_until(lambda: partial.exists() and partial.stat().st_size > 1_000_000, "a part of the blob")
            proxy.kill()
            assert not answer.result(20).is_whole
        assert proxy.stored() == []
        left = partial.stat().st_size
        upstream.faults = []
        upstream.seen.clear()

        with command(tmp_path, upstream.url) as proxy:
            assert proxy.get(path).body == data
        assert [one.headers.get("Range") for one in upstream.seen] == [f"bytes={left}-"]


def test_kept_connections_are_answered_at_once(tmp_path: Path) -> None:
    with bad_registry() as upstream, command(tmp_path, upstream.url) as proxy:
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        took_s: list[float] = []
        for _ in range(40):
            began_s = time.monotonic()
            connection.request("GET", "/v2/")
            connection.getresponse().read()
            took_s.append(time.monotonic() - began_s)
        connection.close()

    # past its first packets, a connection takes 40 ms an answer if the last packet waits for an acknowledgement;
    # the quickest counts, because a busy machine makes others slow
    assert min(took_s[20:]) < 0.03


def test_secrets_are_not_logged(tmp_path: Path) -> None:
    password, token = "very-secret-password", "very-secret-token"
    with bad_registry() as upstream:
        upstream.add_image("t/a", "1", [b"x"])
        upstream.token = token
        encoded = base64.b64encode(f"me:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {upstream.host: {"auth": encoded}}}))
        with command(tmp_path, upstream.url, f'credentials = "{tmp_path}/config.json"\n') as proxy:
            assert proxy.get("/v2/t/a/manifests/1").status == 200
            upstream.faults = [Fault("token", "status", 403)]
            upstream.token = "another"
            assert proxy.get("/v2/t/a/manifests/2").status == 403
            shown = (tmp_path / "proxy.log").read_text() + proxy.get("/metrics").body.decode()
    assert '"status": 403' in shown
    assert not any(secret in shown for secret in (password, token, encoded))


@pytest.mark.root
def test_containerd_pulls_through_its_hosts_file(layout: Layout, tmp_path: Path) -> None:
    require_tool("containerd", "ctr", "skopeo", "docker-registry")
    with run_registry(tmp_path) as registry, command(tmp_path, registry.url) as proxy:
        registry.push(layout.source, "t/a:1")
        before = len(blob_requests(registry))
        hosts = tmp_path / "hosts" / registry.host
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(
            f'server = "http://127.0.0.1:1"\n[host."http://{proxy.host}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        with containerd(tmp_path) as socket:
            reference = f"{registry.host}/t/a:1"
            pulled = subprocess.run(
                ["ctr", "-a", socket, "image", "pull", "--hosts-dir", tmp_path / "hosts", reference],
                check=False,
                capture_output=True,
                timeout=120,
            )
            assert pulled.returncode == 0, pulled.stderr.decode()
            listed = subprocess.run(
                ["ctr", "-a", socket, "image", "ls"], check=True, capture_output=True, timeout=30
            ).stdout.decode()
        assert reference in listed
        assert len(blob_requests(registry)) - before == 3
        assert proxy.metric("requests_total") >= 4


@contextmanager
def containerd(folder: Path) -> Iterator[str]:
    """A containerd with its files in *folder*."""
    socket = folder / "containerd.sock"
    config = folder / "containerd.toml"
    disabled = ["btrfs", "zfs", "devmapper", "aufs"]
    plugins = [f"io.containerd.snapshotter.v1.{name}" for name in disabled] + ["io.containerd.grpc.v1.cri"]
    config.write_text(
        f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\ndisabled_plugins = {json.dumps(plugins)}\n'
        f'[grpc]\n  address = "{socket}"\n[ttrpc]\n  address = "{socket}.ttrpc"\n'
    )
    try:
        with running(["containerd", "-c", config], folder / "containerd.log") as process:
            ready = ["ctr", "-a", str(socket), "version"]
            wait_until(
                lambda: (
                    process.poll() is not None
                    or subprocess.run(ready, check=False, capture_output=True, timeout=30).returncode == 0
                ),
                "the start of containerd",
            )
            assert process.poll() is None, (folder / "containerd.log").read_text()
            yield str(socket)
    finally:
        unmount_below(folder)
