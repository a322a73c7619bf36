"""What cannot be converted: one clear sentence, the right exit code, and the repository as it was."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import oras.client
import pytest

from tests.e2e.conftest import Line, unpackd
from tests.support.images import Member, digest, make_layout
from tests.support.processes import free_port

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FAILED, USAGE, ABSENT, CORRUPT, UNREACHABLE = 1, 2, 10, 12, 13
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def refused(line: Line, reference: str) -> tuple[int, str]:
    """Convert *reference*, which must fail and change nothing; gives exit code and the one sentence."""
    before = line.revision()
    done = unpackd("convert", reference, *line.repository_options, timeout_s=100)

    assert line.revision() == before
    assert done.stdout.strip() == ""
    assert "Traceback" not in done.stderr
    said = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert len(said) == 1, done.stderr
    return done.returncode, said[0]


@pytest.mark.parametrize("reference", ["docker.io/UPPER/case:1", "127.0.0.1:5000/a b", "host/name@sha256:short", ""])
def test_a_bad_reference(line: Line, reference: str) -> None:
    code, sentence = refused(line, reference)

    assert code == USAGE
    assert repr(reference)[1:-1] in sentence


def test_a_registry_that_does_not_listen(line: Line) -> None:
    host = f"127.0.0.1:{free_port()}"

    code, sentence = refused(line, f"{host}/some/image:1")

    assert code == UNREACHABLE
    assert host in sentence


def test_an_image_that_is_not_there(line: Line) -> None:
    code, sentence = refused(line, f"{line.registry.host}/no/such:tag")

    assert code == ABSENT
    assert "no/such" in sentence


def test_a_layer_that_is_not_what_its_digest_says(line: Line, tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "layout", [[Member("file", b"honest")]])
    reference = line.registry.push(layout.source, "refused/flipped:1")
    name = digest(layout.layers[0]).removeprefix("sha256:")
    stored = line.registry.storage / f"docker/registry/v2/blobs/sha256/{name[:2]}/{name}/data"
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)

    code, sentence = refused(line, reference)

    assert code == CORRUPT
    assert name in sentence


def test_a_helm_chart(line: Line, tmp_path: Path) -> None:
    chart = tmp_path / "chart.tgz"
    chart.write_bytes(b"chart")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "chart", "version": "1.0.0"}))
    reference = f"{line.registry.host}/refused/chart:1"
    oras.client.OrasClient(insecure=True).push(
        target=reference,
        files=[f"{chart}:application/vnd.cncf.helm.chart.content.v1.tar+gzip"],
        manifest_config=f"{config}:application/vnd.cncf.helm.config.v1+json",
        disable_path_validation=True,
    )

    code, sentence = refused(line, reference)

    assert code == FAILED
    assert "helm" in sentence.lower()


@contextmanager
def registry_of_one_manifest(body: bytes, media_type: str) -> Iterator[str]:
    """A registry that answers every manifest request with *body*; gives its host and port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Content-Digest", digest(body))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815  # the name that the server looks for

        def log_message(self, *args: object) -> None:
            """Nothing: the test says what it saw."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_manifest_of_schema_1(line: Line) -> None:
    body = json.dumps({"schemaVersion": 1, "name": "old", "tag": "1", "fsLayers": [], "history": []}).encode()
    with registry_of_one_manifest(body, SCHEMA_1) as host:
        code, sentence = refused(line, f"{host}/old/image:1")

    assert code == FAILED
    assert "schema 1" in sentence
