"""The shared set of hostile layers, converted by the real command into a real repository, judged by the set's judge."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import unpackd
from fs.publish.repository import Repository
from tests.support.materialise import materialise

pytestmark = pytest.mark.root

NAME = "hostile.test"
MAKER = Path(__file__).parents[4] / "shared" / "hostile-layers" / "make.py"
MIB = 1 << 20
VARIABLES = {
    "max_layer_bytes": "UNPACKD_CONVERTER_LIMITS_MAX_LAYER_BYTES",
    "max_entries": "UNPACKD_CONVERTER_LIMITS_MAX_ENTRIES",
    "max_header_bytes": "UNPACKD_CONVERTER_LIMITS_MAX_HEADER_BYTES",
}


def load_maker() -> Any:  # noqa: ANN401  # a module that mypy does not see
    spec = importlib.util.spec_from_file_location("hostile_layers_make", MAKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.define_all()
    return module


MAKE = load_maker() if MAKER.is_file() else None
NAMES = [case["name"] for case in MAKE.CASES] if MAKE is not None else []


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where the published tree is laid out; pytest's own cleaning cannot remove trees that are so deep."""
    yield tmp_path / "root"
    subprocess.run(["rm", "-rf", tmp_path / "root"], check=True, timeout=60)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it took."""

    status: int
    output: str
    seconds: float
    peak_mib: float


_MEASURE = """
import os, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
with open(sys.argv[1], "w") as peak:
    peak.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The whole set on disk; ``folder`` is where each case lies."""
    assert MAKE is not None
    out = tmp_path_factory.mktemp("hostile")
    return {case["name"]: {**case, "folder": out / case["name"]} for case in MAKE.write(str(out), oci=True)}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def canaries(request: pytest.FixtureRequest, cases: dict[str, dict[str, Any]]) -> Iterator[None]:
    """The files outside of the root that must stay as they are; gone afterwards."""
    assert MAKE is not None
    expect = cases[request.node.callspec.params["name"]]["expect"]
    MAKE.prepare(expect)
    yield
    for item in expect["outside"]:
        if item["must"] == "stay":
            Path(item["path"]).unlink(missing_ok=True)


def run_here(arguments: list[str], environment: dict[str, str], log: Path) -> Ended:
    """Run the command in this process, which is much quicker."""
    started = time.monotonic()
    ended = CliRunner().invoke(unpackd.app, arguments, env=environment)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    log.write_text(ended.output, errors="surrogateescape")
    return Ended(ended.exit_code, ended.output, time.monotonic() - started, 0)


def run_measured(arguments: list[str], environment: dict[str, str], log: Path) -> Ended:
    """Run the command in a process of its own, whose memory can be told.

    A small process stands between: the kernel counts the memory of whoever starts a program as the program's, and this
    process may be large by now.
    """
    peak = log.with_name("peak")
    started = time.monotonic()
    with log.open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-S", "-c", _MEASURE, peak, sys.executable, "-m", "unpackd", *arguments],
            env={**os.environ, **environment}, stdout=output, stderr=output, check=False,
        )  # fmt: skip
    return Ended(
        ended.returncode,
        log.read_text(errors="surrogateescape"),
        time.monotonic() - started,
        int(peak.read_text()) / 1024,
    )


@pytest.mark.skipif(MAKE is None, reason="the folder ../shared with the hostile layers is not here")
@pytest.mark.usefixtures("canaries")
@pytest.mark.parametrize("name", NAMES)
def test_hostile_layer(name: str, cases: dict[str, dict[str, Any]], keys: Path, tmp_path: Path, root: Path) -> None:
    assert MAKE is not None
    case = cases[name]
    expect = case["expect"]
    repository = Repository.create(NAME, str(tmp_path / "storage"), keys, durable=False)
    before = repository.revision
    limits = {VARIABLES[key]: str(value) for key, value in (expect["limits"] or {}).items()}

    arguments = ["convert", f"oci:{case['folder'] / 'oci'}:{name}", "--json", "--repo", NAME]
    arguments += ["--storage", str(tmp_path / "storage"), "--keys", str(keys)]
    run = run_measured if expect["max_rss_mib"] is not None else run_here
    ended = run(arguments, limits, tmp_path / "log")

    assert "Traceback" not in ended.output
    if ended.status == 0:
        assert repository.revision == before + 1
        document = json.JSONDecoder().raw_decode(ended.output[ended.output.index("{\n") :])[0]  # amid talk
        view = repository.view()
        assert (
            view.readlink(document["images"][0]["public_path"].encode())
            == b".." + document["images"][0]["flat_path"].encode()
        )
        materialise(view, document["images"][0]["flat_path"].encode(), root)
    else:
        assert repository.revision == before
        assert repository.view().list(b"") == []
    good, why = MAKE.judge(case, ended.status, str(root), ended.output)
    assert good, f"{why}\n{ended.output}"
    assert ended.seconds < expect["max_seconds"]
    if expect["max_rss_mib"] is not None:
        assert ended.peak_mib < expect["max_rss_mib"]
