"""What Apptainer finds beside an image: scripts that a shell understands, and nothing that shows."""

import os
import subprocess

import pytest

from converter.apptainer import environment_script, run_script, with_apptainer_files
from fs.format.hashes import Hash
from fs.format.tree import Content, Node, resolve, walk
from registry_proxy.oci.manifest import ImageConfig, Platform

AMD64 = Platform("linux", "amd64")
ODD = "a 'b' \"c\" $(d) `e` \\ $f\n*"


def config(**fields: object) -> ImageConfig:
    return ImageConfig(platform=AMD64, diff_ids=(), **fields)  # type: ignore[arg-type]


def run(script: str, *arguments: str, **environment: str) -> str:
    given = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run(
        ["/bin/sh", "-s", *arguments], input=script, env=given, text=True, capture_output=True, check=True, timeout=10
    )
    return done.stdout


class Stored:
    def __init__(self) -> None:
        self.texts: dict[Hash, bytes] = {}

    def __call__(self, data: bytes) -> Content:
        self.texts[Hash.of(data)] = data
        return Content(len(data), Hash.of(data))


def test_the_image_itself_is_not_touched_and_everything_new_is_hidden() -> None:
    etc = Node(mode=0o40755, children={b"os-release": Node(mode=0o100644)})
    root = Node(mode=0o40755, children={b"etc": etc, b"bin": Node(mode=0o120777, target=b"usr/bin")})

    made = with_apptainer_files(root, config(), Stored())

    assert set(root.children) == {b"etc", b"bin"}
    assert set(etc.children) == {b"os-release"}
    assert made.children[b"bin"] is root.children[b"bin"]
    before = {path for path, _ in walk(root)}
    new = [
        path
        for path, node in walk(made)
        if path not in before
        and (above := resolve(made, path.rpartition(b"/")[0])) is not None
        and not above.is_hidden
        and not node.is_hidden
        and not path.startswith(b"/.singularity.d/")
    ]
    assert new == []
    for path in (b"/.singularity.d/runscript", b"/.singularity.d/env/10-docker2singularity.sh", b"/tmp", b"/etc/hosts"):
        assert resolve(made, path) is not None


def test_what_the_image_has_stays() -> None:
    own = Node(mode=0o40700)
    link = Node(mode=0o120777, target=b"private/etc")
    root = Node(mode=0o40755, children={b".singularity.d": own, b"etc": link, b"tmp": own})

    made = with_apptainer_files(root, config(), Stored())

    assert made.children[b".singularity.d"] is own
    assert made.children[b"etc"] is link


def test_variables_of_the_image_are_defaults_and_its_path_counts() -> None:
    script = environment_script((f"ODD={ODD}", "PATH=/opt/bin", "SET=image", "EMPTY=", "BARE", "no.name=1", "EQ=a=b"))
    script += 'printf "%s|" "$ODD" "$PATH" "$SET" "$EMPTY" "${BARE-unset}" "$EQ"'

    assert run(script, SET="user", PATH="/bin") == f"{ODD}|/opt/bin|user|||a=b|"


@pytest.mark.parametrize(
    ("entry_point", "command", "arguments", "printed"),
    [
        (("printf", "<%s>"), (ODD,), (), f"<{ODD}>"),
        (("printf", "<%s>"), ("default",), ("given", "a b"), "<given><a b>"),
        ((), ("printf", "<%s>", "only"), (), "<only>"),
        ((), ("ignored",), ("printf", "<%s>", "given"), "<given>"),
    ],
)
def test_entry_point_and_command(
    entry_point: tuple[str, ...], command: tuple[str, ...], arguments: tuple[str, ...], printed: str
) -> None:
    assert run(run_script(config(entrypoint=entry_point, command=command)), *arguments) == printed
