"""A real registry: Debian's docker-registry on a free port."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import free_port, listens, require_tool, running, wait_until


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry; plain HTTP on loopback."""

    host: str  # "127.0.0.1:PORT"
    log: Path
    storage: Path

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}"

    def push(self, source: str, name: str, *options: str) -> str:
        """Copy skopeo *source* (``oci:DIR:TAG``) to ``<host>/<name>``; gives that reference."""
        reference = f"{self.host}/{name}"
        command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options, source, f"docker://{reference}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return reference

    def requests(self) -> list[dict[str, object]]:
        """The access log: one record a request, with ``http.request.method``, ``.uri``, ``http.response.written``."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and '"http.response.written"' in line]

    def bytes_sent(self) -> int:
        """How many bytes of bodies it has answered so far."""
        return sum(int(str(record["http.response.written"])) for record in self.requests())


@contextmanager
def run_registry(directory: Path, *, notify_url: str | None = None, port: int | None = None) -> Iterator[Registry]:
    """A registry with its files in *directory*; it posts notifications to *notify_url* if that is given."""
    require_tool("docker-registry", "skopeo")
    port = port or free_port()
    storage = directory / "registry"
    config = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json"},
        "storage": {"filesystem": {"rootdirectory": str(storage)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if notify_url is not None:
        endpoint = {"name": "watch", "url": notify_url, "timeout": "2s", "threshold": 3, "backoff": "1s"}
        config["notifications"] = {"endpoints": [endpoint]}
    path = directory / "registry.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "registry.log"
    with running(["docker-registry", "serve", path], log) as process:
        wait_until(lambda: listens(port) or process.poll() is not None, "the start of docker-registry")
        assert process.poll() is None, log.read_text()
        yield Registry(f"127.0.0.1:{port}", log, storage)
