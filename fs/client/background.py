"""Starting a mount's daemon in the background and learning how it went."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from fs.client.holder import Plan
from fs.client.mountpoints import MountError
from fs.errors import FsError, RefusedError
from fs.runtime.errors import UnpackdError
from fs.runtime.exits import Exit

_LOG_BYTES = 16 << 20
"""A log that is longer when a mount begins makes room for a new one."""

Serve = Callable[[Callable[[], None]], None]
"""Mounts, calls its argument when the mount answers, and returns after it was unmounted."""


class DaemonFailedError(FsError):
    """The daemon ended before its mount answered; the message and the exit code are its own."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence)
        self.exit = Exit(code)  # type: ignore[misc]  # the daemon's code instead of the class's


def start_in_background(serve: Serve, log_file: Path) -> int:
    """Run *serve* in a process of its own, output to *log_file*; give its id when its mount answers.

    The caller must not have started threads: the process is forked.

    Raises:
        DaemonFailedError: *serve* failed; its error is told.
        RefusedError: the log file cannot be written.
    """
    log = _open_log(log_file)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become_daemon(serve, log, writing)
    os.close(log)
    os.close(writing)
    _hear(reading, log_file)
    return child


def start_held(arguments: list[str], mountpoint: Path, lock: Path, log_file: Path) -> int:
    """Run ``unpackd mount`` with *arguments* under a session holder; give the holder's id when the mount answers.

    Raises:
        DaemonFailedError: the first daemon failed; its error is told.
        RefusedError: the log file cannot be written.
    """
    log = _open_log(log_file)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "unpackd", "mount"]
    plan = Plan(command, arguments, str(mountpoint), str(lock), writing)
    holder = subprocess.Popen(
        [sys.executable, "-m", "fs.client.holder", json.dumps(asdict(plan))],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(writing,),
        cwd="/",
    )
    os.close(log)
    os.close(writing)
    _hear(reading, log_file)
    return holder.pid


def serve_held(serve: Serve, tell: int) -> None:
    """Run *serve* as the daemon of a holder; the first one says at *tell* how it went."""
    if tell < 0:
        serve(lambda: None)
        return
    os.set_inheritable(tell, False)  # noqa: FBT003  # its own signature
    try:
        serve(lambda: _leave(tell))
    except BaseException as error:
        known = _known(error)
        sentence = str(known) if known is not None else f"internal error: {error!r}"
        _tell(tell, {"error": sentence, "exit": int(known.exit if known is not None else Exit.FAILED)})
        raise


def _open_log(log_file: Path) -> int:
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if log_file.exists() and log_file.stat().st_size > _LOG_BYTES:
            log_file.replace(log_file.with_suffix(".log.1"))
        return os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise RefusedError(f"the log file {log_file} cannot be written: {error.strerror}") from error


def _hear(reading: int, log_file: Path) -> None:
    """Wait for what the daemon says. Raises DaemonFailedError, MountError."""
    with os.fdopen(reading, "rb") as stream:
        told = stream.read()
    if not told:
        raise MountError(f"the daemon ended without a word; its log is {log_file}")
    answer = json.loads(told)
    if "error" in answer:
        raise DaemonFailedError(answer["error"], answer["exit"])


def _become_daemon(serve: Serve, log: int, writing: int) -> NoReturn:
    """The child's life; it never returns into the caller's code."""
    code = Exit.FAILED
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _close_others(keep=writing)
        os.chdir("/")
        serve(lambda: _leave(writing))
        code = Exit.OK
    except BaseException as error:  # noqa: BLE001  # the edge of the process: the parent tells the user
        known = _known(error)
        if known is None:
            sys.excepthook(type(error), error, error.__traceback__)
        sentence = str(known) if known is not None else f"internal error: {error!r}"
        code = known.exit if known is not None else Exit.FAILED
        _tell(writing, {"error": sentence, "exit": int(code)})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _leave(telling: int) -> None:
    """The mount answers: say so and leave the caller's session.

    Not earlier: where autofs asked for the mount, only its own process group can get to the mount point until then.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    _tell(telling, {"ok": True})


def _close_others(keep: int) -> None:
    """Close what was inherited, so that nobody waits for the end of a pipe that a daemon holds."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  # numbers, not paths
        number = int(name)
        if number > 2 and number != keep:  # noqa: PLR2004  # the standard streams
            try:
                os.close(number)
            except OSError:  # the descriptor of the listing itself
                continue


def _tell(writing: int, document: dict[str, object]) -> None:
    """Say it once; the parent hears the end of the pipe and goes on."""
    try:
        os.write(writing, json.dumps(document).encode())
        os.close(writing)
    except OSError:
        return  # it was said before


def _known(error: BaseException) -> UnpackdError | None:
    """The one error of ours behind *error*, which task groups may have wrapped."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, UnpackdError) else None
