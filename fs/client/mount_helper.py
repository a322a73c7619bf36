"""``mount -t unpackd NAME MOUNTPOINT -o url=…,pubkey=…``: what mount(8) and /etc/fstab call.

The script ``mount.unpackd`` has to be found in ``/sbin``. Options that only mount(8) or systemd understand are left
out; every other must be one of ``unpackd mount``, without its dashes. Several servers are separated by semicolons or
given by repeated ``url=``, because the comma separates options.
"""

import sys
from collections.abc import Sequence

import typer

from fs.client import cli
from fs.runtime.exits import Exit
from fs.runtime.logs import configure_logging
from fs.runtime.output import say

_VALUES = frozenset(
    {"url", "pubkey", "ca-dir", "blacklist", "cache", "quota", "memory", "preloaded", "external-url"}
    | {"proxy", "fallback-proxy", "pac-url", "proxy-reset", "host-reset"}
    | {"tag", "revision", "root-hash", "date", "frontend"}
)
_SWITCHES = {
    "raw-symlinks": "--raw-symlinks",
    "expand-symlinks": "--expand-symlinks",
    "allow_other": "--allow-other",
    "geo": "--geo",
    "proxy-shard": "--proxy-shard",
    "resumable": "--resumable",
    "no_resumable": "--no-resumable",
    "no_allow_other": "--no-allow-other",
}
_OF_OTHERS = frozenset(
    {"ro", "rw", "defaults", "auto", "noauto", "nofail", "_netdev", "user", "nouser", "users", "owner", "group"}
    | {"dev", "nodev", "suid", "nosuid", "exec", "noexec", "atime", "noatime", "relatime", "remount"}
)
_FLAGS_WITH_VALUE = frozenset({"-t", "-N"})


def arguments(given: Sequence[str]) -> list[str]:
    """The arguments of ``unpackd mount`` for those that mount(8) gives: ``SOURCE DIR [-sfnvr] [-o options]``.

    Raises:
        ValueError: an option is unknown; the message names it.
    """
    places: list[str] = []
    options: list[str] = []
    rest = iter(given)
    for word in rest:
        if word == "-o":
            options += next(rest, "").split(",")
        elif word in _FLAGS_WITH_VALUE:
            next(rest, "")
        elif not word.startswith("-"):
            places.append(word)
    result = ["mount", *places]
    for option in options:
        name, has_value, value = option.partition("=")
        if has_value and name in _VALUES:
            result += [f"--{name}", value]
        elif option in _SWITCHES:
            result.append(_SWITCHES[option])
        elif option and option not in _OF_OTHERS and not option.startswith(("x-", "comment=")):
            raise ValueError(f"unknown mount option {option!r}")
    return result


def main() -> None:
    """Entry point of ``mount.unpackd``."""
    configure_logging("warning")
    app = typer.Typer(pretty_exceptions_enable=False)
    cli.register(app)
    try:
        app(arguments(sys.argv[1:]))
    except ValueError as error:
        say(f"error: {error}")
        sys.exit(Exit.USAGE)


if __name__ == "__main__":
    main()
