"""The room's commands. Imports are light: what is heavy is imported when its command runs."""

from pathlib import Path
from typing import Annotated

import typer

from fs.runtime.output import command_errors

_DEFAULT_CONFIG = Path("/etc/unpackd/config.toml")


def register(app: typer.Typer) -> None:
    """Add the room's commands to *app*."""
    app.command()(proxy)


def proxy(
    config: Annotated[Path, typer.Option(help="TOML file with the table [proxy].")] = _DEFAULT_CONFIG,
    listen: Annotated[str | None, typer.Option(help="ADDRESS:PORT, instead of what the file says.")] = None,
) -> None:
    r"""Serve container images from registries, and keep what was fetched: a pull-through cache.

    Runs until SIGTERM or Ctrl-C. /healthz and /metrics answer beside /v2/.

    Example: unpackd proxy --config proxy.toml, where the file says

    \b
    [proxy]
    listen = "127.0.0.1:5010"
    directory = "/var/cache/unpackd/proxy"
    max_bytes = "50G"
    [[proxy.upstreams]]
    name = "hub"
    url = "https://registry-1.docker.io"
    """
    import anyio

    from fs.runtime.logs import configure_logging
    from registry_proxy.config import load_settings
    from registry_proxy.server import serve

    with command_errors():
        configure_logging()
        anyio.run(serve, load_settings(config, listen=listen))
