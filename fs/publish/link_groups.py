"""Hard links over several directories, when some of their names go: the others have to say that they are fewer.

The names of a group may lie in several catalogs. All of them were published in one tree, so they are below its root,
and the catalog there says so by a property: no group leads out of it. Where the property is missing (trees of earlier
versions) the root of the repository is the end.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

CLOSED = "unpackd_links_end_here"
"""Property of a catalog: groups with a name at or below its root have all their names there."""

_GROUPS = (  # 0 is none, see ``LINKS_SCHEMA``
    "SELECT link_group, linkcount, count(*) FROM unpackd_links WHERE link_group <> 0 GROUP BY link_group, linkcount"
)


@dataclass(slots=True)
class Departed:
    """How many names of which groups went, and how many there were."""

    gone: dict[int, int] = field(default_factory=dict)  # by group
    stated: dict[int, int] = field(default_factory=dict)

    def add(self, group: int, stated: int, names: int = 1) -> None:
        """So many *names* of *group*, which had *stated* in all, went."""
        self.gone[group] = self.gone.get(group, 0) + names
        self.stated[group] = stated

    def add_catalog(self, connection: sqlite3.Connection) -> None:
        """All names in a catalog went."""
        for group, stated, names in _rows(connection):
            self.add(group, stated, names)

    def left(self) -> dict[int, int]:
        """By group: how many names are left somewhere else, if any."""
        return {group: self.stated[group] - gone for group, gone in self.gone.items() if self.stated[group] > gone}


def names_in(connection: sqlite3.Connection, groups: Mapping[int, int]) -> dict[int, int]:
    """How many names of each of *groups* a catalog has, without those that it has none of."""
    return {group: names for group, _, names in _rows(connection) if group in groups}


def restate(connection: sqlite3.Connection, groups: Mapping[int, int]) -> None:
    """Let the names of *groups* in a catalog say how many there are; one alone is no link."""
    for group, names in groups.items():
        if names > 1:
            connection.execute("UPDATE unpackd_links SET linkcount = ? WHERE link_group = ?", (names, group))
        else:
            connection.execute("DELETE FROM unpackd_links WHERE link_group = ?", (group,))


def _rows(connection: sqlite3.Connection) -> list[tuple[int, int, int]]:
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'unpackd_links'").fetchone() is None:
        return []
    return connection.execute(_GROUPS).fetchall()
