"""What every LeaseKeeper promises: on files, in a database, in a Redis server."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from fs.errors import LockedError, RefusedError, UnreachableError
from fs.publish.file_leases import FileLeases
from fs.publish.keepers import keeper_of, open_leases
from fs.publish.leases import Lease, LeaseKeeper, LeaseLostError, conflicts, holding
from fs.publish.redis_leases import RedisLeases
from fs.publish.sql_leases import SqlLeases
from tests.support.brokers import redis_over_tcp
from tests.support.processes import free_port

NAME = "leased.test"
LONG_S = 60.0

Open = Callable[[], LeaseKeeper]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_over_tcp(tmp_path_factory.mktemp("redis") / "server") as url:
        yield url


@pytest.fixture(params=["file", "sqlite", "redis"])
def open_keeper(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the same keeper again and again, as several processes would."""
    match request.param:
        case "file":
            url = f"file://{tmp_path}"
        case "sqlite":
            url = f"sqlite:///{tmp_path}/leases.db"
        case _:
            url = request.getfixturevalue("redis_url")
            redis.Redis.from_url(url).flushall()
    return lambda: open_leases(url)


@pytest.fixture
def keeper(open_keeper: Open) -> LeaseKeeper:
    return open_keeper()


def take(keeper: LeaseKeeper, path: bytes = b"/a", lifetime_s: float = LONG_S, owner: str = "somebody") -> Lease:
    return keeper.acquire(NAME, path, owner, lifetime_s)


@pytest.mark.parametrize("other", [b"", b"/a", b"/a/b", b"/a/b/c/d"])
def test_above_and_below_are_in_the_way(open_keeper: Open, other: bytes) -> None:
    take(open_keeper(), b"/a/b", owner="the first")

    with pytest.raises(LockedError, match="the first holds /a/b"):
        take(open_keeper(), other)


@pytest.mark.parametrize("other", [b"/a/bc", b"/b", b"/a/c", b"/a/b%", b"/a/_"])
def test_what_lies_beside_is_not(open_keeper: Open, other: bytes) -> None:
    take(open_keeper(), b"/a/b")

    take(open_keeper(), other)

    assert [lease.path for lease in open_keeper().leases(NAME)] == [b"/a/b", other]


def test_other_repositories_are_not_in_the_way(keeper: LeaseKeeper) -> None:
    take(keeper, b"")

    keeper.acquire("other.test", b"", "somebody", LONG_S)


def test_tokens_only_grow(open_keeper: Open) -> None:
    tokens = []
    for _ in range(5):
        keeper = open_keeper()
        lease = take(keeper)
        tokens.append(lease.token)
        keeper.release(lease)

    assert tokens == sorted(set(tokens))


def test_what_is_given_back_is_free(keeper: LeaseKeeper) -> None:
    lease = take(keeper)
    keeper.release(lease)
    keeper.release(lease)

    assert keeper.leases(NAME) == []
    take(keeper)
    with pytest.raises(LeaseLostError):
        keeper.renew(lease, LONG_S)


def test_paths_and_owners_are_bytes_of_any_kind(open_keeper: Open) -> None:
    odd = b"/a b\n\xff%1 7 \\"
    taken = take(open_keeper(), odd, owner="5 ümläut\n on a machine")

    (lease,) = open_keeper().leases(NAME)

    assert (lease.path, lease.owner, lease.token) == (odd, "5 ümläut\n on a machine", taken.token)
    with pytest.raises(LockedError):
        take(open_keeper(), odd + b"/below")


def test_a_lease_runs_out_and_its_holder_is_told(open_keeper: Open) -> None:
    late, other = open_keeper(), open_keeper()
    lease = take(late, lifetime_s=0.05)
    time.sleep(0.1)

    newer = take(other)

    assert newer.token > lease.token
    with pytest.raises(LeaseLostError, match=str(lease.token)):
        late.renew(lease, LONG_S)
    late.release(lease)
    assert [held.token for held in other.leases(NAME)] == [newer.token]


def test_a_renewed_lease_lasts(open_keeper: Open) -> None:
    keeper = open_keeper()
    lease = take(keeper, lifetime_s=0.2)
    renewed = keeper.renew(lease, LONG_S)
    time.sleep(0.3)

    assert renewed.token == lease.token
    with pytest.raises(LockedError):
        take(open_keeper())


