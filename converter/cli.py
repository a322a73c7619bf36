"""The room's commands. Imports are light: what is heavy is imported when its command runs."""

import typer

from converter import convert_cli, farm_cli, images_cli, profile_cli, push_cli


def register(app: typer.Typer) -> None:
    """Add the room's commands to *app*."""
    convert_cli.register(app)
    farm_cli.register(app)
    images_cli.register(app)
    profile_cli.register()
    push_cli.register(app)
