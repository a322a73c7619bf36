"""An HTTP origin over a directory that misbehaves on request."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fs.format.bundle import encode_bundle, object_path, parse_bundle_path

Answer = Callable[[bytes], tuple[int, bytes]]
"""What to answer instead of the file's content: status and body."""


def flipped(content: bytes) -> tuple[int, bytes]:
    """The content with one byte changed."""
    middle = len(content) // 2
    return 200, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def cut(content: bytes) -> tuple[int, bytes]:
    """Half of the content, said to be all."""
    return 200, content[: len(content) // 2]


def absent(_: bytes) -> tuple[int, bytes]:
    """Not there."""
    return 404, b"gone"


def broken(_: bytes) -> tuple[int, bytes]:
    """The server's own fault."""
    return 503, b"later"


def login_page(_: bytes) -> tuple[int, bytes]:
    """What a captive portal says."""
    return 200, b"<html><body>Please log in</body></html>"


def endless(content: bytes) -> tuple[int, bytes]:
    """Much more than there is."""
    return 200, content + bytes(8 << 20)


@dataclass
class FlakyOrigin:
    """The server; what it does may be changed while it runs."""

    root: Path
    port: int = 0
    faults: dict[str, list[Answer | None]] = field(default_factory=dict)
    generated: dict[str, Answer] = field(default_factory=dict)  # by the beginning of the path: what is no file
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delay_s: float = 0.0
    bytes_per_s: int | None = None
    gives_bundles: bool = False
    silent: threading.Event = field(default_factory=threading.Event)  # set: connections are taken, nothing is said

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def always(self, part: str, answer: Answer) -> None:
        """Answer so, from now on, where *part* occurs in the path."""
        self.faults[part] = [answer]

    def in_turn(self, part: str, *answers: Answer | None) -> None:
        """Answer so one after the other (None is the truth); the last goes on for ever."""
        self.faults[part] = list(answers)

    def mend(self) -> None:
        """Behave from now on."""
        self.faults.clear()
        self.delay_s = 0.0
        self.bytes_per_s = None
        self.silent.clear()

    def count(self, part: str) -> int:
        """How many requests had *part* in their path."""
        return sum(part in request for request in self.requests)

    def reply_to(self, target: str) -> tuple[int, bytes]:
        """The answer to a request for *target*: a path, or a URL, as proxies get it."""
        path = "/" + target.split("/", 3)[3] if "://" in target else target
        for beginning, generate in self.generated.items():
            if path.startswith(beginning):
                return generate(b"")
        try:
            content = self.content(path)
        except OSError:
            return 404, b"no such file"
        return self.answer(path, content)

    def content(self, path: str) -> bytes:
        """What is at *path*. Raises OSError."""
        if self.gives_bundles and path.startswith("/bundle/"):
            names = parse_bundle_path(path.removeprefix("/"))
            return encode_bundle(self._object(name) for name in names)
        return Path(os.fsdecode(os.fsencode(self.root) + unquote_to_bytes(path))).read_bytes()

    def _object(self, name: str) -> bytes | None:
        """Every object answers for itself, so that faults can be put on single ones."""
        path = object_path(name)
        try:
            status, content = self.answer(f"in a bundle: {path}", (self.root / path).read_bytes())
        except OSError:
            return None
        return content if status == 200 else None

    def answer(self, path: str, content: bytes) -> tuple[int, bytes]:
        for part, answers in self.faults.items():
            if part in path:
                answer = answers[0] if len(answers) == 1 else answers.pop(0)
                return (200, content) if answer is None else answer(content)
        return 200, content


@contextmanager
def flaky_origin(root: Path) -> Iterator[FlakyOrigin]:
    """Serve *root* on a free port of 127.0.0.1 until the end of the block."""
    origin = FlakyOrigin(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            origin.requests.append(self.path)
            origin.headers.append({key.lower(): value for key, value in self.headers.items()})
            while origin.silent.is_set():
                time.sleep(0.05)
            time.sleep(origin.delay_s)
            status, body = origin.reply_to(self.path)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if status == 200 and wanted is not None:
                status, body = 206, body[int(wanted[1]) : int(wanted[2]) + 1]
            self.reply(status, body)

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if origin.bytes_per_s is None:
                self.wfile.write(body)
                return
            step = max(1, origin.bytes_per_s // 10)
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(0.1)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """Clients that leave early are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    origin.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        origin.silent.clear()
        server.shutdown()
        server.server_close()
        thread.join(5)
