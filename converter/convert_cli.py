"""``unpackd convert``: convert images now, and wait."""

import json
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs.runtime.collecting import collect_rarely
from fs.runtime.errors import UnpackdError, UsageError
from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from converter.config import ConversionSettings
    from converter.conversion import ConversionRequest, ConversionResult
    from converter.progress import Progress
    from converter.terms import Policy
    from fs.publish.repository import Repository
    from registry_proxy.oci.manifest import Platform


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command()(convert)


def convert(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="registry/repo[:tag][@digest], docker://…, oci:DIR[:TAG], oci-archive:FILE, "
            "docker-archive:FILE[:REF], docker-daemon:REF, or a tar of a root file system (.tar, .tar.gz, .tar.zst)",
        ),
    ],
    repo: Annotated[str | None, typer.Option(help="Name of the repository (UNPACKD_REPO).")] = None,
    storage: Annotated[str | None, typer.Option(help="Its storage (UNPACKD_STORAGE).")] = None,
    keys: Annotated[Path | None, typer.Option(help="Directory of its keys (UNPACKD_KEYS).")] = None,
    leases: Annotated[
        str | None, typer.Option(help="Keeper of leases, if several machines publish (UNPACKD_LEASES).")
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            help="os/architecture[/variant], several with commas or repeated, or all; "
            "default: linux on this machine's architecture."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the image in the repository, for images that are in no registry.")
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="When the tag has moved: follow it, stay with what is published (pin), or follow it and keep every "
            "image for good (archive)."
        ),
    ] = "follow",
    foreign_layers: Annotated[
        str | None,
        typer.Option(help="Layers that may not be copied: refuse (default), or fetch from the registry."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an image of which something has to be left out.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration file (/etc/unpackd/config.toml).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Convert images and wait; prints the path of each in the repository.

    Exit 0 means that clients see all of them; 3, that they see some. An image that is refused changes nothing.

    Example: unpackd convert docker.io/library/debian:12 --repo unpacked.example.org --storage /srv/unpacked --keys keys
    """
    import anyio

    from converter.config import load_settings
    from converter.conversion import ConversionRequest
    from converter.sources import parse_source

    with command_errors(as_json=as_json):
        flags = {"repo": repo, "storage": storage, "keys": keys, "leases": leases, "foreign_layers": foreign_layers}
        settings = load_settings(config, flags=flags)
        if name is not None and len(images) > 1:
            raise UsageError("--name gives a name to one image; there are several")
        wanted, every = platforms(platform)
        kept = _policy(policy)
        requests = [
            ConversionRequest(
                source=parse_source(image),
                platforms=wanted,
                every_platform=every,
                name=_name(name),
                refuses_losses=strict,
                policy=kept,
                takes_foreign_layers=settings.foreign_layers == "fetch",
            )
            for image in images
        ]
        repository = _open(settings)
        batch = _Batch(repository, settings, as_json=as_json)
        collect_rarely()
        anyio.run(batch.run, requests)
        batch.finish()


def platforms(texts: "list[str] | None") -> "tuple[tuple[Platform, ...], bool]":
    """What the options of that name say: which platforms, and if it is all of them. Raises UsageError."""
    from registry_proxy.errors import ProxyError
    from registry_proxy.oci.manifest import Platform

    words = [word.strip() for text in texts or () for word in text.split(",") if word.strip()]
    if "all" in words:
        if len(words) > 1:
            raise UsageError("--platform all leaves nothing to add")
        return (), True
    try:
        return tuple(dict.fromkeys(Platform.parse(word) for word in words)), False
    except ProxyError as error:
        raise UsageError(str(error)) from error


def _policy(text: str) -> "Policy":
    from converter.terms import read_policy

    try:
        return read_policy(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _name(text: str | None) -> str | None:
    """*text* as a whole name, ``registry/repository:tag``."""
    from converter.names import published_name

    return None if text is None else published_name(text)


def _open(settings: "ConversionSettings") -> "Repository":
    from converter.target import open_target

    given = {"repo": settings.repo, "storage": settings.storage, "keys": settings.keys}
    for option, value in given.items():
        if value is None:
            raise UsageError(f"which repository? Give --{option} or UNPACKD_{option.upper()}")
    return open_target(settings)


class _Batch:
    """Converts one image after the other and says what came of each."""

    def __init__(self, repository: "Repository", settings: "ConversionSettings", *, as_json: bool) -> None:
        self._repository = repository
        self._limits = settings.limits.limits()
        self._attested = settings.push_provenance
        self._as_json = as_json
        self._done: list[ConversionResult] = []
        self._failed: list[tuple[str, UnpackdError]] = []

    async def run(self, requests: "Sequence[ConversionRequest]") -> None:
        """Convert all; an image that fails does not keep the others from being converted."""
        from converter.attestation import attest_result
        from converter.pipeline import convert_image

        async with AsyncExitStack() as stack:
            client = None
            if any(request.source.reference is not None for request in requests):
                from registry_proxy.client import open_client

                client = await stack.enter_async_context(open_client())
            for request in requests:
                try:
                    with _bar(str(request.source), quiet=self._as_json) as report:
                        result = await convert_image(
                            request, self._repository, report, limits=self._limits, client=client
                        )
                        view = self._repository.view()
                        result = await attest_result(view, request.source, result, self._attested)
                except UnpackdError as error:
                    self._fail(str(request.source), error)
                else:
                    self._succeed(result)

    def finish(self) -> None:
        """Print the document and end with the code that all results together have."""
        if self._as_json:
            name = self._repository.name
            print_json(
                {
                    "repository": name,
                    "revision": self._repository.revision,
                    "images": [
                        {**result.as_json(), "path": f"/cvmfs/{name}{result.public_path}"} for result in self._done
                    ],
                    "failed": [
                        {"reference": image, "error": str(error), "exit": int(error.exit)}
                        for image, error in self._failed
                    ],
                }
            )
        codes = {error.exit for _, error in self._failed}
        if codes:
            alone = codes.pop() if len(codes) == 1 else Exit.FAILED
            raise typer.Exit(Exit.PARTIAL if self._done else alone)

    def _fail(self, image: str, error: UnpackdError) -> None:
        self._failed.append((image, error))
        if self._as_json:
            say(json.dumps({"error": str(error), "exit": int(error.exit), "reference": image}))
        else:
            say(f"error: {image}: {error}")

    def _succeed(self, result: "ConversionResult") -> None:
        self._done.append(result)
        for warning in result.warnings:
            say(f"warning: {result.reference}: {warning}")
        if self._as_json:
            return
        typer.echo(result.public_path)
        if not result.changed:
            say(f"{result.reference}: nothing to do, revision {result.revision} has it")
        else:
            say(
                f"{result.reference}: revision {result.revision}, {result.layers_converted} of {result.layers_total} "
                f"layers new, {result.entries} entries, {result.seconds:.1f} s"
            )


@contextmanager
def _bar(label: str, *, quiet: bool) -> "Iterator[Callable[[Progress], None]]":
    """A progress bar on a terminal; gives what to call with the progress."""
    import sys

    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[entries]} entries, {task.fields[stage]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, entries=0, stage="")

        def show(progress: "Progress") -> None:
            bar.update(
                task,
                total=progress.bytes_total or None,
                completed=progress.bytes_fetched,
                entries=progress.entries,
                stage=progress.stage,
            )

        yield show
