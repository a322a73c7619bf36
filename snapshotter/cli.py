"""The room's commands. Imports are light: what is heavy is imported when its command runs."""

from pathlib import Path
from typing import Annotated

import typer

from fs.runtime.output import command_errors


def register(app: typer.Typer) -> None:
    """Add the room's commands to *app*."""
    app.command("snapshotter")(run_snapshotter)


def run_snapshotter(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with a table [snapshotter]. Default: /etc/unpackd/config.toml, if it is there."),
    ] = None,
    address: Annotated[Path | None, typer.Option(help="Socket to listen at.")] = None,
    root: Annotated[Path | None, typer.Option(help="Directory for writable layers and the database.")] = None,
    mountpoint: Annotated[Path | None, typer.Option(help="Where the repository is mounted.")] = None,
) -> None:
    """Serve containerd's proxy plugin: image layers from a mounted repository.

    Example: unpackd snapshotter --mountpoint /cvmfs/unpacked.example.org
    """
    import anyio

    from fs.runtime.logs import configure_logging
    from snapshotter.config import load_settings
    from snapshotter.server import serve

    with command_errors():
        settings = load_settings(config, {"address": address, "root": root, "mountpoint": mountpoint})
        configure_logging()
        anyio.run(serve, settings)
