"""``unpackd push``: let a service convert, and wait."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fs.runtime.output import command_errors, print_json, say


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(push)


def push(  # its options
    source: Annotated[
        str,
        typer.Argument(
            help="registry/repo:tag, fetched by the service; oci:DIR[:TAG], oci-archive:FILE, "
            "docker-archive:FILE[:REF], or a tar of a root file system"
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(help="registry/repository:tag in the repository; for images in files.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where the service answers (UNPACKD_URL).")] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Directory of this machine's stack.")] = None,
    platform: Annotated[
        str | None, typer.Option(help="os/architecture[/variant], for files with several. Default: this machine's.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait in seconds.")] = 3600,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Publish an image through a service, without any rights in the repository; prints its path when it is there.

    Images in files are sent, layers that the service has are not. The token of the service is in UNPACKD_TOKEN.

    Example: UNPACKD_TOKEN=… unpackd push oci-archive:tool.tar registry.example.org/me/tool:1 --url http://farm:8480
    """
    import anyio

    from converter import push as pushing
    from converter.farm_access import FarmAccess
    from converter.sources import parse_source
    from registry_proxy.oci.manifest import Platform

    async def run() -> dict[str, Any]:
        image_source = parse_source(source)
        wanted = None if platform is None else Platform.parse(platform)
        async with FarmAccess.find(url, directory) as farm:
            return await pushing.push(
                farm,
                image_source,
                name=name,
                platform=wanted,
                timeout_s=timeout,
                tell=lambda line: None if as_json else say(line),
            )

    with command_errors(as_json=as_json):
        image = anyio.run(run)
        if as_json:
            print_json(image)
        else:
            typer.echo(f"/cvmfs/{image['repository']}{image['public_path']}")
