"""What works on this machine, tried rather than guessed, and what to do about the rest."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from fs.errors import MountingError
from fs.rootfs.mounting import probe
from snapshotter._proto import introspection_pb2
from snapshotter.config import RootForm
from snapshotter.containerd import CALL_TIMEOUT_S, connected
from snapshotter.errors import SnapshotterError
from snapshotter.root_images import Decision

_TIMEOUT_S = 20.0
_SNAPSHOTTER_TYPE = "io.containerd.snapshotter.v1"
_METADATA_ONLY_KERNEL = (6, 5)
_OLDEST_CONTAINERD = (1, 6)
_MAPPING_SCRIPT = "import sys, pathlib, fs.rootfs.idmapping as i; i.try_mapping(pathlib.Path(sys.argv[1]))"
_MOUNT_SCRIPT = 'mount -t overlay overlay -o "$1" "$2" && ls "$2"'


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    LIMITED = "limited"
    """Something is slower or missing that not everybody needs."""
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


async def examine(*, containerd: Path, plugin: str, mountpoint: Path | None, root: Path) -> tuple[Check, ...]:
    """Every check, in the order in which a reader wants them."""
    checks = [check() for check in (_kernel, _fuse_device, _fusermount, _overlay)]
    checks.append(_root_file_systems(root))
    checks += await _containerd(containerd, plugin)
    if mountpoint is not None:
        checks += [_repository(mountpoint), _sharing(mountpoint), _mapping(mountpoint)]
    return tuple(checks)


def _kernel() -> Check:
    release = platform.release()
    if _version(release) >= _METADATA_ONLY_KERNEL:
        return Check(name="kernel", verdict=Verdict.OK, found=release)
    return Check(
        name="kernel",
        verdict=Verdict.LIMITED,
        found=release,
        advice="from Linux 6.5 on root file systems can be mounted from metadata alone, which is faster",
    )


def _fuse_device() -> Check:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return Check(
            name="/dev/fuse",
            verdict=Verdict.BROKEN,
            found=error.strerror or str(error),
            advice="load the module (modprobe fuse), or give the device to this container",
        )
    return Check(name="/dev/fuse", verdict=Verdict.OK, found="can be opened")


def _fusermount() -> Check:
    program = shutil.which("fusermount3")
    if program is None:
        return Check(
            name="fusermount3",
            verdict=Verdict.LIMITED if os.geteuid() == 0 else Verdict.BROKEN,
            found="not installed",
            advice="apt-get install fuse3, or the like; only root can mount without it",
        )
    done = _ran([program, "--version"])
    return Check(name="fusermount3", verdict=Verdict.OK, found=done.stdout.strip() or program)


def _overlay() -> Check:
    """An ordinary overlay, mounted in a mount namespace of its own so that nothing can be left."""

    def options(folder: Path) -> str:
        _made(folder, "lower", "upper", "work")
        return f"lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work"

    reason = _tried(options)
    if reason is None:
        return Check(name="overlay", verdict=Verdict.OK, found="mounted one over a temporary directory")
    return Check(
        name="overlay",
        verdict=Verdict.BROKEN if os.geteuid() == 0 else Verdict.LIMITED,
        found=reason,
        advice="containers need it: run as root, load the module (modprobe overlay), and keep the snapshotter's"
        " directory on a file system that is no overlay itself",
    )


def _root_file_systems(root: Path) -> Check:
    """What the snapshotter that uses *root* has decided; without one, what it would find."""
    name = "root file systems"
    decision = Decision.load(root / "rootfs.json")
    try:
        if decision is None:
            with tempfile.TemporaryDirectory(prefix="unpackd-doctor.") as folder:
                backing = probe(Path(folder))
            return Check(name=name, verdict=Verdict.OK, found=f"EROFS metadata images can be mounted from a {backing}")
    except (MountingError, OSError) as error:
        decision = Decision(setting=RootForm.AUTO, form=RootForm.FUSE, reason=str(error))
    if decision.form is RootForm.EROFS:
        mounted = len(list((root / "m").iterdir())) if os.access(root / "m", os.R_OK) else 0
        found = (
            f"EROFS metadata images are used ({decision.reason}), {mounted} now; the log says where an image has none"
        )
        return Check(name=name, verdict=Verdict.OK, found=found)
    return Check(
        name=name,
        verdict=Verdict.LIMITED,
        found=f"trees of the FUSE mount are used: {decision.reason}",
        advice='containers work and are slower; set rootfs = "auto"'
        if decision.setting is RootForm.FUSE
        else "containers work and are slower; Linux 6.12, or 6.5 with loop devices, and EROFS in the kernel are needed",
    )


async def _containerd(address: Path, plugin: str) -> list[Check]:
    try:
        async with connected(address) as containerd:
            async with containerd.errors("asking for its version"):
                reply = await containerd.version.Version(Empty(), timeout=CALL_TIMEOUT_S)
            async with containerd.errors("asking for its plugins"):
                request = introspection_pb2.PluginsRequest(filters=[f"type=={_SNAPSHOTTER_TYPE},id=={plugin}"])
                plugins = (await containerd.introspection.Plugins(request, timeout=CALL_TIMEOUT_S)).plugins
    except SnapshotterError as error:
        advice = "start it, or name its socket with --containerd; only paths in the mount work without it"
        return [Check(name="containerd", verdict=Verdict.LIMITED, found=str(error), advice=advice)]
    old = _version(reply.version) < _OLDEST_CONTAINERD
    first = Check(
        name="containerd",
        verdict=Verdict.BROKEN if old else Verdict.OK,
        found=reply.version,
        advice="1.6 or newer is needed" if old else "",
    )
    return [first, _plugin(plugin, plugins)]


def _plugin(name: str, plugins: Sequence[introspection_pb2.Plugin]) -> Check:
    if not plugins:
        return Check(
            name=f"plugin {name}",
            verdict=Verdict.LIMITED,
            found="containerd does not know it",
            advice=f"add [proxy_plugins.{name}] with type and address to containerd's config.toml and restart it",
        )
    failure = plugins[0].init_err
    if failure.message:
        return Check(
            name=f"plugin {name}",
            verdict=Verdict.BROKEN,
            found=failure.message,
            advice="containerd's log says more",
        )
    return Check(name=f"plugin {name}", verdict=Verdict.OK, found="known to containerd")


def _repository(mountpoint: Path) -> Check:
    """Look at the repository in a process of its own: a hanging mount must not take this one with it."""
    done = _ran(["ls", f"{mountpoint}/.unpackd/chains"])
    if done.returncode == 0:
        return Check(name=f"repository {mountpoint}", verdict=Verdict.OK, found="has images")
    return Check(
        name=f"repository {mountpoint}",
        verdict=Verdict.LIMITED,
        found=done.stderr.strip(),
        advice="mount it with unpackd mount, and convert an image into it",
    )


def _sharing(mountpoint: Path) -> Check:
    """Whether images of the repository share the page cache."""
    name = f"page cache of {mountpoint}"
    if _ran(["ls", f"{mountpoint}/.unpackd/content"]).returncode == 0:
        found = "files with the same bytes are in memory once, whatever image they are read through"
        return Check(name=name, verdict=Verdict.OK, found=found)
    advice = "containers work; mount the repository with unpackd mount to have what images share in memory once"
    return Check(name=name, verdict=Verdict.LIMITED, found="each image has its own copy in memory", advice=advice)


def _mapping(mountpoint: Path) -> Check:
    """Whether pods with user namespaces can be served without a copy."""
    name = f"mapped owners of {mountpoint}"
    done = _ran([sys.executable, "-c", _MAPPING_SCRIPT, str(mountpoint)])
    if done.returncode == 0:
        found = 'can be mapped: capabilities = ["remap-ids"] may be set for the plugin in containerd\'s configuration'
        return Check(name=name, verdict=Verdict.OK, found=found)
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "refused"
    advice = "leave the capability remap-ids out; Linux 6.12 and unpackd mount --frontend wire have it"
    return Check(name=name, verdict=Verdict.LIMITED, found=reason.rpartition("MountingError: ")[2], advice=advice)


def _tried(options: Callable[[Path], str]) -> str | None:
    """Mount an overlay in a mount namespace of its own; None if it worked, else why not."""
    with tempfile.TemporaryDirectory(prefix="unpackd-doctor.") as name:
        folder = Path(name)
        target = folder / "mnt"
        target.mkdir()
        done = _ran(["unshare", "--mount", "sh", "-c", _MOUNT_SCRIPT, "sh", options(folder), str(target)])
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[0] if done.stderr else "refused"


def _made(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()


def _ran(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a program with a time limit; one that is missing or hangs gives a status like any other failure."""
    try:
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {_TIMEOUT_S:g} s")


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])
