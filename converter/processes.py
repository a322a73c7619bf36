"""What ties processes of the farm together: children that end with their parent, and one that keeps them running."""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

_log = structlog.get_logger()

_PR_SET_PDEATHSIG = 1  # Source: prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_HEALTHY_AFTER_S = 60.0
_GRACE_S = 5.0
_LOOK_INTERVAL_S = 0.1


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Let the kernel send *number* to this process when process *parent*, which made it, ends in any way."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildProgram:
    """A program that has to run all the time."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)  # beside that of the parent
    stop_signal: signal.Signals = signal.SIGTERM
    descriptors: tuple[int, ...] = ()


@dataclass(slots=True)
class _Child:
    program: ChildProgram
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    next_start: float = 0.0


class Supervisor:
    """Starts programs in order, starts again what ends, and ends them in the opposite order. For one thread.

    Children have sessions of their own, so that Ctrl-C on the terminal reaches the parent alone and it decides about
    the order. If the parent is killed, the kernel ends the children.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._children: list[_Child] = []

    def start(self, program: ChildProgram) -> None:
        """Start *program* and look after it from now on."""
        child = _Child(program)
        self._children.append(child)
        self._launch(child)

    def look_after(self) -> None:
        """Start again what has ended, after a pause that grows while it goes on ending. Call several times a second."""
        now = self._clock()
        for child in self._children:
            if child.process is not None:
                code = child.process.poll()
                if code is None:
                    continue
                child.process = None
                child.failures = 1 if now - child.started > _HEALTHY_AFTER_S else child.failures + 1
                pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (child.failures - 1))
                child.next_start = now + pause_s
                _log.warning("process ended", program=child.program.name, code=code, starts_again_in_s=pause_s)
            if now >= child.next_start:
                self._launch(child)

    def has_failed(self) -> str | None:
        """The name of a program that does not run now; None if all do."""
        gone = (c.program.name for c in self._children if c.process is None or c.process.poll() is not None)
        return next(gone, None)

    def stop(self) -> None:
        """End everything, the last one first; what does not obey is killed."""
        for child in reversed(self._children):
            if child.process is not None:
                _end(child.process, child.program.stop_signal)
                child.process = None
        self._children.clear()

    def _launch(self, child: _Child) -> None:
        program = child.program
        parent = os.getpid()
        child.started = self._clock()
        try:
            child.process = subprocess.Popen(
                list(program.command),
                stdin=subprocess.DEVNULL,
                stdout=2,  # our own stdout is for data
                env={**os.environ, **program.environment},
                pass_fds=program.descriptors,
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(program.stop_signal, parent),  # noqa: PLW1509  # one thread only
            )
        except OSError as error:
            child.failures += 1
            child.next_start = self._clock() + _LONGEST_PAUSE_S
            _log.error("process cannot be started", program=program.name, error=str(error))
        else:
            _log.info("process started", program=program.name, pid=child.process.pid)


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """End our own child: until it is waited for, its pid stays its."""
    if process.poll() is not None:
        return
    process.send_signal(number)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(path: Path, timeout_s: float) -> bool:
    """Wait until *path* exists; False if it does not within *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_INTERVAL_S / 5)
    return True
