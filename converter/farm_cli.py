"""``unpackd up``, ``wish``, ``worker``, ``watch``, ``web``: the farm."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs.runtime.exits import Exit
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from converter.errors import Mistake

wish_app = typer.Typer(no_args_is_help=True, help="Wishlists: check, apply, and see what became of them.")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Url = Annotated[str | None, typer.Option(help="Where the service answers (UNPACKD_URL).")]
Directory = Annotated[
    Path | None, typer.Option("--dir", help="Directory of this machine's stack. Default: that of unpackd up.")
]
WishlistFile = Annotated[Path, typer.Argument(metavar="FILE", help="The wishlist.")]
Config = Annotated[Path | None, typer.Option(help="Configuration file (UNPACKD_CONFIG, /etc/unpackd/config.toml).")]
Wishlist = Annotated[
    Path | None, typer.Option("--wishlist", help="Wishlist to apply, now and whenever the file changes.")
]
_DEFAULT_LISTEN = "127.0.0.1:8480"
_FD = "fd://"


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command()(up)
    app.command()(worker)
    app.command()(watch)
    app.command()(web)
    app.add_typer(wish_app, name="wish")


def up(
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where everything is. Default: /var/lib/unpackd for root, ~/.local/share/unpackd."),
    ] = None,
    wishlist: Wishlist = None,
    listen: Annotated[
        str | None, typer.Option(help=f"HOST:PORT of page, API, hooks and origin. Default: {_DEFAULT_LISTEN}.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of a new repository. Default: what the wishlist says, else unpacked.local."),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run everything on this machine: repository, origin, watcher, worker, status page. Ctrl-C ends it.

    Starting again goes on where it was. A second one over the same directory is refused with exit 11.

    Example: unpackd up --dir /srv/unpackd --wishlist wishlist.yaml --listen 0.0.0.0:8480
    """
    from converter.config import config_file, load_farm_settings
    from converter.up import Up, UpOptions, default_directory
    from fs.runtime.logs import configure_logging

    with command_errors(as_json=as_json), ExitStack() as blocks:
        configure_logging()
        farm = load_farm_settings(config, flags={"wishlist": wishlist, "listen": listen})
        blocks.enter_context(_places_in(farm.wishlist))
        place = directory or default_directory()
        stack_of = Up(UpOptions(directory=place, name=name, farm=farm, config=config_file(config)))
        with stack_of.running() as stack:
            facts = stack.as_json()
            if as_json:
                print_json(facts)
            else:
                _print_stack(facts)
            stack_of.run()


def _print_stack(facts: dict[str, str]) -> None:
    typer.echo(f"status page  {facts['url']}/")
    typer.echo(f"API          {facts['api']}")
    typer.echo(f"repository   {facts['repository']}")
    typer.echo(f"hooks        {facts['hook_distribution']}")
    typer.echo(f"             {facts['hook_harbor']}")
    typer.echo(f"public key   {facts['public_key']}")
    typer.echo(f"\nmount it with\n  {facts['mount_command']}\n")
    say("Ctrl-C ends everything.")


def worker(config: Config = None) -> None:
    """Convert what the queue holds, until told to stop. SIGTERM finishes what runs, SIGQUIT puts it back.

    Settings: UNPACKD_REPO, UNPACKD_STORAGE, UNPACKD_KEYS, UNPACKD_CONVERTER_DATABASE_URL, UNPACKD_CONVERTER_BROKER_URL,
    UNPACKD_CONVERTER_CONCURRENCY.

    Example: UNPACKD_CONVERTER_BROKER_URL=redis://queue:6379/0 unpackd worker
    """
    from converter.config import load_farm_settings, load_settings
    from converter.farm_conversion import PipelineConverter
    from converter.tasks import run_worker
    from fs.runtime.logs import configure_logging

    with command_errors():
        configure_logging()
        farm = load_farm_settings(config)
        code = run_worker(farm, PipelineConverter(load_settings(config), farm))
    raise typer.Exit(code)


def watch(wishlist: Wishlist = None, config: Config = None) -> None:
    """Look after wishes: ask registries, turn what is new into jobs, and give the jobs to the queue.

    Settings: UNPACKD_REPO, UNPACKD_CONVERTER_DATABASE_URL, UNPACKD_CONVERTER_BROKER_URL,
    UNPACKD_CONVERTER_POLL_INTERVAL_S.

    Example: unpackd watch --wishlist /etc/unpackd/wishlist.yaml
    """
    import anyio

    from converter.config import load_farm_settings, load_settings
    from converter.watch import run_watch
    from fs.runtime.logs import configure_logging

    with command_errors():
        configure_logging()
        anyio.run(run_watch, load_settings(config), load_farm_settings(config, flags={"wishlist": wishlist}))


