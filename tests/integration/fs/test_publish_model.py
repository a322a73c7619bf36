"""Random operations on a real repository, compared with a dictionary that does the same."""

import stat
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from fs.errors import RefusedError
from fs.format.tree import Node
from fs.publish.catalogs import CatalogOptions
from fs.publish.check import CheckOptions, check_repository
from fs.publish.operations import Graft, MakeDirectory, Operation, PutFile, PutSymlink, Remove
from fs.publish.repository import Repository, Settings
from fs.publish.view import View
from fs.store.local import LocalStore

NAME = "published.test"
PATHS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4).map(lambda names: b"/" + b"/".join(names))
STEPS = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(["graft", "file", "link", "directory", "nested", "remove"]), PATHS, st.integers(0, 2)
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)
Model = dict[bytes, bytes | None]
"""Path to content; None is a directory."""


def apply_to_model(model: Model, kind: str, path: bytes, number: int) -> None:
    """The same as the operation, or RefusedError."""
    if kind == "remove":
        for known in [known for known in model if known == path or known.startswith(path + b"/")]:
            del model[known]
        return
    names = path.split(b"/")
    parents = [b"/".join(names[:count]) for count in range(2, len(names))]
    if any(model.get(parent) is not None for parent in parents):
        raise RefusedError("a file is no directory")
    is_directory = path in model and model[path] is None
    if kind in ("file", "link") and is_directory:
        raise RefusedError("a directory is not replaced")
    if kind in ("directory", "nested") and model.get(path) is not None:
        raise RefusedError("a file is no directory")
    model.update(dict.fromkeys(parents))
    if kind == "graft":
        apply_to_model(model, "remove", path, 0)
        model |= {path: None, path + b"/g": b"g%d" % number, path + b"/s": None, path + b"/s/h": b"h%d" % number}
    elif kind in ("directory", "nested"):
        model[path] = None
    else:
        model[path] = (b"f%d" if kind == "file" else b"l%d") % number


def operation(repository: Repository, kind: str, path: bytes, number: int) -> Operation:
    add = repository.ingester().add_bytes
    match kind:
        case "graft":
            regular = stat.S_IFREG | 0o644
            inner = Node(mode=stat.S_IFDIR | 0o755, children={b"h": Node(mode=regular, content=add(b"h%d" % number))})
            tree = Node(mode=stat.S_IFDIR | 0o755, children={b"s": inner})
            tree.children[b"g"] = Node(mode=regular, content=add(b"g%d" % number))
            return Graft(path, repository.prepare_subtree(path, tree))
        case "file":
            return PutFile(path, add(b"f%d" % number))
        case "link":
            return PutSymlink(path, b"l%d" % number)
        case "remove":
            return Remove(path)
        case _:
            return MakeDirectory(path, nested=kind == "nested")


def contents(view: View, path: bytes = b"") -> Model:
    found: Model = {}
    for entry in view.list(path):
        here = path + b"/" + entry.name
        if entry.is_directory:
            found[here] = None
            found |= contents(view, here)
        else:
            found[here] = view.readlink(here) if entry.is_symlink else view.read(here, 100)
    return found


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_a_repository_does_what_a_dictionary_does(made_keys: Path, steps: list[list[tuple[str, bytes, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        chosen = Settings(catalogs=CatalogOptions(most_rows=3, least_rows=1, threads=1))
        repository = Repository.create(NAME, f"{folder}/storage", made_keys, settings=chosen, durable=False)
        model: Model = {}
        for step in steps:
            wanted = dict(model)
            try:
                for kind, path, number in step:
                    apply_to_model(wanted, kind, path, number)
            except RefusedError:
                wanted = model
            before = repository.revision
            try:
                commit = repository.commit([operation(repository, *each) for each in step])
                assert commit.revision == before + commit.changed
            except RefusedError:
                assert wanted is model
            assert contents(repository.view()) == wanted
            model = wanted
        options = CheckOptions(now=datetime.now(UTC), threads=1)
        findings = check_repository(LocalStore(Path(folder) / "storage"), options).findings
        assert [finding for finding in findings if not finding.is_note] == []
