"""An HTTP proxy in front of a server, which spoils the requests it is told to spoil."""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Fault(Enum):
    """What happens to a request."""

    UNAVAILABLE = "503, the server never sees it"
    INTERNAL = "500, the server never sees it"
    FORBIDDEN = "403, the server never sees it"
    ERROR_BODY = "200 with an error in the body, the server never sees it"
    SILENCE = "no answer until the client gives up; the server never sees it"
    RESET = "connection reset; the server never sees it"
    LOST_REPLY = "the server does it, then the connection is reset"
    CUT_REPLY = "the server does it, half of the body arrives"
    LATE_REPLY = "the server does it, the answer comes after the client has given up"


USUAL = (Fault.UNAVAILABLE, Fault.LOST_REPLY, Fault.RESET, Fault.INTERNAL, Fault.LATE_REPLY, Fault.CUT_REPLY)
"""What a network and a server under load do, and a client has to bear."""


@dataclass
class Rule:
    """The next *count* requests that match are spoiled."""

    method: str
    path: str  # regular expression, searched
    fault: Fault
    count: int = 1
    hits: int = 0


@dataclass
class FaultyProxy:
    """A running proxy."""

    port: int
    target_port: int
    silence_s: float = 0.8
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    every: int = 0  # each such request is spoiled, by one of the usual faults after the other; 0: none
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def spoil(self, method: str, path: str, fault: Fault, count: int = 1) -> Rule:
        rule = Rule(method, path, fault, count)
        with self.lock:
            self.rules.append(rule)
        return rule

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.hits < rule.count and rule.method in ("*", method) and re.search(rule.path, path):
                    rule.hits += 1
                    return rule.fault
            turn, rest = divmod(len(self.requests), self.every or len(self.requests) + 1)
            return None if rest else USUAL[turn % len(USUAL)]


_ANSWERS = {
    Fault.UNAVAILABLE: (503, "SlowDown"),
    Fault.INTERNAL: (500, "InternalError"),
    Fault.FORBIDDEN: (403, "AccessDenied"),
    Fault.ERROR_BODY: (200, "InternalError"),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _pass(self) -> None:
        body = self._body()
        fault = self.proxy.fault_of(self.command, self.path)
        match fault:
            case Fault.UNAVAILABLE | Fault.INTERNAL | Fault.FORBIDDEN | Fault.ERROR_BODY:
                status, code = _ANSWERS[fault]
                self._answer(status, {}, f"<Error><Code>{code}</Code><Message>spoiled</Message></Error>".encode())
                return
            case Fault.SILENCE:
                time.sleep(self.proxy.silence_s)
                self._reset()
                return
            case Fault.RESET:
                self._reset()
                return
        status, headers, content = self._forward(body)
        if fault is Fault.LATE_REPLY:
            time.sleep(self.proxy.silence_s)
        if fault in (Fault.LOST_REPLY, Fault.LATE_REPLY):
            self._reset()
            return
        self._answer(status, headers, content, cut=fault is Fault.CUT_REPLY)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815  # names of the base class

    def _body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.target_port, timeout=20)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in (*_HOP, "expect")}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in (*_HOP, "date", "server")}
        if self.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        connection.close()
        return answer.status, kept, content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        # a reset and not an orderly end: nothing is to be mistaken for an answer
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        self.wfile = self.rfile = open("/dev/null", "r+b", buffering=0)  # noqa: SIM115  # what the base class flushes

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def run_faulty_proxy(target_port: int) -> Iterator[FaultyProxy]:
    """A proxy to *target_port* of this machine, which passes everything on until it is told otherwise."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy = FaultyProxy(server.server_address[1], target_port)
    handler.proxy = proxy  # type: ignore[attr-defined]  # made a line above
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
