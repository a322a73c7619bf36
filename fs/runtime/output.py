"""How commands talk: data on stdout, everything else on stderr, one place that turns errors into exit codes."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from fs.runtime.errors import UnpackdError
from fs.runtime.exits import Exit


def print_json(document: Any) -> None:  # noqa: ANN401  # JSON is any value
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def say(text: str) -> None:
    """Print *text* on stderr: talk, not data."""
    sys.stderr.write(text + "\n")


def fail(message: str, exit_code: Exit, *, as_json: bool = False) -> NoReturn:
    """Say *message* in one line (one JSON object with *as_json*) on stderr and end the command with *exit_code*."""
    say(json.dumps({"error": message, "exit": int(exit_code)}) if as_json else f"error: {message}")
    raise typer.Exit(exit_code)


@contextmanager
def command_errors(*, as_json: bool = False) -> Iterator[None]:
    """Around a command's body: an UnpackdError becomes its sentence and its exit code, Ctrl-C becomes 130.

    Errors that are bugs pass through with their traceback. Groups of one error, as task groups raise them, are
    treated as the error itself.
    """
    try:
        yield
    except UnpackdError as error:
        fail(str(error), error.exit, as_json=as_json)
    except KeyboardInterrupt:
        fail("interrupted", Exit.INTERRUPTED, as_json=as_json)
    except BaseExceptionGroup as group:
        single = _only_known(group)
        if single is None:
            raise
        fail(str(single), single.exit, as_json=as_json)


def _only_known(group: BaseExceptionGroup[BaseException]) -> UnpackdError | None:
    """The first UnpackdError of *group* if it holds nothing else."""
    known, rest = group.split(UnpackdError)
    if known is None or rest is not None:
        return None
    error: BaseException = known
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, UnpackdError) else None


@contextmanager
def progress(label: str, *, total_bytes: int | None = None, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr for work of *total_bytes*; gives the function to call with bytes done.

    Silent when *quiet* or when stderr is not a terminal.
    """
    from rich.console import Console  # noqa: PLC0415  # only a terminal pays for it
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(label, total=total_bytes)
        yield lambda count: bar.update(task, advance=count)
