"""The room's commands. Imports are light: what is heavy is imported when its command runs."""

from pathlib import Path
from typing import Annotated

import typer

from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, progress, say

_CONTAINERD = Path("/run/containerd/containerd.sock")
_ROOT = Path("/var/lib/unpackd-snapshotter")
_CVMFS = Path("/cvmfs")
_PLUGIN = "cvmfs-snapshotter"  # the name that nerdctl knows


def register(app: typer.Typer) -> None:
    """Add the room's commands to *app*."""
    app.command("snapshotter")(run_snapshotter)
    app.command()(pull)
    app.command()(doctor)
    app.command()(csi)


def run_snapshotter(
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with a table [snapshotter]. Default: /etc/unpackd/config.toml, if it is there."),
    ] = None,
    address: Annotated[Path | None, typer.Option(help="Socket to listen at.")] = None,
    root: Annotated[Path | None, typer.Option(help="Directory for writable layers and the database.")] = None,
    mountpoint: Annotated[Path | None, typer.Option(help="Where the repository is mounted.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Figures for Prometheus.")] = None,
) -> None:
    """Serve containerd's proxy plugin: image layers from a mounted repository.

    Example: unpackd snapshotter --mountpoint /cvmfs/unpacked.example.org
    """
    import anyio

    from fs.runtime.logs import configure_logging
    from snapshotter.config import load_settings
    from snapshotter.server import serve

    with command_errors():
        flags = {"address": address, "root": root, "mountpoint": mountpoint, "metrics": metrics}
        settings = load_settings(config, flags)
        configure_logging()
        anyio.run(serve, settings)


def pull(
    image: Annotated[str, typer.Argument(help="registry/repository[:tag][@digest]")],
    namespace: Annotated[str, typer.Option(help="Namespace of containerd.")] = "default",
    containerd: Annotated[Path, typer.Option(help="Socket of containerd.")] = _CONTAINERD,
    snapshotter: Annotated[str, typer.Option(help="Name of the plugin in containerd's configuration.")] = _PLUGIN,
    platform: Annotated[
        str | None, typer.Option(help="os/architecture[/variant], as linux/arm64; default: this machine's.")
    ] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="The registry speaks no TLS.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Pull an image into containerd without its layers, as far as the repository has them.

    Works with containerd 1.6 to 2.x. Afterwards: ctr run --rm --snapshotter cvmfs-snapshotter IMAGE NAME

    Example: unpackd pull registry.example.org/team/tool:1.2
    """
    import dataclasses

    import anyio

    from fs.runtime.logs import configure_logging
    from registry_proxy.client import open_client
    from registry_proxy.oci.manifest import Platform
    from registry_proxy.oci.reference import Reference
    from snapshotter.containerd import connected
    from snapshotter.pull import Puller, PullRequest, PullResult, host_platform

    async def run(request: PullRequest) -> PullResult:
        with progress(image, quiet=as_json) as advance:
            async with open_client(plain_http=plain_http) as registry, connected(containerd) as daemon:
                return await Puller(daemon, registry, advance).pull(request)

    with command_errors(as_json=as_json):
        configure_logging("warning")
        request = PullRequest(
            reference=Reference.parse(image),
            namespace=namespace,
            snapshotter=snapshotter,
            platform=host_platform() if platform is None else Platform.parse(platform),
        )
        result = anyio.run(run, request)
        if as_json:
            print_json(dataclasses.asdict(result))
        else:
            made = (
                (result.layers_served, "served"),
                (result.layers_unpacked, "unpacked"),
                (result.layers_present, "there already"),
            )
            layers = ", ".join(f"{count} {word}" for count, word in made if count) or "none"
            typer.echo(f"{result.image}@{result.digest}")
            say(f"layers: {layers}; {result.bytes_fetched} bytes fetched in {result.seconds} s")


def doctor(
    containerd: Annotated[Path, typer.Option(help="Socket of containerd.")] = _CONTAINERD,
    snapshotter: Annotated[str, typer.Option(help="Name of the plugin in containerd's configuration.")] = _PLUGIN,
    mountpoint: Annotated[Path | None, typer.Option(help="Repository to look at, where it is mounted.")] = None,
    root: Annotated[Path, typer.Option(help="Directory of the snapshotter.")] = _ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Try what works on this machine, and say what to do about the rest. Exit 1 if something is broken.

    Example: unpackd doctor --mountpoint /cvmfs/unpacked.example.org
    """
    import dataclasses

    import anyio

    from snapshotter.doctor import Verdict, examine

    async def look() -> None:
        checks = await examine(containerd=containerd, plugin=snapshotter, mountpoint=mountpoint, root=root)
        if as_json:
            print_json({"checks": [dataclasses.asdict(check) for check in checks]})
        else:
            for check in checks:
                typer.echo(f"{check.verdict:8} {check.name}: {check.found}")
                if check.advice:
                    typer.echo(f"{'':8} → {check.advice}")
        if any(check.verdict is Verdict.BROKEN for check in checks):
            raise typer.Exit(Exit.FAILED)

    with command_errors(as_json=as_json):
        anyio.run(look)


def csi(
    endpoint: Annotated[
        str, typer.Option(help="Socket to listen at: unix:///path, or a path.", envvar="CSI_ENDPOINT")
    ] = "unix:///csi/csi.sock",
    node: Annotated[
        str | None, typer.Option(help="Name of this machine; default: its host name.", envvar="NODE_NAME")
    ] = None,
    repositories: Annotated[Path, typer.Option(help="Directory below which repositories are mounted.")] = _CVMFS,
    driver: Annotated[str, typer.Option(help="Name of the plugin, as in the CSIDriver object.")] = "csi.unpackd.org",
) -> None:
    """Serve a CSI node plugin: paths of mounted repositories as read-only volumes of pods.

    Example: unpackd csi --endpoint unix:///csi/csi.sock --node worker-1 --repositories /cvmfs
    """
    import platform

    import anyio

    from fs.runtime.logs import configure_logging
    from snapshotter.csi.server import CsiSettings, parse_endpoint, serve

    with command_errors():
        configure_logging()
        settings = CsiSettings(
            address=parse_endpoint(endpoint),
            node=node or platform.node(),
            repositories=repositories.absolute(),
            driver=driver,
        )
        anyio.run(serve, settings)
