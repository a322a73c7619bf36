"""Apptainer acts on a public name in a mount as the image's config says; so does an image without any of its files."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from converter.conversion import ConversionRequest
from converter.pipeline import convert_image
from converter.sources import parse_source
from fs.publish.repository import Repository
from tests.support.apptainer import find_apptainer
from tests.support.flaky_origin import flaky_origin
from tests.support.images import Member, directory, make_layout
from tests.support.mounts import mounted

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NAME = "apptainer.test"
GREETING = 'it\'s "$HOME" & `id`'
HELLO = b'#!/bin/sh\necho "entry point $# $1 $GREETING"\n'
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class Runner:
    """Apptainer, and the image in a mount."""

    program: Path
    image: Path

    def run(
        self, *arguments: str, options: tuple[str, ...] = ("--no-privs",), uid: int = 0, typed: str | None = None
    ) -> str:
        action, *rest = arguments
        command = [str(self.program), action, *options, *(rest if action == "inspect" else ()), str(self.image)]
        command += rest if action != "inspect" else ()
        environment = {"PATH": os.environ["PATH"], "HOME": "/tmp"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environment, check=False, user=uid, group=uid,
            extra_groups=[], cwd="/", input=typed,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def work() -> Iterator[Path]:
    """A directory that everybody may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="unpackd-apptainer-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def runner(work: Path) -> Iterator[Runner]:
    program = find_apptainer(work / "program")
    layout = make_layout(
        work / "layout",
        [[*shell(), Member("opt/hello", HELLO, mode=0o755), directory("tmp", 0o1777), directory("etc")]],
        settings={
            "Env": ["PATH=/opt:/bin", f"GREETING={GREETING}", "LEVEL=image"],
            "Entrypoint": ["/opt/hello"],
            "Cmd": ["default argument"],
            "Labels": {"org.example.kind": "test", "version": "1.0"},
        },
    )
    keys = work / "keys"
    repository = Repository.create(NAME, str(work / "storage"), keys, durable=False)

    async def convert() -> str:
        request = ConversionRequest(source=parse_source(layout.source), name="r.test/app:1")
        return (await convert_image(request, repository)).public_path

    public = anyio.run(convert)
    with ExitStack() as stack:
        origin = stack.enter_context(flaky_origin(work / "storage"))
        mount = stack.enter_context(mounted(NAME, [origin.url], keys / f"{NAME}.pub", work, "--allow-other"))
        yield Runner(program, mount.path / public.lstrip("/"))


def shell() -> list[Member]:
    """A shell, a few programs, and the libraries that they need."""
    programs = {name: Path(str(shutil.which(name))) for name in ("sh", "env", "cat")}
    files = {f"bin/{name}": path for name, path in programs.items()}
    for path in programs.values():
        needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True, timeout=10).stdout
        files |= {word.lstrip("/"): Path(word) for word in needed.split() if word.startswith("/")}
    return [Member(name, path.resolve().read_bytes(), mode=0o755) for name, path in files.items()]


def variables(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}


def test_run_starts_the_entry_point_with_the_command_or_the_arguments(runner: Runner) -> None:
    assert runner.run("run") == f"entry point 1 default argument {GREETING}\n"
    assert runner.run("run", "given", "two") == f"entry point 2 given {GREETING}\n"


def test_exec_has_the_variables_of_the_image_and_the_user_wins(runner: Runner) -> None:
    found = variables(runner.run("exec", "env", options=("--no-privs", "--env", "LEVEL=user")))

    assert found["GREETING"] == GREETING
    assert found["LEVEL"] == "user"
    assert found["PATH"].startswith("/opt:/bin")
    assert runner.run("exec", "hello", "by path") == f"entry point 1 by path {GREETING}\n"


@pytest.mark.parametrize(("options", "uid"), [(("--userns",), 0), (("--userns",), NOBODY)])
def test_user_namespaces(runner: Runner, options: tuple[str, ...], uid: int) -> None:
    assert runner.run("run", options=options, uid=uid) == f"entry point 1 default argument {GREETING}\n"


def test_shell_has_the_variables_and_the_path_of_the_image(runner: Runner) -> None:
    found = runner.run("shell", typed="hello $LEVEL\n")

    assert f"entry point 1 image {GREETING}\n" in found


def test_inspect_tells_the_labels_and_the_entry_point(runner: Runner) -> None:
    told = json.loads(runner.run("inspect", "--json", "--labels", "--runscript", options=()))["data"]["attributes"]

    assert told["labels"] == {"org.example.kind": "test", "version": "1.0"}
    assert "/opt/hello" in told["runscript"]


def test_nothing_shows_in_the_tree(runner: Runner) -> None:
    names = {entry.name for entry in runner.image.iterdir()}

    assert names <= {"bin", "opt", "tmp", "etc", "lib", "lib64", "usr"}
    assert runner.image.stat().st_nlink == 2 + len(names)
