"""``unpackd mountctl``: ask a running mount, or have it do something."""

import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fs.runtime.errors import UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

_OWNER = "mountctl"
_POLL_S = 0.1
_RESTART_TIMEOUT_S = 60.0


class Question(StrEnum):
    """What mountctl can ask a mount."""

    STATUS = "status"
    REFRESH = "refresh"
    REVISION = "revision"
    CACHE = "cache"
    LOG = "log"
    METRICS = "metrics"
    PROFILE = "profile"
    PREFETCH = "prefetch"
    RESTART = "restart"
    PINS = "pins"
    PIN = "pin"
    UNPIN = "unpin"


def mountctl(
    mountpoint: Annotated[  # see cli.MountPoint
        Path, typer.Argument(parser=Path, metavar="MOUNTPOINT", help="Directory where the repository is mounted.")
    ],
    question: Annotated[Question, typer.Argument(help="What to ask or to do.")],
    path: Annotated[
        list[str] | None,
        typer.Argument(help="prefetch, pin, unpin: files and directories, from the repository's root."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="prefetch: what another start read; see the question profile.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Ask a running mount, make it look for a newer revision, or fetch what will be needed.

    Example: unpackd mountctl /cvmfs/unpacked.example.org status
    """
    with command_errors(as_json=as_json):
        from fs.client.control import ask
        from fs.client.mountpoints import absolute, control_socket, find_mount
        from fs.errors import AbsentError

        where = absolute(mountpoint)
        mounted = find_mount(where)
        if mounted is None:
            raise AbsentError(f"no repository is mounted at {where}")
        socket = control_socket(where, mounted.uid)
        if question is Question.PREFETCH:
            _prefetch(socket, _wanted(where, path or [], profile), as_json=as_json)
            return
        if question in (Question.PIN, Question.UNPIN) and profile is None:
            request = {"command": question.value, "owner": _OWNER, "paths": _inside(where, path or [])}
            _print(question, ask(socket, request), as_json=as_json)
            return
        if path or profile is not None:
            raise UsageError(f"{question.value} takes no paths and no profile; prefetch does")
        if question is Question.RESTART:
            _print(question, _restart(socket), as_json=as_json)
            return
        _print(question, ask(socket, {"command": question.value}), as_json=as_json)


def _restart(socket: Path) -> dict[str, object]:
    """Have the daemon followed by a new one, from the files that are installed now; returns when that answers."""
    from fs.client.control import ask
    from fs.errors import AbsentError, UnreachableError

    before = ask(socket, {"command": "restart"})["pid"]
    deadline = time.monotonic() + _RESTART_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            after = ask(socket, {"command": "status"}, timeout_s=_RESTART_TIMEOUT_S)["pid"]
        except (AbsentError, UnreachableError):
            after = before
        if after != before:
            return {"before": before, "pid": after}
        time.sleep(_POLL_S)
    raise UnreachableError("no new daemon answered in time; the log of the mount says why")


def _wanted(mountpoint: Path, paths: list[str], profile: Path | None) -> dict[str, object]:
    """The request for what the arguments name; paths may also begin with the mount point."""
    if bool(paths) == (profile is not None):
        raise UsageError("prefetch takes either paths or --profile FILE")
    if profile is not None:
        return {"command": "prefetch", "profile": str(profile.absolute())}
    inside = _inside(mountpoint, paths)
    if any("\n" in one for one in inside):
        raise UsageError("a path with a line break can be given in a profile only")
    return {"command": "prefetch", "paths": [one or "/" for one in inside]}


def _inside(mountpoint: Path, paths: list[str]) -> list[str]:
    """*paths* from the repository's root on; they may also begin with the mount point."""
    top = str(mountpoint)
    return [one.removeprefix(top) if one == top or one.startswith(top + "/") else one for one in paths]


def _prefetch(socket: Path, request: dict[str, object], *, as_json: bool) -> None:
    """Have it fetched and show how it goes; ended early, the mount goes on with it."""
    from rich.console import Console
    from rich.progress import Progress

    from fs.client.control import ask

    job = ask(socket, request)["job"]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task("prefetch", total=None)
        while not (state := ask(socket, {"command": "prefetch_progress", "job": job}))["is_done"]:
            bar.update(task, completed=state["fetched"] + state["present"] + state["failed"], total=state["objects"])
            time.sleep(_POLL_S)
    if as_json:
        print_json(state)
    else:
        say(
            f"{state['fetched']} objects fetched in {state['seconds']} s, {state['present']} were there, "
            f"{state['failed']} failed, {state['missing']} paths do not exist"
        )
    if state["failed"] or state["missing"]:
        raise typer.Exit(Exit.PARTIAL)


def _print(question: Question, answer: Any, *, as_json: bool) -> None:  # noqa: ANN401  # JSON
    """Print an answer of the daemon."""
    if as_json:
        print_json(answer)
    elif question is Question.METRICS:
        sys.stdout.write(answer)
    elif question is Question.PROFILE:
        for row in answer["reads"]:
            sys.stdout.buffer.write(os.fsencode(row["path"]) + b"\n")
    elif isinstance(answer, dict):
        for key, value in answer.items():
            text = json.dumps(value) if isinstance(value, dict | list) else value
            sys.stdout.write(f"{key}: {text}\n")
    else:
        for line in answer:
            sys.stdout.write(f"{line}\n")
