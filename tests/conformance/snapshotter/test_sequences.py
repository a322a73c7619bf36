"""Random sequences of operations on the socket, killed and restarted in between, beside a model that says what must be.

The model is the contract in a few dictionaries: what exists, on what it stands, what its labels are, what was written.
Each answer of the service, good or bad, is compared with it, and after each step so is everything that can be seen.
``make snapshotter-sequences`` runs 500 sequences.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from snapshotter._proto import snapshots_pb2
from snapshotter.snapshots import chain_ids
from tests.support.processes import wait_until
from tests.support.snapshotter import REF, FakeRepository, Service, SnapshotsClient

SEQUENCES = int(os.environ.get("UNPACKD_SEQUENCES", "12"))
STEPS = 40
Code = grpc.StatusCode
Labels = dict[str, str]
VIEW, ACTIVE, COMMITTED = snapshots_pb2.VIEW, snapshots_pb2.ACTIVE, snapshots_pb2.COMMITTED
WORDS = {VIEW: "view", ACTIVE: "active", COMMITTED: "committed"}


def _diff(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


EMPTY, TOP = _diff("empty"), _diff("top")
IMAGES = (  # one empty layer twice in a row, and one layer on two different parents
    (_diff("base"), EMPTY, EMPTY, TOP),
    (_diff("other"), TOP),
    (EMPTY, TOP),
)
CHAINS = tuple(dict.fromkeys(chain for image in IMAGES for chain in chain_ids(image)))
PARENT_OF: Mapping[str, str | None] = {
    chain: chains[number - 1] if number else None
    for image in IMAGES
    for chains in [chain_ids(image)]
    for number, chain in enumerate(chains)
}
ABSENT = _diff("in no repository")
KEYS = ("default/1/web", "default/2/job", "k8s.io/3/web", "moby/4/" + "x" * 60, "a b,c:d\\e")
NAMES = (*KEYS, "default/5/base", f"default/6/{CHAINS[0]}", f"k8s.io/7/{CHAINS[0]}", CHAINS[0], CHAINS[1], CHAINS[-1])
LABELS = ("containerd.io/snapshot/a", "containerd.io/gc.root", "l")

some_name = st.sampled_from(NAMES)
some_parent = st.sampled_from(("", "", *NAMES))
some_labels = st.dictionaries(st.sampled_from(LABELS), st.sampled_from(("", "1", 'two "words"')), max_size=2)


@dataclass(frozen=True)
class Known:
    """A snapshot as the model knows it."""

    kind: int
    parent: str
    labels: Labels
    chain: str | None = None  # of one that is served
    mounts: tuple[Any, ...] = ()
    directory: Path | None = None  # of one that is not
    files: Mapping[str, str] = field(default_factory=dict)
    created: int = 0


class Sequences(RuleBasedStateMachine):
    """One sequence; the service and its directory are those of the sequences before, emptied."""

    def __init__(self, running: "Running") -> None:
        super().__init__()
        self.running = running
        self.known: dict[str, Known] = {}
        running.empty()

    @property
    def client(self) -> SnapshotsClient:
        return self.running.client

    # what the contract says

    def refusal_of_place(self, key: str, parent: str) -> Code | None:
        if parent and parent not in self.known:
            return Code.NOT_FOUND
        if parent and self.known[parent].kind != COMMITTED:
            return Code.INVALID_ARGUMENT
        return Code.ALREADY_EXISTS if key in self.known else None

    def refusal_of_commit(self, name: str, key: str, parent: str) -> Code | None:
        active = self.known.get(key)
        if name in self.known:
            return Code.ALREADY_EXISTS
        if active is None:
            return Code.NOT_FOUND
        if active.kind != ACTIVE:
            return Code.FAILED_PRECONDITION
        return self.refusal_of_rebase(active, parent)

    def refusal_of_rebase(self, active: Known, parent: str) -> Code | None:
        if not parent or parent == active.parent:
            return None
        if active.parent:
            return Code.INVALID_ARGUMENT
        if parent not in self.known:
            return Code.NOT_FOUND
        return None if self.known[parent].kind == COMMITTED else Code.FAILED_PRECONDITION

    def served(self, chain: str, parent: str) -> list[str]:
        return [
            name
            for name, one in self.known.items()
            if one.chain == chain and one.parent == parent and one.labels[REF] == chain
        ]

    def holds(self, parent: str, chain: str | None) -> bool:
        """True if *parent* is known to hold *chain*."""
        if not parent or chain is None:
            return not parent and chain is None
        one = self.known[parent]
        return one.chain == chain if one.chain else chain in (parent.rpartition("/")[2], one.labels.get(REF))

    # what is done

    @rule(key=some_name, parent=some_parent, labels=some_labels)
    def prepare(self, key: str, parent: str, labels: Labels) -> None:
        with refused(self.refusal_of_place(key, parent)):
            self.add(key, ACTIVE, parent, labels, self.client.prepare(key, parent, labels))

    @rule(key=some_name, parent=some_parent, labels=some_labels)
    def view(self, key: str, parent: str, labels: Labels) -> None:
        with refused(self.refusal_of_place(key, parent)):
            self.add(key, VIEW, parent, labels, self.client.view(key, parent, labels))

    @rule(key=some_name, chain=st.sampled_from((*CHAINS, ABSENT)), parent=some_parent, labels=some_labels)
    def ask(self, key: str, chain: str, parent: str, labels: Labels) -> None:
        """Prepare as a puller does, on whatever parent."""
        self.asked(key, chain, parent, labels)

    def asked(self, key: str, chain: str, parent: str, labels: Labels) -> None:
        labels = {**labels, REF: chain}
        refusal = self.refusal_of_place(key, parent)
        is_served = refusal is None and (
            bool(self.served(chain, parent)) or (chain in PARENT_OF and self.holds(parent, PARENT_OF[chain]))
        )
        with refused(Code.ALREADY_EXISTS if is_served else refusal):
            self.add(key, ACTIVE, parent, labels, self.client.prepare(key, parent, labels))
        if is_served and not self.served(chain, parent):
            found = [info for info in self.target(chain, parent) if info.name not in self.known]
            assert len(found) == 1, "containerd finds exactly one new snapshot"
            assert (found[0].name == chain) == (chain not in self.known)
            self.known[found[0].name] = Known(
                COMMITTED, parent, nonempty(labels), chain=chain, created=found[0].created_at.ToNanoseconds()
            )

    @rule(image=st.sampled_from(IMAGES), namespace=st.sampled_from(("default/8/", "k8s.io/9/")))
    def pull(self, image: tuple[str, ...], namespace: str) -> None:
        """The whole of an image, each layer on what containerd found for the one below."""
        parent = ""
        for number, chain in enumerate(chain_ids(image)):
            self.asked(f"{namespace}extract-{number}", chain, parent, {})
            (parent, *_) = self.served(chain, parent)

    @rule(name=some_name, key=some_name, parent=some_parent, labels=some_labels)
    def commit(self, name: str, key: str, parent: str, labels: Labels) -> None:
        with refused(self.refusal_of_commit(name, key, parent)):
            self.client.commit(name, key, parent, labels)
            active = self.known.pop(key)
            self.known[name] = replace(
                active,
                kind=COMMITTED,
                parent=parent or active.parent,
                labels=nonempty(labels),
                mounts=(),
                created=self.client.stat(name).created_at.ToNanoseconds(),
            )

    @rule(name=some_name)
    def remove(self, name: str) -> None:
        refusal = None
        if name not in self.known:
            refusal = Code.NOT_FOUND
        elif any(one.parent == name for one in self.known.values()):
            refusal = Code.FAILED_PRECONDITION
        with refused(refusal):
            self.client.remove(name)
            del self.known[name]

    @rule(name=some_name, labels=some_labels, keys=st.none() | st.lists(st.sampled_from(LABELS), max_size=2))
    def update(self, name: str, labels: Labels, keys: list[str] | None) -> None:
        before = self.known.get(name)
        reference = before.labels.get(REF) if before is not None else None
        if reference is not None and not keys:
            labels = {**labels, REF: reference}  # containerd never takes it away
        paths = ["labels"] if keys is None else [f"labels.{key}" for key in keys]
        with refused(Code.NOT_FOUND if before is None else None):
            info = self.client.update(name, labels, *paths, parent="whatever")
            assert before is not None
            after = before.labels | {key: labels.get(key, "") for key in keys} if keys else labels
            self.known[name] = replace(before, labels=nonempty(after))
            assert info.updated_at.ToNanoseconds() >= info.created_at.ToNanoseconds()

    @rule(name=some_name, field_name=st.sampled_from(("parent", "kind", "name", "labels.")))
    def update_of_what_never_changes(self, name: str, field_name: str) -> None:
        with refused(Code.INVALID_ARGUMENT if name in self.known else Code.NOT_FOUND):
            self.client.update(name, {}, field_name)

    @rule(name=some_name, file=st.sampled_from(("f", "g")), text=st.text("xyz", min_size=1, max_size=5))
    def write(self, name: str, file: str, text: str) -> None:
        """A container writes into its layer."""
        one = self.known.get(name)
        if one is not None and one.kind == ACTIVE and one.directory is not None:
            (one.directory / file).write_text(text)
            self.known[name] = replace(one, files={**one.files, file: text})

    @rule(name=some_name)
    def usage(self, name: str) -> None:
        with refused(None if name in self.known else Code.NOT_FOUND):
            usage = self.client.usage(name)
            one = self.known[name]
            if one.directory is not None and one.kind != VIEW:
                assert usage.inodes == 1 + len(one.files)
                assert usage.size >= 512 * len(one.files)

    @rule(name=some_name)
    def mounts(self, name: str) -> None:
        refusal = None
        if name not in self.known:
            refusal = Code.NOT_FOUND
        elif self.known[name].kind == COMMITTED:
            refusal = Code.FAILED_PRECONDITION
        with refused(refusal):
            assert tuple(self.client.mounts(name)) == self.known[name].mounts

    @rule(label=st.sampled_from(LABELS), kind=st.sampled_from((VIEW, ACTIVE, COMMITTED)), parent=some_parent)
    def filters(self, label: str, kind: int, parent: str) -> None:
        quoted = parent.replace("\\", "\\\\")
        asked = {
            f"kind=={WORDS[kind]}": lambda one: one.kind == kind,
            f'labels."{label}"': lambda one: label in one.labels,
            f'labels."{label}"=="1",parent=="{quoted}"': lambda one: (
                one.labels.get(label) == "1" and one.parent == parent
            ),
            f'labels."{label}"!="1"': lambda one: one.labels.get(label) != "1",
        }
        for text, matches in asked.items():
            assert self.names(text) == {name for name, one in self.known.items() if matches(one)}, text
        both = list(asked)[:2]
        assert self.names(*both) == self.names(both[0]) | self.names(both[1])

    @rule()
    def cleanup(self) -> None:
        self.client.cleanup()
        root = self.running.service.root
        ordinary = [one for one in self.known.values() if one.chain is None]
        assert len(os.listdir(root / "s")) == len(ordinary)
        assert os.listdir(root / "t") == []

    @rule()
    def kill(self) -> None:
        """SIGKILL, and another start over the same directory."""
        self.running.restart()

    # what must be true at any time

    @invariant()
    def all_is_seen_as_it_is(self) -> None:
        infos = {info.name: info for info in self.client.list()}
        assert infos.keys() == self.known.keys()
        for name, one in self.known.items():
            info = infos[name]
            assert (info.kind, info.parent, dict(info.labels)) == (one.kind, one.parent, one.labels)
            assert info.created_at.ToNanoseconds() == one.created

    @invariant()
    def nothing_written_is_lost(self) -> None:
        for one in self.known.values():
            if one.directory is not None:
                assert {path.name: path.read_text() for path in one.directory.iterdir()} == one.files

    @invariant()
    def lower_directories_lead_to_content(self) -> None:
        for one in self.known.values():
            for mounted in one.mounts:
                for option in mounted.options:
                    if option.startswith("lowerdir="):
                        lowers = option.removeprefix("lowerdir=").split(":")
                        assert all(Path(lower).is_dir() for lower in lowers)
                        assert len(lowers) == self.depth(one.parent)

    def depth(self, name: str) -> int:
        """How many directories lie below a child of *name*."""
        count = 0
        while name:
            one = self.known[name]
            count += 1
            if one.chain in self.running.whole:
                break
            name = one.parent
        return count

    def teardown(self) -> None:
        self.all_is_seen_as_it_is()

    # small things

    def add(self, key: str, kind: int, parent: str, labels: Labels, mounts: list[Any]) -> None:
        (mount,) = mounts
        directory = upper(mount) if kind == ACTIVE else None
        if directory is not None:
            assert os.listdir(directory) == []
            assert directory.stat().st_mode & 0o777 == 0o755
        info = self.client.stat(key)
        assert info.created_at == info.updated_at
        self.known[key] = Known(
            kind, parent, nonempty(labels), None, (mount,), directory, created=info.created_at.ToNanoseconds()
        )

    def names(self, *filters: str) -> set[str]:
        return {info.name for info in self.client.list(*filters)}

    def target(self, chain: str, parent: str) -> list[Any]:
        quoted = parent.replace("\\", "\\\\")
        return [
            info for info in self.client.list(f'labels."{REF}"=={chain},parent=="{quoted}"') if info.kind == COMMITTED
        ]


def upper(mount: Any) -> Path:  # noqa: ANN401
    """Where a container writes."""
    if mount.type == "bind":
        return Path(mount.source)
    (option,) = [option for option in mount.options if option.startswith("upperdir=")]
    return Path(option.removeprefix("upperdir="))


def nonempty(labels: Mapping[str, str]) -> Labels:
    return {key: value for key, value in labels.items() if value}


@contextmanager
def refused(code: Code | None) -> Iterator[None]:
    """The call in the block ends with *code*; None: it succeeds."""
    if code is None:
        yield
        return
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()


class Running:
    """The service under test, which is killed and started again.

    A process that has all modules loaded forks it: a start then takes a tenth of the time, and is the same otherwise.
    """

    def __init__(self, service: Service, repository: FakeRepository, starter: "subprocess.Popen[str]") -> None:
        self.service = service
        self._starter = starter
        self.client = SnapshotsClient(service.address)
        self.restarts = 0
        contents = {EMPTY: {}, TOP: {"top": "1"}, _diff("base"): {"base": "1"}, _diff("other"): {"other": "1"}}
        for image in IMAGES:
            repository.add_chain(image, [contents[diff] for diff in image])
        self.whole = {chain_ids(IMAGES[0])[-1]}
        for chain in self.whole:
            repository.add_flat(chain, {"base": "1", "top": "1"})
        self._tell("start")

    def restart(self) -> None:
        self._tell("kill")
        self._tell("start")
        self.restarts += 1

    def _tell(self, word: str) -> None:
        assert self._starter.stdin is not None
        assert self._starter.stdout is not None
        self._starter.stdin.write(word + "\n")
        self._starter.stdin.flush()
        assert self._starter.stdout.readline() == word + "\n", self.service.log.read_text()
        if word == "start":
            wait_until(self._answers, "the start of the snapshotter")

    def _answers(self) -> bool:
        try:
            self.client.list("name==nothing")
        except grpc.RpcError:
            return False
        return True

    def empty(self) -> None:
        """Remove everything that the sequence before has left."""
        while infos := self.client.list():
            for info in infos:
                with suppress(grpc.RpcError):
                    self.client.remove(info.name)
        self.client.cleanup()


STARTER = """
import os, signal, sys
import snapshotter.server, unpackd
pid = 0
for line in sys.stdin:
    if line == "start\\n":
        pid = os.fork()
        if not pid:
            sys.exit(unpackd.main())
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sys.stdout.write(line)
    sys.stdout.flush()
if pid:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


@contextmanager
def started_starter(service: Service) -> Iterator["subprocess.Popen[str]"]:
    """What starts and kills the service; both end with the block."""
    arguments = [str(argument) for argument in service.command[1:]]
    with service.log.open("a") as log:
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with starter:
        yield starter


def test_random_sequences(own_service: tuple[Service, FakeRepository]) -> None:
    service, repository = own_service
    config = service.folder / "c.toml"
    config.write_text('[snapshotter]\nrootfs = "fuse"\n')
    service.options = ("--config", str(config))
    with started_starter(service) as starter:
        running = Running(service, repository, starter)
        run_state_machine_as_test(
            lambda: Sequences(running),
            settings=settings(
                max_examples=SEQUENCES,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            ),
        )
        print(f"{SEQUENCES} sequences, {running.restarts} kills")
