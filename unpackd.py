"""The ``unpackd`` command: one sub-application a room, composed here and nowhere else.

Importing all rooms takes longer than many a command, so a command whose module is known is composed from that alone.
"""

import sys
from functools import cache
from importlib import import_module

import typer

from fs.runtime.lean import ORNAMENTS, leave_out

ROOMS = ("converter.cli", "fs.cli", "registry_proxy.cli", "snapshotter.cli")

ALONE = {
    "convert": "converter.convert_cli",
    "csi": "snapshotter.cli",
    "doctor": "snapshotter.cli",
    "images": "converter.cli",
    "mount": "fs.client.cli",
    "mountctl": "fs.client.cli",
    "proxy": "registry_proxy.cli",
    "pull": "snapshotter.cli",
    "push": "converter.push_cli",
    "repo": "fs.cli",
    "snapshotter": "snapshotter.cli",
    "umount": "fs.client.cli",
    "up": "converter.farm_cli",
    "watch": "converter.farm_cli",
    "web": "converter.farm_cli",
    "wish": "converter.farm_cli",
    "worker": "converter.farm_cli",
}
"""The module that registers a command; one that is not here needs all rooms."""


def compose(command: str = "") -> typer.Typer:
    """The application, with *command* at least; without, or if it is not known, with all commands."""
    return _composed((ALONE[command],) if command in ALONE else ROOMS)


@cache
def _composed(modules: tuple[str, ...]) -> typer.Typer:
    app = typer.Typer(
        name="unpackd",
        help="Container images, unpacked into CernVM-FS repositories and started from there.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_is_group)
    for module in modules:
        import_module(module).register(app)
    return app


def _is_group() -> None:
    # without a callback an application of one command would take that command's name for an argument
    return


def __getattr__(name: str) -> typer.Typer:
    """``app``, with all commands, is made when it is asked for."""
    if name == "app":
        return compose()
    raise AttributeError(name)


def main() -> None:
    """Entry point of the ``unpackd`` command: stdout is for data, so logging is told to use stderr before anything."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command == "mount":
        leave_out(*ORNAMENTS)  # it becomes a daemon
    if command and not command.startswith("-"):
        from fs.runtime.logs import configure_logging

        configure_logging("warning")
    compose(command)()


if __name__ == "__main__":
    main()
