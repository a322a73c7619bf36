import sqlite3

import pytest

from fs.errors import MalformedError, RefusedError
from fs.format.hashes import Algorithm, Hash
from fs.format.history import History, Tag, check_tag_name, create_history
from fs.format.reflog import ReferenceType, add_references, create_reflog, references

ROOT = Hash(b"r" * 20, Algorithm.RMD160)


def tag(name: str, revision: int) -> Tag:
    return Tag(name=name, root_catalog=ROOT, revision=revision, published_unix_s=7, size=9, description="d")


@pytest.fixture
def connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def test_tags_come_back_newest_first(connection: sqlite3.Connection) -> None:
    create_history(connection, "a.test")
    history = History(connection)
    for each in (tag("one", 1), tag("three", 3), tag("two", 2)):
        history.put(each)

    assert history.tags() == [tag("three", 3), tag("two", 2), tag("one", 1)]
    assert history.branches() == {"": 0}


def test_a_tag_is_moved_and_removed(connection: sqlite3.Connection) -> None:
    create_history(connection, "a.test")
    history = History(connection)
    history.put(tag("x", 1))
    history.put(tag("x", 2))

    assert history.tag("x") == tag("x", 2)
    assert history.remove("x")
    assert not history.remove("x")
    assert history.tag("x") is None


@pytest.mark.parametrize("name", ["", "a b", "trunk", "trunk-previous", "ä", "a\n"])
def test_names_that_users_cannot_give(name: str) -> None:
    with pytest.raises(RefusedError):
        check_tag_name(name)


def test_what_is_no_history_is_refused(connection: sqlite3.Connection) -> None:
    with pytest.raises(MalformedError):
        History(connection)


def test_the_reflog_keeps_the_newest_time(connection: sqlite3.Connection) -> None:
    create_reflog(connection, "a.test")
    add_references(connection, [(ReferenceType.CATALOG, ROOT), (ReferenceType.HISTORY, Hash(b"h" * 20))], 5)
    add_references(connection, [(ReferenceType.CATALOG, ROOT)], 8)

    assert references(connection) == {
        ROOT: (ReferenceType.CATALOG, 8),
        Hash(b"h" * 20): (ReferenceType.HISTORY, 5),
    }


def test_a_damaged_reflog_is_malformed(connection: sqlite3.Connection) -> None:
    create_reflog(connection, "a.test")
    connection.execute("INSERT INTO refs VALUES ('no hash', 0, 0)")

    with pytest.raises(MalformedError):
        references(connection)
