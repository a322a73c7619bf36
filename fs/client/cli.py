"""Commands about mounts. Imports are light: what is heavy is imported when its command runs."""

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from fs.client.control_cli import mountctl
from fs.runtime.errors import UsageError
from fs.runtime.output import command_errors, print_json, say

if TYPE_CHECKING:
    from fs.client.profile import Read
    from fs.store.proxies import ProxyGroups

_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_STEPS = " kmgt"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_HIGHEST_PORT = 65535

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
MountPoint = Annotated[
    Path,
    # no type for paths: that asks the mount, which may wait for the very daemon that this is about to start
    typer.Argument(parser=Path, metavar="MOUNTPOINT", help="Directory where the repository is mounted."),
]


class Frontend(StrEnum):
    """How a mount talks to the kernel."""

    PYFUSE3 = "pyfuse3"
    WIRE = "wire"


def register(app: typer.Typer) -> None:
    """Add mount, umount and mountctl to *app*."""
    app.command(
        name="mount",
        epilog="Example: unpackd mount repo.example.org /cvmfs/repo.example.org"
        " --url http://origin/cvmfs/repo.example.org --pubkey repo.example.org.pub",
    )(mount)
    app.command(name="umount", epilog="Example: unpackd umount /cvmfs/repo.example.org")(umount)
    app.command(name="mountctl", epilog="Example: unpackd mountctl /cvmfs/repo.example.org status")(mountctl)


