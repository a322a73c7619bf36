"""The session holder: keeps a mount's connection to the kernel while its daemon dies, restarts or is upgraded.

``python -m fs.client.holder PLAN``: PLAN is a JSON document, see Plan. The holder opens ``/dev/fuse``, locks a file of
the mount and starts the daemon, which inherits both; where ``fusermount3`` has to open the connection, the daemon hands
it over. While the file system is mounted, a daemon that ends in whatever way is followed by a new one, from the files
that are installed then. What the kernel had asked the dead one is asked again. SIGTERM to the holder is passed on: the
daemon unmounts and ends, and so does the holder.

It has to outlive everything, so it is small: the standard library only, one thread, and it never touches the mount.
"""

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

DEVICE = "/dev/fuse"
LEAST_KERNEL = (6, 9)
"""From this Linux on the kernel asks again for what a dead daemon had not answered; before, readers would hang."""

_DETACH = 2  # MNT_DETACH
_LOCK_TIMEOUT_S = 5.0
_HELPER_TIMEOUT_S = 20.0
_LOOK_S = 0.2
_STABLE_S = 10.0  # a daemon that lived that long is not counted as failed
_DELAYS_S = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # before the next attempt
_PATIENCE_S = 300.0  # readers wait for a daemon no longer
_EXIT_FAILED, _EXIT_LOCKED = 1, 11
_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hold, and how to start a daemon."""

    command: list[str]  # of the daemon; "--session", an Inheritance and the arguments are added
    arguments: list[str]
    mountpoint: str
    lock: str  # file, made if absent
    tell: int  # descriptor of a pipe where the first daemon says how it went


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a daemon gets from its holder; descriptors by number."""

    device: int
    lock: int
    tell: int  # -1 from the second daemon on
    is_resumed: bool  # it is mounted, and the kernel waits for answers
    hand: int = -1  # a socket on which the holder takes the connection that was mounted instead of *device*

    @classmethod
    def parse(cls, text: str) -> "Inheritance":
        """Inverse of ``str()``. Raises ValueError."""
        try:
            return cls(**json.loads(text))
        except TypeError as error:
            raise ValueError(text) from error

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def kernel_can_resume(release: str) -> bool:
    """True if Linux *release* repeats requests."""
    major, _, rest = release.partition(".")
    minor = "".join(digit if digit.isdigit() else " " for digit in rest).split(" ")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= LEAST_KERNEL


def is_mounted(device: int) -> bool:
    """True if the connection *device* is mounted somewhere, be it lazily detached."""
    if device < 0:
        return False
    poll = select.poll()
    poll.register(device, select.POLLOUT)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


class Holder:
    """One mount."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._device = -1
        self._lock = -1
        self._hand, self._given = socket.socketpair()  # the daemon has the second
        self._hand.setblocking(False)  # noqa: FBT003  # its own signature
        self._is_ending = False

    def hold(self) -> int:
        """Until the file system is unmounted; gives the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *_ENDINGS})
        try:
            self._device = _open_device()
            self._lock = os.open(self._plan.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            return self._fail(f"{error.filename} cannot be opened: {error.strerror}", _EXIT_FAILED)
        if not self._take_lock():
            sentence = f"another daemon still serves {self._plan.mountpoint}, or has not ended yet"
            return self._fail(sentence, _EXIT_LOCKED)
        code = self._outlive(self._start(self._plan.tell, is_resumed=False))
        failures = 0
        failing_since = time.monotonic()
        while is_mounted(self._device) and not self._is_ending:
            delay_s = _DELAYS_S[min(failures, len(_DELAYS_S) - 1)]
            _say("daemon_follows", delay_s=delay_s, code=code)
            time.sleep(delay_s)
            began = time.monotonic()
            code = self._outlive(self._start(-1, is_resumed=True))
            if code == 0 or time.monotonic() - began > _STABLE_S:  # told to restart, or sound
                failures, failing_since = 0, time.monotonic()
                continue
            failures += 1
            if code < 0:
                failing_since = time.monotonic()  # killed: it did not fail by itself
            elif time.monotonic() - failing_since > _PATIENCE_S:
                break
        if is_mounted(self._device):
            _say("given_up", code=code)
            _detach(self._plan.mountpoint)
        return max(code, 0)

    def _fail(self, sentence: str, code: int) -> int:
        os.write(self._plan.tell, json.dumps({"error": sentence, "exit": code}).encode())
        return code

    def _take_lock(self) -> bool:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
            else:
                return True

    def _start(self, tell: int, *, is_resumed: bool) -> int:
        inherited = Inheritance(self._device, self._lock, tell, is_resumed, self._given.fileno())
        descriptors = [one for one in (self._device, self._lock, tell, self._given.fileno()) if one >= 0]
        for one in descriptors:
            os.set_inheritable(one, True)  # noqa: FBT003  # its own signature
        command = [*self._plan.command, "--session", str(inherited), *self._plan.arguments]
        daemon = os.posix_spawn(command[0], command, os.environ, setsigmask=[])
        if tell >= 0:
            os.close(tell)
        return daemon

    def _outlive(self, daemon: int) -> int:
        """Wait until *daemon* has ended; gives its exit code, or the signal that ended it as a negative number."""
        while True:
            received = signal.sigtimedwait({signal.SIGCHLD, *_ENDINGS}, _LOOK_S)
            if os.getsid(0) != os.getpid() and is_mounted(self._device):
                os.setsid()  # not earlier: autofs lets its own process group mount, and nobody else
            if received is not None and received.si_signo in _ENDINGS:
                self._is_ending = True
                os.kill(daemon, signal.SIGTERM)
            code = _reap(daemon)
            self._take_connection()
            if code is not None:
                _say("daemon_ended", pid=daemon, code=code)
                return code

    def _take_connection(self) -> None:
        """From now on hold the connection that the daemon gave, if it gave one."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self._hand, 1, 1)
        except BlockingIOError:
            return
        for descriptor in descriptors:
            if self._device >= 0:
                os.close(self._device)
            self._device = descriptor
            os.set_inheritable(descriptor, False)  # noqa: FBT003  # its own signature


def _open_device() -> int:
    """A new connection; -1 if only others may open one. Raises OSError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return -1


def _detach(mountpoint: str) -> None:
    """Unmount lazily."""
    if ctypes.CDLL(None).umount2(os.fsencode(mountpoint), _DETACH) != 0 and os.geteuid() != 0:
        try:
            subprocess.run(["fusermount3", "-u", "-z", "--", mountpoint], check=False, timeout=_HELPER_TIMEOUT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            _say("not_unmounted", reason=str(error))


def _reap(daemon: int) -> int | None:
    """How *daemon* ended; None if it lives. Others who ended, which were given up before, go too."""
    code: int | None = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return -signal.SIGKILL if code is None else code
        if process == daemon:
            code = os.waitstatus_to_exitcode(status)
        if not process:
            break
    if code is None and _is_stuck(daemon):
        return -signal.SIGKILL
    return code


def _is_stuck(daemon: int) -> bool:
    """True if *daemon* was killed while a thread of its waits in the kernel, for an answer that the next one gives."""
    try:
        state = Path(f"/proc/{daemon}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state in {b"Z", b"X"}


def _say(event: str, **facts: object) -> None:
    line = {"event": event, **facts, "level": "info", "timestamp": datetime.now(UTC).isoformat()}
    try:
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()
    except OSError:
        return  # a full disk must not end the holder


if __name__ == "__main__":
    sys.exit(Holder(Plan(**json.loads(sys.argv[1]))).hold())
