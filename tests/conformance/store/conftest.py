"""Every implementation of the Protocol, each as a fixture of one name."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fs.store.base import TendedStore
from fs.store.local import LocalStore
from fs.store.memory import MemoryStore
from fs.store.s3_place import S3Limits, S3Place
from tests.support.faulty_proxy import FaultyProxy, run_faulty_proxy
from tests.support.s3 import CREDENTIALS, S3Server, run_s3

SPOILED = 4
"""Each fourth request: fewer than a client tries again, so all of them have to be borne."""
SMALL_LIMITS = S3Limits(connect_timeout_s=1, idle_timeout_s=0.5, attempts=4, backoff_s=0.05, part_bytes=5 << 20)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("boto3")
    pytest.importorskip("moto")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with run_s3(tmp_path_factory.mktemp("s3")) as server:
            yield server


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with run_faulty_proxy(s3_server.port) as running_proxy:
        yield running_proxy


@pytest.fixture(params=["local", "memory", "s3", "s3 behind faults"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], TendedStore]:
    """Opens the same store again and again, as several processes would."""
    match request.param:
        case "local":
            return lambda: _prepared(LocalStore(tmp_path / "storage"))
        case "memory":
            only = MemoryStore()
            return lambda: only
        case _:
            from fs.store.s3 import S3Store

            server: S3Server = request.getfixturevalue("s3_server")
            endpoint = server.endpoint
            if request.param == "s3 behind faults":
                proxy: FaultyProxy = request.getfixturevalue("proxy")
                proxy.every, endpoint = SPOILED, proxy.endpoint
            place = S3Place(server.new_bucket(), "some/prefix", endpoint)
            return lambda: _prepared(S3Store(place, SMALL_LIMITS))


@pytest.fixture
def store(make_store: Callable[[], TendedStore]) -> TendedStore:
    return make_store()


def _prepared(store: TendedStore) -> TendedStore:
    store.prepare()
    return store