def web(
    listen: Annotated[
        str | None, typer.Option(help=f"HOST:PORT, or fd://N for a socket that is open. Default: {_DEFAULT_LISTEN}.")
    ] = None,
    config: Config = None,
) -> None:
    """Serve status page, API and hooks; and the repository's origin if its storage is on this machine.

    Settings: UNPACKD_REPO, UNPACKD_STORAGE, UNPACKD_CONVERTER_DATABASE_URL, UNPACKD_CONVERTER_API_TOKEN,
    UNPACKD_CONVERTER_WEBHOOK_AUTHORIZATION.

    Example: unpackd web --listen 0.0.0.0:8480
    """
    import socket

    from converter.config import load_farm_settings, load_settings
    from converter.up import listener
    from converter.web.app import serve
    from converter.web.composition import farm_app
    from fs.runtime.logs import configure_logging

    with command_errors():
        configure_logging()
        farm = load_farm_settings(config, flags={"listen": listen})
        app = farm_app(load_settings(config), farm)
        descriptor = farm.listen.removeprefix(_FD)
        if farm.listen.startswith(_FD) and descriptor.isdigit():
            with socket.socket(fileno=int(descriptor)) as inherited:
                serve(app, inherited)
        else:
            with listener(farm.listen) as bound:
                serve(app, bound)


@wish_app.command("check")
def check(file: WishlistFile, as_json: Json = False) -> None:
    """Name every mistake of a wishlist as FILE:LINE:COLUMN: text. Exit 2 if there is one.

    Example: unpackd wish check wishlist.yaml
    """
    from converter.errors import WishlistError
    from converter.wishlist import parse_wishlist
    from converter.wishlist_file import read_wishlist

    with command_errors(as_json=as_json):
        body = read_wishlist(file)
        try:
            wishlist = parse_wishlist(body)
        except WishlistError as error:
            if as_json:
                print_json({"file": str(file), "mistakes": _as_json(error.mistakes)})
            else:
                for line in _places(file, error.mistakes):
                    typer.echo(line)
            raise typer.Exit(Exit.USAGE) from error
        wishes = [wish.reference for wish in wishlist.wishes]
        if as_json:
            print_json({"file": str(file), "mistakes": [], "repository": wishlist.repository, "wishes": wishes})
        else:
            say(f"{file}: {len(wishes)} wishes for {wishlist.repository}, no mistakes")


@wish_app.command("apply")
def apply(
    file: WishlistFile,
    name: Annotated[str | None, typer.Option(help="Its name in the service. Default: the file's.")] = None,
    url: Url = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Replace the service's wishlist of this name. What is new is converted; what is gone stays published.

    Example: unpackd wish apply wishlist.yaml --url http://farm.example.org:8480
    """
    from converter.wishlist_file import read_wishlist

    with command_errors(as_json=as_json), _places_in(file):
        done = _ask("apply", url, directory, name or file.stem, read_wishlist(file))
        if as_json:
            print_json(done)
        else:
            say(f"{done['name']}: {'applied' if done['changed'] else 'nothing new'}")


@wish_app.command("status")
def status(
    name: Annotated[str, typer.Argument(help="Only images with this in their name.")] = "",
    url: Url = None,
    directory: Directory = None,
    as_json: Json = False,
) -> None:
    """Where wished images are: state, path, revision, error. Exit 10 if none has that name.

    Example: unpackd wish status library/debian --json
    """
    from converter.errors import JobAbsentError

    with command_errors(as_json=as_json):
        document = _ask("images", url, directory, name)
        if name and not document["images"]:
            raise JobAbsentError(f"no image has {name!r} in its name; unpackd wish ls shows what is wished")
        if as_json:
            print_json(document)
            return
        for image in document["images"]:
            path = f"/cvmfs/{image['repository']}{image['public_path']}" if image["public_path"] else image["reference"]
            typer.echo(f"{image['state']:<8} {path}" + (f"  ({image['error']})" if image["error"] else ""))


@wish_app.command("ls")
def list_wishes(url: Url = None, directory: Directory = None, as_json: Json = False) -> None:
    """The wishlists of the service and what they wish.

    Example: unpackd wish ls
    """
    with command_errors(as_json=as_json):
        document = _ask("wishes", url, directory)
        if as_json:
            print_json(document)
            return
        for wishlist in document["wishlists"]:
            for reference, terms in zip(wishlist["wishes"], wishlist["terms"], strict=True):
                facts = [terms["policy"]] if terms["policy"] != "follow" else []
                facts += [",".join(terms["platforms"])] if terms["platforms"] else []
                typer.echo("  ".join([wishlist["name"], reference, *facts]))


def _ask(question: str, url: str | None, directory: Path | None, *arguments: object) -> dict[str, Any]:
    """The farm's answer to one method of FarmAccess."""
    import anyio

    from converter.farm_access import FarmAccess

    async def ask() -> dict[str, Any]:
        async with FarmAccess.find(url, directory) as farm:
            answer: dict[str, Any] = await getattr(farm, question)(*arguments)
            return answer

    return anyio.run(ask)


@contextmanager
def _places_in(file: Path | None) -> Iterator[None]:
    """Mistakes of the wishlist *file* are named with their places, one a line, before the command ends."""
    from converter.errors import WishlistError

    try:
        yield
    except WishlistError as error:
        if file is not None:
            for line in _places(file, error.mistakes):
                say(line)
        raise


def _places(file: Path, mistakes: "tuple[Mistake, ...]") -> list[str]:
    return [f"{file}:{mistake.line}:{mistake.column}: {mistake.text}" for mistake in mistakes]


def _as_json(mistakes: "tuple[Mistake, ...]") -> list[dict[str, object]]:
    return [{"line": mistake.line, "column": mistake.column, "text": mistake.text} for mistake in mistakes]
