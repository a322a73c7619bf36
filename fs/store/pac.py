"""Proxies as the network's own configuration says: ``auto`` in a list of proxies.

Proxy configurations (PAC) are programs in JavaScript that a server of the network gives. The first URL of the list that
gives one is believed; it is asked for every server of the repository, and what it says in whatever order becomes the
groups that stand for ``auto``, one proxy a group. If no URL answers, the variable ``http_proxy`` counts, then what was
found the last time. A program runs in a process of its own, with little memory and time; see pac_worker.py.
Source: CernVM-FS 2.12, CVMFS_PAC_URLS.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import structlog

from fs.errors import RefusedError, UnreachableError
from fs.runtime.files import write_atomically
from fs.store.http import without_secrets

_log = structlog.get_logger()

AUTO = "auto"
DEFAULT_URLS = ("http://wpad/wpad.dat",)
_FETCH_TIMEOUT_S = 5.0
_WORK_TIMEOUT_S = 10.0
_LIMIT_BYTES = 1 << 20
_SCHEMES = {"PROXY": "http", "HTTP": "http", "HTTPS": "https"}


def is_automatic(text: str) -> bool:
    """True if the groups of proxies *text* have to be completed."""
    return any(group.strip().lower() == AUTO for group in text.split(";"))


def with_discovered(text: str, urls: Sequence[str], pac_urls: Sequence[str], kept: Path) -> str:
    """The groups *text*, with the discovered ones in place of ``auto``. Blocks.

    Args:
        text: as ProxyGroups.parse takes it, with ``auto`` as a group.
        urls: of the servers.
        pac_urls: where configurations may be; empty means the name that networks use.
        kept: the file that holds what was found the last time.

    Raises:
        RefusedError: what interprets configurations is not installed, or one cannot be interpreted.
        UnreachableError: nothing was found, now or ever.
    """
    found = _discover(urls, pac_urls or DEFAULT_URLS) or os.environ.get("http_proxy", "")
    try:
        if found:
            write_atomically(kept, found.encode(), mode=0o600)
        else:
            found = kept.read_text("utf-8")
            _log.warning("proxies_of_earlier_life", proxies=found)
    except FileNotFoundError as error:
        raise UnreachableError("no proxy configuration was found; say with --pac-url where it is") from error
    except OSError as error:
        _log.warning("proxies_not_kept", reason=error.strerror)
    groups = [found if group.strip().lower() == AUTO else group for group in text.split(";")]
    return ";".join(groups)


def _discover(urls: Sequence[str], pac_urls: Sequence[str]) -> str:
    for place in pac_urls:
        program = _fetch(place)
        if program is not None:
            answers = _run(program, [url for url in urls if url.startswith("http")])
            groups = dict.fromkeys(one for answer in answers for one in groups_of(answer))
            _log.info("proxies_discovered", url=without_secrets(place), proxies=list(groups))
            return ";".join(groups)
    return ""


def _fetch(place: str) -> str | None:
    body = bytearray()
    try:
        with (
            httpx.Client(trust_env=False, timeout=_FETCH_TIMEOUT_S, follow_redirects=True) as client,
            client.stream("GET", place) as reply,
        ):
            reply.raise_for_status()
            for piece in reply.iter_bytes():
                body += piece
                if len(body) > _LIMIT_BYTES:
                    raise RefusedError(f"the proxy configuration at {place} is larger than {_LIMIT_BYTES} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _log.warning("proxy_configuration_not_given", url=without_secrets(place), reason=str(error))
        return None
    return body.decode("utf-8", "replace")


def _run(program: str, urls: Sequence[str]) -> list[str]:
    asked = json.dumps({"program": program, "urls": [[url, urlsplit(url).hostname or ""] for url in urls]})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fs.store.pac_worker"],
            input=asked,
            capture_output=True,
            text=True,
            timeout=_WORK_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RefusedError(f"a proxy configuration did not answer within {_WORK_TIMEOUT_S:.0f} s") from error
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = {"error": f"it ended with {done.returncode}"}
    if "error" in answer:
        raise RefusedError(f"a proxy configuration cannot be interpreted: {answer['error']}")
    return [str(one) for one in answer["answers"]]


def groups_of(answer: str) -> list[str]:
    """What a configuration answers, ``PROXY host:port; DIRECT``, as our names of proxies; other kinds are left out."""
    found: list[str] = []
    for part in answer.split(";"):
        kind, _, place = part.strip().partition(" ")
        if kind.upper() == "DIRECT":
            found.append("DIRECT")
        elif kind.upper() in _SCHEMES and place.strip():
            found.append(f"{_SCHEMES[kind.upper()]}://{place.strip()}")
    return found
