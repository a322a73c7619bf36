"""The history: a database of named tags, each of which keeps one revision reachable.

Works on a connection that the caller made. Source: CernVM-FS 2.12, history_sql.cc, history_sqlite.cc.
"""

import re
import sqlite3
from dataclasses import dataclass

from fs.errors import HashSyntaxError, MalformedError, RefusedError
from fs.format.columns import as_number, as_text
from fs.format.hashes import Hash

TRUNK = "trunk"
TRUNK_PREVIOUS = "trunk-previous"
MAGIC_TAGS = {TRUNK: "current HEAD", TRUNK_PREVIOUS: "default undo target"}
"""Tags that the publisher moves at each revision, with their descriptions."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,255}")

_SCHEMA = """
CREATE TABLE properties (key TEXT, value TEXT, CONSTRAINT pk_properties PRIMARY KEY (key));
CREATE TABLE branches (branch TEXT, parent TEXT, initial_revision INTEGER,
  CONSTRAINT pk_branch PRIMARY KEY (branch), FOREIGN KEY (parent) REFERENCES branches (branch),
  CHECK ((branch <> '') OR (parent IS NULL)), CHECK ((branch = '') OR (parent IS NOT NULL)));
CREATE TABLE tags (name TEXT, hash TEXT, revision INTEGER, timestamp INTEGER, channel INTEGER, description TEXT,
  size INTEGER, branch TEXT, CONSTRAINT pk_tags PRIMARY KEY (name),
  FOREIGN KEY (branch) REFERENCES branches (branch));
CREATE TABLE recycle_bin (hash TEXT, flags INTEGER, CONSTRAINT pk_hash PRIMARY KEY (hash));
INSERT INTO branches VALUES ('', NULL, 0);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A name for a revision."""

    name: str
    root_catalog: Hash
    revision: int
    published_unix_s: int
    size: int = 0  # bytes of the uncompressed root catalog; 0 if not recorded
    description: str = ""
    branch: str = ""


def check_tag_name(name: str) -> str:
    """*name*, if users may give it to a tag. Raises RefusedError."""
    if not _NAME.fullmatch(name):
        raise RefusedError(f"{name!r} cannot name a tag: letters, digits and - _ . : / can")
    if name in MAGIC_TAGS:
        raise RefusedError(f"the tag {name} is moved by every commit and cannot be set or removed")
    return name


def create_history(connection: sqlite3.Connection, repository: str) -> None:
    """Make the tables of a new history in an empty database."""
    connection.executescript(_SCHEMA)
    connection.executemany(
        "INSERT INTO properties VALUES (?, ?)", [("schema", "1.0"), ("schema_revision", "3"), ("fqrn", repository)]
    )


class History:
    """Tags in a database that is open elsewhere."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Check that *connection* is a history. Raises MalformedError."""
        self._db = connection
        try:
            columns = {as_text(row[1]) for row in connection.execute("PRAGMA table_info(tags)")}
        except sqlite3.DatabaseError as error:
            raise MalformedError(f"the history cannot be read: {error}") from error
        if not {"name", "hash", "revision", "timestamp"} <= columns:
            raise MalformedError("the history has no table of tags")
        # columns that came with later revisions of the schema
        extra = ", ".join(column if column in columns else "NULL" for column in ("size", "description", "branch"))
        self._select = f"SELECT name, hash, revision, timestamp, {extra} FROM tags"  # noqa: S608  # names of ours

    def tags(self) -> list[Tag]:
        """All tags, newest revision first. Raises MalformedError."""
        try:
            rows = self._db.execute(self._select).fetchall()
            found = [
                Tag(
                    name=as_text(name),
                    root_catalog=Hash.parse(as_text(digest)),
                    revision=int(revision),
                    published_unix_s=int(timestamp),
                    size=as_number(size or 0),
                    description=as_text(description or ""),
                    branch=as_text(branch or ""),
                )
                for name, digest, revision, timestamp, size, description, branch in rows
            ]
        except (sqlite3.DatabaseError, HashSyntaxError, TypeError, ValueError, OverflowError) as error:
            raise MalformedError(f"the history cannot be read: {error}") from error
        return sorted(found, key=lambda tag: (-tag.revision, tag.name))

    def tag(self, name: str) -> Tag | None:
        """The tag called *name*, or None. Raises MalformedError."""
        return next((tag for tag in self.tags() if tag.name == name), None)

    def branches(self) -> dict[str, int]:
        """Each branch with the first revision on it; the main line is called ''. Raises MalformedError."""
        try:
            rows = self._db.execute("SELECT branch, initial_revision FROM branches").fetchall()
        except sqlite3.DatabaseError:
            return {"": 0}  # schema revisions before 3
        try:
            return {as_text(branch): int(initial) for branch, initial in rows}
        except (TypeError, ValueError, OverflowError) as error:
            raise MalformedError(f"the branches of the history cannot be read: {error}") from error

    def put(self, tag: Tag) -> None:
        """Set *tag*, replacing one of the same name."""
        self._db.execute(
            "INSERT OR REPLACE INTO tags (name, hash, revision, timestamp, channel, description, size, branch)"
            " VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
            (
                tag.name,
                str(tag.root_catalog),
                tag.revision,
                tag.published_unix_s,
                tag.description,
                tag.size,
                tag.branch,
            ),
        )

    def remove(self, name: str) -> bool:
        """Remove the tag called *name*; False if there is none."""
        return self._db.execute("DELETE FROM tags WHERE name = ?", (name,)).rowcount > 0

    def set_previous(self, previous: Hash) -> None:
        """Record which history object came before this one."""
        self._db.execute("INSERT OR REPLACE INTO properties VALUES ('previous_revision', ?)", (str(previous),))
