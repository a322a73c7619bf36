"""Files of ``deploy/``: units and manifests are valid, and the commands in them are commands of this program."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from unpackd import app

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.30"  # the oldest that is looked at


def documents() -> Iterator[dict[str, Any]]:
    for manifest in MANIFESTS:
        yield from yaml.safe_load_all(manifest.read_text())


def containers() -> Iterator[dict[str, Any]]:
    for document in documents():
        yield from document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])


def commands() -> list[list[str]]:
    """Every command line that begins with our program, without its name."""
    found: list[list[str]] = []
    for unit in UNITS:
        for line in unit.read_text().splitlines():
            _, sign, command = line.partition("=/usr/bin/unpackd ")
            if sign:
                found.append(shlex.split(command))
    for container in containers():
        if container["image"] == "unpackd":
            for part in container.get("command", []):
                found += [
                    shlex.split(line.split("||")[0])[1:] for line in re.findall(r"^unpackd .*", part, re.MULTILINE)
                ]
            if "args" in container:
                found.append(container["args"])
    return found


def test_there_is_something_to_look_at() -> None:
    assert (len(UNITS), len(MANIFESTS)) == (4, 3)
    assert {command[0] for command in commands()} == {
        "csi",
        "mount",
        "mountctl",
        "proxy",
        "snapshotter",
        "umount",
        "up",
    }


@pytest.mark.parametrize("command", commands(), ids=lambda command: command[0])
def test_commands_are_ours(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [command[0], "--help"])
    assert shown.exit_code == 0, shown.output

    options = set(re.findall(r"--[a-z-]+", shown.output))

    assert {part for part in command if part.startswith("--")} <= options


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze, which is not installed")
    for unit in UNITS:
        text = unit.read_text().replace("/usr/bin/unpackd", "/bin/true")
        (tmp_path / unit.name.replace("@.", "@unpacked.example.org.")).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    complaints = [line for line in done.stderr.splitlines() if "unpackd" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


def test_the_snapshotters_unit_keeps_the_machines_mount_namespace() -> None:
    for name in ("unpackd-snapshotter.service", "unpackd-mount@.service"):
        text = (DEPLOY / "systemd" / name).read_text()
        assert not re.search(
            r"^(Private(Tmp|Mounts|Devices|Users)|Protect\w+|ReadOnlyPaths|MountFlags)=", text, re.MULTILINE
        )


def test_kubernetes_takes_the_manifests() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for document in documents():
        schemas.validate(document, KUBERNETES, strict=True)
        schemas.validate(document, schemas.latest_version(), strict=True)


def test_mounts_reach_the_node() -> None:
    propagation = {
        (container["name"], mount["mountPath"]): mount.get("mountPropagation")
        for container in containers()
        for mount in container.get("volumeMounts", [])
    }

    assert propagation["mount", "/cvmfs"] == "Bidirectional"
    assert propagation["snapshotter", "/var/lib/unpackd-snapshotter"] == "Bidirectional"
    assert propagation["csi", "/var/lib/kubelet"] == "Bidirectional"
    assert propagation["snapshotter", "/cvmfs"] == propagation["csi", "/cvmfs"] == "HostToContainer"