def test_a_heart_beats_while_it_is_held(open_keeper: Open) -> None:
    with holding(open_keeper(), NAME, b"/a", owner="me", timeout_s=1, lifetime_s=0.6) as held:
        time.sleep(1.0)
        held.check()
        with pytest.raises(LockedError):
            take(open_keeper())
    take(open_keeper())


def test_who_was_held_up_may_not_publish(open_keeper: Open) -> None:
    keeper = open_keeper()
    with holding(keeper, NAME, b"/a", owner="me", timeout_s=1, lifetime_s=LONG_S) as held:
        for lease in open_keeper().leases(NAME):
            open_keeper().release(lease)  # as if it had run out while this process stood still
        take(open_keeper(), owner="the next")

        with pytest.raises(LeaseLostError):
            held.check()
    assert [lease.owner for lease in open_keeper().leases(NAME)] == ["the next"]


def test_waiting_ends_when_the_holder_is_done(open_keeper: Open) -> None:
    keeper = open_keeper()
    lease = take(keeper)
    timer = threading.Timer(0.2, keeper.release, [lease])
    timer.start()

    with holding(open_keeper(), NAME, b"", owner="me", timeout_s=20) as held:
        assert held.token > lease.token
    timer.join()


def test_waiting_ends_at_the_time_out(open_keeper: Open) -> None:
    take(open_keeper())
    waits: list[float] = []

    with pytest.raises(LockedError), holding(open_keeper(), NAME, b"", owner="me", timeout_s=5, wait=waits.append):
        pass

    assert sum(waits) == pytest.approx(5)


def test_of_many_one_holds_it_at_a_time(open_keeper: Open) -> None:
    inside: list[int] = []
    most: list[int] = []
    tokens: list[int] = []

    def work(number: int) -> None:
        keeper = open_keeper()
        for _ in range(4):
            with holding(keeper, NAME, b"/same", owner=str(number), timeout_s=60) as held:
                inside.append(number)
                most.append(len(inside))
                tokens.append(held.token)
                time.sleep(0.002)
                inside.pop()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))

    assert set(most) == {1}
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 16


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from fs.publish.file_leases import FileLeases\n"
        "FileLeases(Path(sys.argv[1])).acquire('leased.test', b'', 'the killed one', 3600)\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(LockedError, match="the killed one"):
            take(FileLeases(tmp_path))
        process.kill()
        process.wait(10)

    assert take(FileLeases(tmp_path)).token == 2


def test_the_machines_clocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/leases.db"
    take(SqlLeases.open(url), lifetime_s=LONG_S)
    monkeypatch.setattr(time, "time", lambda: 4e9)

    with pytest.raises(LockedError):
        take(SqlLeases.open(url))


def test_the_machines_clocks_do_not_matter_to_redis_either(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redis.Redis.from_url(redis_url).flushall()
    take(RedisLeases.open(redis_url), lifetime_s=LONG_S)
    monkeypatch.setattr(time, "time", lambda: 4e9)

    with pytest.raises(LockedError):
        take(RedisLeases.open(redis_url))


def test_a_keeper_that_does_not_answer_is_named() -> None:
    port = free_port()

    with pytest.raises(UnreachableError, match=str(port)):
        open_leases(f"redis://:secret@127.0.0.1:{port}/0")


@pytest.mark.parametrize("url", ["", "leases.db", "redis://host:port/0", "file:///nowhere/at/all", "gopher://x/y"])
def test_urls_that_name_no_keeper_are_refused(url: str) -> None:
    with pytest.raises(RefusedError):
        open_leases(url)


def test_no_url_is_no_keeper() -> None:
    assert keeper_of(None) is None


def test_a_damaged_table_is_not_made_anew(tmp_path: Path) -> None:
    take(FileLeases(tmp_path))
    (tmp_path / "leases.json").write_text("{")

    from fs.errors import MalformedError

    with pytest.raises(MalformedError, match="tokens"):
        take(FileLeases(tmp_path))


def test_databases_whose_clock_is_unknown_are_refused() -> None:
    from unittest.mock import Mock

    engine = Mock()
    engine.dialect.name = "oracle"

    with pytest.raises(RefusedError, match="oracle"):
        SqlLeases(engine)


def test_conflicts_follow_components() -> None:
    assert conflicts(b"", b"/a")
    assert conflicts(b"/a", b"")
    assert conflicts(b"/a", b"/a")
    assert not conflicts(b"/a", b"/ab")
