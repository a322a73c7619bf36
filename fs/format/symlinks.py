"""Targets of symbolic links: variables, and how a target that only looks like one is kept verbatim.

The format replaces ``$(NAME)`` and ``$(NAME:-default)`` in a target by a variable of the reader's environment. A target
of an image that happens to hold ``$(`` must come out as it is. So a writer stores ``$(UNPACKD_LITERAL:-$()`` for
``$(``: every reader of the format expands that to its default, ``$(``, and does not look at the result again.
Source: CernVM-FS 2.12, catalog_sql.cc (``ExpandSymlink``).
"""

from collections.abc import Mapping

_OPENING = b"$("
_LITERAL = b"$(UNPACKD_LITERAL:-$()"


def encode_literal(target: bytes) -> bytes:
    """What is stored so that readers see *target* itself. Targets without ``$(`` stay as they are."""
    if _OPENING not in target:
        return target
    head, closing, tail = target.rpartition(b")")
    # what is never closed is not a variable: readers copy it
    return head.replace(_OPENING, _LITERAL) + closing + tail


def decode_literal(stored: bytes) -> bytes:
    """Inverse of ``encode_literal``; true variables of other writers stay as they are written."""
    return stored.replace(_LITERAL, _OPENING)


def expand_target(stored: bytes, variables: Mapping[bytes, bytes]) -> bytes:
    """The target as a reader with *variables* in its environment shows it."""
    expanded = bytearray()
    position = 0
    while (opening := stored.find(_OPENING, position)) >= 0:
        expanded += stored[position:opening]
        if stored.startswith(_LITERAL, opening):
            expanded += _OPENING
            position = opening + len(_LITERAL)
            continue
        closing = stored.find(b")", opening + len(_OPENING))
        if closing < 0:
            position = opening
            break
        name, _, default = stored[opening + len(_OPENING) : closing].partition(b":-")
        expanded += variables.get(name, default)
        position = closing + 1
    return bytes(expanded + stored[position:])