def parse_size(text: str) -> int:
    """Bytes for ``4000M``, ``4G``, ``512MiB`` (i: steps of 1024) or a plain number. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size; 4000M, 4G or 512MiB are")
    step = 1024 if match[3] else 1000
    return int(float(match[1]) * step ** _STEPS.index(match[2].lower() or " "))


def mount(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the repository, as its manifest says it.")],
    mountpoint: MountPoint,
    url: Annotated[list[str], typer.Option("--url", help="Where the repository is; several with commas or repeated.")],
    pubkey: Annotated[
        list[Path] | None,
        typer.Option("--pubkey", help="Public key of the repository (PEM), or a directory of *.pub; repeatable."),
    ] = None,
    ca_dir: Annotated[
        list[Path] | None,
        typer.Option("--ca-dir", help="Directory of certificate authorities, for whitelists that ask for them."),
    ] = None,
    blacklist: Annotated[
        list[Path] | None,
        typer.Option("--blacklist", help="File of revoked certificates and forbidden revisions; repeatable."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Directory for cached objects; mounts may share it.")
    ] = None,
    quota: Annotated[str, typer.Option("--quota", help="What the cache may take, as 4000M or 4GiB.")] = "4000M",
    memory: Annotated[str, typer.Option("--memory", help="What of the cache to hold in memory too, as 256M.")] = "0",
    preloaded: Annotated[
        list[Path] | None,
        typer.Option("--preloaded", help="Cache that is only read (see unpackd repo preload); repeatable."),
    ] = None,
    external_url: Annotated[
        list[str] | None, typer.Option("--external-url", help="Where external files are; several as with --url.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option("--proxy", help="HTTP proxies: 'http://p1|http://p2;DIRECT'; | within a group, ; between groups."),
    ] = None,
    fallback_proxy: Annotated[
        str | None, typer.Option("--fallback-proxy", help="Groups to use after those of --proxy; then never DIRECT.")
    ] = None,
    pac_url: Annotated[
        list[str] | None,
        typer.Option("--pac-url", help="Where --proxy auto finds the network's configuration; repeatable."),
    ] = None,
    proxy_reset: Annotated[
        float, typer.Option("--proxy-reset", min=1, help="Seconds after which proxies that failed are used again.")
    ] = 300.0,
    host_reset: Annotated[
        float, typer.Option("--host-reset", min=1, help="Seconds after which the first server is asked first again.")
    ] = 300.0,
    geo: Annotated[bool, typer.Option("--geo", help="Let a server say which of them is nearest.")] = False,
    proxy_shard: Annotated[
        bool, typer.Option("--proxy-shard", help="Spread objects over the proxies of a group by their hash.")
    ] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="Show the revision with this tag, for ever.")] = None,
    revision: Annotated[int | None, typer.Option("--revision", help="Show this (tagged) revision, for ever.")] = None,
    root_hash: Annotated[
        str | None, typer.Option("--root-hash", help="Show the revision with this root catalog; nothing is signed.")
    ] = None,
    date: Annotated[
        str | None,
        typer.Option(
            "--date", help="Show what was newest then, of what has a tag: 2026-01-31T12:00:00Z or 2026-01-31."
        ),
    ] = None,
    frontend: Annotated[Frontend, typer.Option("--frontend", help="How to talk to the kernel.")] = Frontend.PYFUSE3,
    expand_symlinks: Annotated[
        bool,
        typer.Option("--expand-symlinks/--raw-symlinks", help="Replace $(VARIABLES) in targets, as the format says."),
    ] = True,
    allow_other: Annotated[
        bool | None,
        typer.Option("--allow-other/--no-allow-other", help="Let other users in; default: if root mounts."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Fetch at once what another start read (mountctl … profile).")
    ] = None,
    read_ahead: Annotated[
        bool, typer.Option("--read-ahead/--no-read-ahead", help="Fetch what readers seem to want next.")
    ] = True,
    metrics: Annotated[str | None, typer.Option("--metrics", help="Serve figures for Prometheus at HOST:PORT.")] = None,
    resumable: Annotated[
        bool | None,
        typer.Option(
            "--resumable/--no-resumable",
            help="A killed or restarted daemon is followed by one that goes on; the default from Linux 6.9 on.",
        ),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and log to stderr.")] = False,
    session: Annotated[str | None, typer.Option("--session", hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Mount a repository; returns when it can be read.

    Example: unpackd mount unpacked.example.org /cvmfs/unpacked.example.org
    --url http://origin.example.org/cvmfs/unpacked.example.org --pubkey unpacked.example.org.pub
    """
    with command_errors(as_json=as_json):
        from fs.client.background import serve_held, start_held, start_in_background
        from fs.client.holder import Inheritance
        from fs.client.mountpoints import absolute, check_mountpoint, own_file

        where = absolute(mountpoint)
        selection = (tag, revision, root_hash, date)
        moment = _date(date)
        _check_arguments(name, selection)
        if frontend is Frontend.WIRE and os.geteuid() != 0:
            raise UsageError("only root can use --frontend wire; the default front end is for everybody")
        is_held = session is None and _is_held(resumable, is_foreground=foreground)
        inherited = None if session is None else Inheritance.parse(session)
        if inherited is None:
            check_mountpoint(where)
        objects = _cache_directory(cache)
        state = objects / "mounts" / name
        quota_bytes = parse_size(quota)
        memory_bytes = parse_size(memory)
        public_keys = _read_keys(pubkey or [], ca_dir or [])
        groups = _ProxyWords.checked(proxy, fallback_proxy, is_sharded=proxy_shard, reset_after_s=proxy_reset)
        reads = _profile(profile)
        metrics_address = _address(metrics)
        allows_other = os.geteuid() == 0 if allow_other is None else allow_other
        variables = {**os.environb, b"CVMFS_ARCH": platform.machine().encode()} if expand_symlinks else None

        def serve(ready: Callable[[], None]) -> None:
            """Build the settings and run the daemon; the heavy imports happen in its process only."""
            import trio

            from fs.client.daemon import LogTail, MountDaemon, MountSettings
            from fs.client.repository import Selection
            from fs.format.hashes import Hash
            from fs.runtime.logs import configure_logging

            configure_logging()
            tail = LogTail()
            tail.install()
            settings = MountSettings(
                name=name,
                mountpoint=where,
                urls=_split(url),
                public_keys_pem=public_keys,
                ca_directories=tuple(folder.absolute() for folder in ca_dir or ()),
                blacklists=tuple(file.absolute() for file in blacklist or ()),
                cache=objects,
                state=state,
                quota_bytes=quota_bytes,
                memory_bytes=memory_bytes,
                preloaded=tuple(folder.absolute() for folder in preloaded or ()),
                external_urls=_split(external_url or []),
                proxies=groups.parse(_split(url), pac_url or [], own_file(state, where, "proxies")),
                host_reset_s=host_reset,
                orders_by_distance=geo,
                profile=reads,
                reads_ahead=read_ahead,
                metrics=metrics_address,
                selection=Selection(tag, revision, Hash.parse(root_hash) if root_hash is not None else None, moment),
                variables=variables,
                allows_other=allows_other,
                frontend=frontend.value,
                inherited=inherited,
            )
            trio.run(MountDaemon(settings, tail).run, ready)

        if inherited is not None:
            serve_held(serve, inherited.tell)
            return
        if foreground:
            serve(lambda: say(f"{name} is mounted at {where}"))
            return
        log_file = own_file(state, where, "log")
        if is_held:
            process = start_held(_repeated(context), where, own_file(state, where, "lock"), log_file)
        else:
            process = start_in_background(serve, log_file)
        if as_json:
            print_json({"repository": name, "mountpoint": str(where), "pid": process, "log": str(log_file)})
        else:
            say(f"{name} is mounted at {where} (process {process}, log {log_file})")


