"""A farm without registries: a broker, real worker processes with a tiny converter, and the dispatcher."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from converter.app import Queue, make_app
from converter.broker import embedded_broker
from converter.dispatch import Dispatcher
from converter.farm_config import FarmSettings, farm_rules, sqlite_url
from converter.farm_database import FarmDatabase
from converter.farm_views import FarmViews, ImageView
from converter.job_rules import ImageState
from converter.jobs import JobStore
from converter.wish import Wish
from tests.support.processes import require_tool, running, wait_until

REPOSITORY = "unpacked.test.local"

# What a worker converts with here: every start leaves a line; then it waits for a file that lets it go on.
WORKER = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from converter.farm_config import FarmSettings
    from converter.jobs import Outcome
    from converter.tasks import run_worker

    folder = Path(sys.argv[1])

    def convert(claim, report):
        report({"phase": "waiting"})
        with (folder / "starts").open("a") as starts:
            print(claim.name, claim.attempt, os.getpid(), os.getppid(), file=starts, flush=True)
        if claim.name.endswith(":poison"):
            os.kill(os.getpid(), 9)
        while not (folder / "go").exists():
            time.sleep(0.02)
        return Outcome(changed=True, public_path="/" + claim.name, flat_path="/.flat", revision=2, details={})

    sys.exit(run_worker(FarmSettings.model_validate_json(sys.argv[2]), convert))
    """
)


@dataclass(slots=True)
class Farm:
    folder: Path
    settings: FarmSettings
    jobs: JobStore
    views: FarmViews
    dispatcher: Dispatcher
    blocks: ExitStack

    def start_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(self.folder), self.settings.model_dump_json()]
        worker = self.blocks.enter_context(running(command, self.folder / "worker.log"))
        self.blocks.callback(worker.kill)  # a clean end takes seconds, and has tests of its own
        return worker

    def wish(self, name: str, digit: str = "a") -> Wish:
        wish = Wish.parse(f"r.example/{name}")
        assert self.jobs.observe(REPOSITORY, {wish: "sha256:" + digit * 64}) == 1
        return wish

    def image(self, wish: Wish) -> ImageView:
        return self.views.image(wish.reference)

    def wait(self, ready: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        def ticked() -> bool:
            self.dispatcher.tick()
            return ready()

        wait_until(ticked, f"{what} (log: {self.folder / 'worker.log'})", timeout_s)

    def wait_for(self, wish: Wish, state: ImageState, timeout_s: float = 30) -> None:
        self.wait(lambda: self.image(wish).state is state, f"{wish.reference} becomes {state}", timeout_s)

    def starts(self) -> list[list[str]]:
        """Name, attempt, pool process and worker process of each start."""
        path = self.folder / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def farm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Farm]:
    """Over a private redis-server, or over files if the test is parametrized so."""
    kind = getattr(request, "param", "redis")
    if kind == "redis":
        require_tool("redis-server")
    with ExitStack() as blocks:
        broker = embedded_broker(tmp_path / "broker", program="redis-server" if kind == "redis" else "no-such-program")
        blocks.callback(broker.remove)
        if broker.command is not None and broker.socket is not None:
            blocks.enter_context(running(broker.command, tmp_path / "redis.log"))
            wait_until(broker.socket.exists, "the start of redis-server")
        yield blocks.enter_context(farm_over(broker.url, tmp_path))


@contextmanager
def farm_over(broker_url: str, folder: Path) -> Iterator[Farm]:
    """A farm whose queue is at *broker_url*, with its files in *folder*."""
    with ExitStack() as blocks:
        settings = FarmSettings(
            database_url=sqlite_url(folder / "farm.sqlite"),
            broker_url=broker_url,
            concurrency=1,
            max_attempts=3,
            heartbeat_s=0.2,
            stale_after_s=5,
        )
        database = FarmDatabase(settings.database_url)
        blocks.callback(database.close)
        jobs = JobStore(database, rules=replace(farm_rules(settings), resend_after_s=1))
        queue = Queue(make_app(settings.broker_url, deadline_s=settings.deadline_s))
        yield Farm(folder, settings, jobs, FarmViews(database), Dispatcher(jobs, queue), blocks)
