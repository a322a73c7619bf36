"""The ``unpackd`` command: one sub-application a room, composed here and nowhere else."""

import typer

import converter.cli
import fs.cli
import registry_proxy.cli
import snapshotter.cli
from fs.runtime.logs import configure_logging

app = typer.Typer(
    name="unpackd",
    help="Container images, unpacked into CernVM-FS repositories and started from there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for room in (converter.cli, fs.cli, registry_proxy.cli, snapshotter.cli):
    room.register(app)


def main() -> None:
    """Entry point of the ``unpackd`` command: stdout is for data, so logging is told to use stderr before anything."""
    configure_logging("warning")
    app()


if __name__ == "__main__":
    main()
