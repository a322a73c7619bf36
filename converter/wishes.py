"""What is wished, what registries hinted at, and which of them could be read: part of the farm's database."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from converter.errors import WishlistError
from converter.farm_database import FarmDatabase
from converter.farm_schema import hints, images, sources, wish_terms, wishes, wishlists
from converter.terms import USUAL, Terms
from converter.wish import Source, Wish
from converter.wishlist import Wishlist, parse_wishlist
from converter.wishlist_file import read_wishlist


@dataclass(frozen=True, slots=True)
class AppliedWishlist:
    """A wishlist as it was applied."""

    name: str
    repository: str
    applied_at: float
    wishes: tuple[Wish, ...]


@dataclass(frozen=True, slots=True)
class SourceState:
    """When a source was asked, and how it went."""

    source: Source
    checked_at: float
    read_at: float | None
    error: str | None


class WishStore:
    """Wishlists, hints and sources."""

    def __init__(self, database: FarmDatabase, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def apply(self, name: str, wishlist: Wishlist, body: str) -> bool:
        """Replace the wishlist *name* by *wishlist*; False if nothing changes. Images that exist already stay."""
        with self._database.write() as connection:
            old = connection.execute(sa.select(wishlists.c.body).where(wishlists.c.name == name)).scalar()
            if old == body:
                return False
            connection.execute(sa.delete(wishes).where(wishes.c.wishlist == name))
            connection.execute(sa.delete(wishlists).where(wishlists.c.name == name))
            connection.execute(
                sa.insert(wishlists).values(
                    name=name,
                    repository=wishlist.repository,
                    user_name=wishlist.user,
                    output_format=wishlist.output_format,
                    body=body,
                    applied_at=self._clock(),
                )
            )
            rows = [
                {
                    "wishlist": name,
                    "position": position,
                    "reference": wish.reference,
                    "registry": wish.registry,
                    "image_repository": wish.repository,
                }
                for position, wish in enumerate(wishlist.wishes)
            ]
            if rows:
                connection.execute(sa.insert(wishes), rows)
            self._add_terms(connection, name, wishlist)
            wished = sa.exists().where(
                wishes.c.registry == images.c.registry, wishes.c.image_repository == images.c.image_repository
            )
            connection.execute(sa.update(images).where(images.c.wished, ~wished).values(wished=False))
            self._add_hints(connection, {wish.source for wish in wishlist.wishes}, "wishlist")
        return True

    @staticmethod
    def _add_terms(connection: sa.Connection, name: str, wishlist: Wishlist) -> None:
        rows = []
        for position, wish in enumerate(wishlist.wishes):
            if wish.terms != USUAL:
                policy, platforms = wish.terms.encode()
                rows.append({"wishlist": name, "position": position, "policy": policy, "platforms": platforms})
        if rows:
            connection.execute(sa.insert(wish_terms), rows)

    def wishlists(self) -> list[AppliedWishlist]:
        """All wishlists, by name."""
        with self._database.read() as connection:
            lists = connection.execute(sa.select(wishlists).order_by(wishlists.c.name)).all()
            rows = connection.execute(_with_terms(wishes.c.wishlist).order_by(wishes.c.position)).all()
        return [
            AppliedWishlist(
                row.name,
                row.repository,
                row.applied_at,
                tuple(_wish(wish) for wish in rows if wish.wishlist == row.name),
            )
            for row in lists
        ]

    def sources(self) -> list[Source]:
        """Everything that is wished from."""
        query = sa.select(wishes.c.registry, wishes.c.image_repository).distinct()
        with self._database.read() as connection:
            return [Source(row.registry, row.image_repository) for row in connection.execute(query)]

    def wished(self, source: Source) -> list[Wish]:
        """What is wished from *source*, in the order of the wishlists; terms of several are joined."""
        query = (
            _with_terms()
            .where(wishes.c.registry == source.registry, wishes.c.image_repository == source.repository)
            .order_by(wishes.c.wishlist, wishes.c.position)
        )
        found: dict[Wish, Wish] = {}
        with self._database.read() as connection:
            for wish in map(_wish, connection.execute(query)):
                known = found.setdefault(wish, wish)
                found[wish] = replace(known, terms=known.terms.joined(wish.terms))
        return list(found.values())

    def requested(self, source: Source) -> list[Wish]:
        """Images of *source* that somebody asked for by name and that were not looked up yet."""
        query = sa.select(images.c.reference).where(
            images.c.requested,
            images.c.registry == source.registry,
            images.c.image_repository == source.repository,
        )
        with self._database.read() as connection:
            return [Wish.parse(text) for text in connection.execute(query).scalars()]

    def distrust(self, image_repository: str, tag: str | None) -> None:
        """What is known of *tag* (None: of any) in repositories of that name may be wrong: the next look asks for it.

        Of whichever registry: the one that tells so may call itself by another name.
        """
        which = [images.c.image_repository == image_repository, images.c.checked_at.is_not(None)]
        if tag is not None:
            which.append(images.c.name.endswith(f":{tag}", autoescape=True))
        with self._database.read() as connection:
            found = connection.execute(sa.select(images.c.id).where(*which)).scalars().all()
        if found:
            with self._database.write() as connection:
                connection.execute(sa.update(images).where(*which).values(checked_at=None))

    def add_hints(self, hinted: Iterable[Source], source: str) -> int:
        """Remember that something may have changed at the *hinted* sources, if they are wished; gives how many are.

        A registry often calls itself by another name than its users, so a hint whose registry is not known counts for
        each registry with a wished repository of that name. A hint costs a look and can do no harm.
        """
        wanted = set(hinted)
        names = {source.repository for source in wanted}
        query = sa.select(wishes.c.registry, wishes.c.image_repository).where(wishes.c.image_repository.in_(names))
        with self._database.read() as connection:
            known = {Source(row.registry, row.image_repository) for row in connection.execute(query)}
        chosen = {
            each
            for hint in wanted
            for each in ({hint} if hint in known else {s for s in known if s.repository == hint.repository})
        }
        if chosen:  # a flood of hints that are of no interest never waits for the lock
            with self._database.write() as connection:
                self._add_hints(connection, chosen, source)
        return len(chosen)

    def _add_hints(self, connection: sa.Connection, chosen: Iterable[Source], source: str) -> None:
        now = self._clock()
        rows = [
            {"registry": each.registry, "image_repository": each.repository, "source": source, "received_at": now}
            for each in sorted(chosen)
        ]
        if rows:
            connection.execute(self._database.insert(hints).on_conflict_do_nothing(), rows)

    def take_hints(self, *, except_for: Iterable[Source] = ()) -> list[Source]:
        """Remove and give all hints but those *except_for*, which wait."""
        waiting = set(except_for)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(hints.c.registry, hints.c.image_repository)).all()
        taken = [source for row in rows if (source := Source(row.registry, row.image_repository)) not in waiting]
        if taken:
            with self._database.write() as connection:
                for source in taken:
                    connection.execute(
                        sa.delete(hints).where(
                            hints.c.registry == source.registry, hints.c.image_repository == source.repository
                        )
                    )
        return taken

    def note_source(self, source: Source, error: str | None) -> None:
        """Remember that *source* was read just now, or why it could not be."""
        now = self._clock()
        values: dict[str, object] = {"checked_at": now, "error": error}
        if error is None:
            values["read_at"] = now
        with self._database.write() as connection:
            connection.execute(
                self._database.insert(sources)
                .values(registry=source.registry, image_repository=source.repository, **values)
                .on_conflict_do_update(index_elements=["registry", "image_repository"], set_=values)
            )

    def source_states(self) -> list[SourceState]:
        """All sources that were ever asked."""
        query = sa.select(sources).order_by(sources.c.registry, sources.c.image_repository)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            SourceState(Source(row.registry, row.image_repository), row.checked_at, row.read_at, row.error)
            for row in rows
        ]


def _with_terms(*columns: sa.ColumnElement[str]) -> sa.Select[tuple[str, ...]]:
    """Wishes, with the terms of those that have any of their own."""
    same = sa.and_(wish_terms.c.wishlist == wishes.c.wishlist, wish_terms.c.position == wishes.c.position)
    selected: sa.Select[tuple[str, ...]] = sa.select(
        wishes.c.reference, wish_terms.c.policy, wish_terms.c.platforms, *columns
    )
    return selected.select_from(wishes.outerjoin(wish_terms, same))


def _wish(row: sa.Row[tuple[str, ...]]) -> Wish:
    return Wish.parse(row.reference, terms=Terms.decode(row.policy, row.platforms))


def apply_file(wishes: WishStore, repository: str, path: Path) -> bool:
    """Apply the wishlist in file *path* under the file's name; False if nothing changes.

    Raises:
        WishlistError: it has mistakes, or is for another repository.
        SourceAbsentError: the file cannot be read.
    """
    return apply_text(wishes, repository, path.stem, read_wishlist(path))


def apply_text(wishes: WishStore, repository: str, name: str, body: bytes) -> bool:
    """Apply the wishlist *body* under *name*; False if nothing changes.

    Raises:
        WishlistError: it has mistakes, or is for another repository.
    """
    wishlist = parse_wishlist(body)
    if wishlist.repository != repository:
        raise WishlistError.for_other_repository(wishlist.repository, repository)
    return wishes.apply(name, wishlist, body.decode("utf-8-sig"))
