"""Promises the project makes about itself."""

import importlib.metadata
import subprocess
import sys

import click
import pytest
import typer.main

import unpackd

HEAVY = ("grpc", "celery", "sqlalchemy", "numpy", "httpx", "pyfuse3", "trio", "starlette", "cryptography")


def test_our_package_names_belong_to_us_alone() -> None:
    owners = importlib.metadata.packages_distributions()

    for name in ("fs", "registry_proxy", "converter", "snapshotter"):
        assert set(owners.get(name, ["unpackd"])) == {"unpackd"}


def test_the_command_starts_without_what_only_some_commands_need() -> None:
    code = f"import sys, unpackd; unpackd.app; print([name for name in {HEAVY!r} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)

    assert done.stdout.strip() == "[]"


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    found = []
    for name, child in getattr(command, "commands", {}).items():
        below = commands(child, (*path, name))
        found += below or [((*path, name), child)]
    return found


ALL = commands(typer.main.get_command(unpackd.app))


@pytest.mark.parametrize("name", sorted({path[0] for path, _ in ALL}))
def test_a_command_that_is_composed_alone_is_the_same(name: str) -> None:
    whole, alone = (typer.main.get_command(unpackd.compose(chosen)) for chosen in ("", name))

    assert {path for path, _ in commands(whole) if path[0] == name} == {
        path for path, _ in commands(alone) if path[0] == name
    }


def test_only_commands_that_exist_are_composed_alone() -> None:
    assert set(unpackd.ALONE) <= {path[0] for path, _ in ALL}


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_explains_itself_with_an_example(path: tuple[str, ...], command: click.Command) -> None:
    text = command.help or ""

    assert len(text.splitlines()) > 1
    assert "unpackd " + path[0] in text