def _is_held(resumable: bool | None, *, is_foreground: bool) -> bool:
    """Whether the mount gets a session holder. Raises UsageError."""
    from fs.client.holder import LEAST_KERNEL, kernel_can_resume

    if resumable and is_foreground:
        raise UsageError("--resumable and --foreground exclude each other: a holder is a process of its own")
    is_new = kernel_can_resume(platform.release())
    if resumable and not is_new:
        raise UsageError(f"--resumable needs Linux {LEAST_KERNEL[0]}.{LEAST_KERNEL[1]} or later")
    return is_new and not is_foreground and resumable is not False


def _repeated(context: typer.Context) -> list[str]:
    """The arguments of this command once more, for a process in another directory."""
    options: list[str] = []
    places: list[str] = []
    for parameter in context.command.params:
        given = context.params[parameter.name or ""]
        values = given if isinstance(given, list | tuple) else [given]
        texts = [_text(value) for value in values if value is not None]
        if parameter.param_type_name == "argument":
            places += texts
        elif isinstance(given, bool):
            options += (parameter.opts if given else parameter.secondary_opts)[:1]
        else:
            options += [f"{parameter.opts[0]}={text}" for text in texts]
    return [*options, "--", *places]


def _text(value: Any) -> str:  # noqa: ANN401  # whatever an option can be
    if isinstance(value, Path):
        return str(value.absolute())
    return str(value.value) if isinstance(value, StrEnum) else str(value)


def _check_arguments(name: str, selection: tuple[object, ...]) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no repository name: letters, digits, dots, - and _ make one")
    if sum(choice is not None for choice in selection) > 1:
        raise UsageError("only one of --tag, --revision, --root-hash and --date can be given")


def _date(text: str | None) -> datetime | None:
    """A moment in UTC unless it says otherwise; a day is its end. Raises UsageError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is no date; 2026-01-31T12:00:00Z and 2026-01-31 are") from None
    if _DAY.fullmatch(text):
        moment += timedelta(days=1, seconds=-1)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _split(values: list[str]) -> tuple[str, ...]:
    return tuple(part.strip() for value in values for part in re.split("[,;]", value) if part.strip())


@dataclass(frozen=True, slots=True)
class _ProxyWords:
    """What the user says about proxies."""

    text: str
    fallback: str
    is_sharded: bool
    reset_after_s: float

    @classmethod
    def checked(cls, text: str | None, fallback: str | None, *, is_sharded: bool, reset_after_s: float) -> Self:
        """Raises RefusedError for what is no proxy; nothing is discovered yet."""
        words = cls(text or "", fallback or "", is_sharded=is_sharded, reset_after_s=reset_after_s)
        words._parse(";".join(group for group in words.text.split(";") if group.strip().lower() != "auto"))
        return words

    def parse(self, urls: tuple[str, ...], pac_urls: list[str], kept: Path) -> "ProxyGroups":
        """The groups; blocks if they have to be discovered. Raises RefusedError, UnreachableError."""
        from fs.store.pac import is_automatic, with_discovered

        text = self.text
        if is_automatic(text):
            text = with_discovered(text, urls, _split(pac_urls), kept)
        return self._parse(text)

    def _parse(self, text: str) -> "ProxyGroups":
        from fs.store.proxies import ProxyGroups

        return ProxyGroups.parse(
            text, fallback=self.fallback, is_sharded=self.is_sharded, reset_after_s=self.reset_after_s
        )


def _profile(file: Path | None) -> "list[Read] | None":
    from fs.client.profile import read_profile

    return None if file is None else read_profile(file)


def _address(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > _HIGHEST_PORT:
        raise UsageError(f"{text!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def _read_keys(paths: list[Path], authorities: list[Path]) -> bytes:
    from fs.client.chain import read_public_keys

    if not paths and not authorities:
        raise UsageError("say with --pubkey or --ca-dir whom to believe")
    return read_public_keys(paths)


def _cache_directory(base: Path | None) -> Path:
    """Where the objects lie, of all repositories."""
    from fs.client.mountpoints import user_behind

    if base is None:
        if user_behind(os.geteuid()) == 0:
            base = Path("/var/lib/unpackd/cache")
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unpackd"
    return base.absolute()


def umount(
    mountpoint: MountPoint,
    lazy: Annotated[bool, typer.Option("--lazy", help="Detach it now; those who use it go on.")] = False,
    as_json: Json = False,
) -> None:
    """Unmount a repository; exit 11 if it is in use.

    Example: unpackd umount /cvmfs/unpacked.example.org
    """
    with command_errors(as_json=as_json):
        from fs.client.mountpoints import absolute, unmount

        mounted = unmount(absolute(mountpoint), is_lazy=lazy)
        if as_json:
            print_json({"repository": mounted.name, "mountpoint": str(mounted.mountpoint)})
        else:
            say(f"{mounted.name} is unmounted from {mounted.mountpoint}")
