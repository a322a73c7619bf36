"""The room's commands. Imports are light: what is heavy is imported when its command runs."""

import typer

import fs.client.cli
from fs import export_cli, preload_cli, repo_care_cli, repo_cli, repo_keys_cli


def register(app: typer.Typer) -> None:
    """Add the room's commands to *app*."""
    repo_care_cli.register(repo_cli.app)
    repo_keys_cli.register(repo_cli.app)
    export_cli.register(repo_cli.app)
    preload_cli.register(repo_cli.app)
    app.add_typer(repo_cli.app, name="repo")
    fs.client.cli.register(app)
