r"""containerd's filter language, as List uses it. PURE.

A filter is a comma-separated list of selectors that must all match: ``fieldpath`` or ``fieldpath operator value``,
with the operators ``==``, ``!=`` and ``~=``. Parts of a field path and values may be quoted with ``"`` and Go's
escapes; the value of ``~=`` also with ``/`` or ``|``.

Source: containerd, ``filters/filter.go``, ``filters/parser.go``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from snapshotter.errors import FilterSyntaxError
from snapshotter.labels import SNAPSHOT_REF
from snapshotter.snapshots import Info

_FIELD = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_OPERATOR = re.compile(r"==|!=|~=")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_NAMED_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\"}
_PATTERN_LIMIT = 1024  # Python's matcher backtracks; a long pattern is never an honest one


class Operator(StrEnum):
    """How a selector compares."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """One condition on one field."""

    path: tuple[str, ...]
    operator: Operator
    value: str
    pattern: re.Pattern[str] | None = None

    def matches(self, info: Info) -> bool:
        """True if *info* fulfils the condition."""
        field = _field(info, self.path)
        match self.operator:
            case Operator.PRESENT:
                return field is not None
            case Operator.EQUAL:
                return field == self.value
            case Operator.NOT_EQUAL:
                return field != self.value
            case Operator.MATCHES:
                return field is not None and self.pattern is not None and self.pattern.search(field) is not None
            case _:
                assert_never(self.operator)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A list of filters: true for what matches any of them, and for everything if there are none."""

    filters: tuple[tuple[Selector, ...], ...]

    def matches(self, info: Info) -> bool:
        """True if *info* is to be listed."""
        return not self.filters or any(all(part.matches(info) for part in selectors) for selectors in self.filters)

    @property
    def required_reference(self) -> str | None:
        """The ``snapshot.ref`` label that every match must have, if there is just one; an index can find those."""
        wanted = {_reference(selectors) for selectors in self.filters}
        return wanted.pop() if len(wanted) == 1 else None


def parse_filters(texts: Iterable[str]) -> AnyOf:
    """Parse the filters of one List. Raises FilterSyntaxError."""
    return AnyOf(tuple(_Parser(text).selectors() for text in texts))


def _reference(selectors: Sequence[Selector]) -> str | None:
    """The value that one filter demands of the label ``snapshot.ref``."""
    for part in selectors:
        if part.operator is Operator.EQUAL and part.path[0] == "labels" and ".".join(part.path[1:]) == SNAPSHOT_REF:
            return part.value
    return None


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    """Value of the field *path*, None if *info* has no such field."""
    match path:
        case ("name",):
            return info.name
        case ("parent",):
            return info.parent
        case ("kind",):
            return info.kind.word
        case ("labels", *rest) if rest:
            return info.labels.get(".".join(rest))
        case _:
            return None


class _Parser:
    """A cursor in the text of one filter."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def selectors(self) -> tuple[Selector, ...]:
        """All selectors of the text; none matches everything."""
        found: list[Selector] = []
        if not self._peek():
            return ()
        while True:
            found.append(self._selector())
            if not self._peek():
                return tuple(found)
            self._expect(",")

    def _selector(self) -> Selector:
        path = [self._path_part()]
        while self._peek() == ".":
            self._position += 1
            path.append(self._path_part())
        self._peek()
        operator = _OPERATOR.match(self._text, self._position)
        if operator is None:
            return Selector(path=tuple(path), operator=Operator.PRESENT, value="")
        self._position = operator.end()
        chosen = Operator(operator[0])
        value = self._value(patterns=chosen is Operator.MATCHES)
        pattern = self._compiled(value) if chosen is Operator.MATCHES else None
        return Selector(path=tuple(path), operator=chosen, value=value, pattern=pattern)

    def _path_part(self) -> str:
        if self._peek() == '"':
            return self._quoted('"')
        field = _FIELD.match(self._text, self._position)
        if field is None:
            raise self._error("a field name is expected")
        self._position = field.end()
        return field[0]

    def _value(self, *, patterns: bool) -> str:
        quote = self._peek()
        if quote == '"' or (patterns and quote and quote in "/|"):
            return self._quoted(quote)
        start = self._position
        while self._position < len(self._text):
            character = self._text[self._position]
            if character == "," or character.isspace() or not character.isprintable():
                break
            self._position += 1
        if start == self._position:
            raise self._error("a value is expected")
        return self._text[start : self._position]

    def _quoted(self, quote: str) -> str:
        """The text up to the closing *quote*; in ``/`` and ``|`` quotes a backslash protects the quote only."""
        start = self._position
        end = start + 1
        while end < len(self._text) and self._text[end] != quote:
            end += 2 if self._text[end] == "\\" else 1
        if end >= len(self._text):
            raise self._error("a quote is not closed")
        self._position = end + 1
        inner = self._text[start + 1 : end]
        return self._unescaped(inner) if quote == '"' else inner.replace(f"\\{quote}", quote)

    def _unescaped(self, inner: str) -> str:
        if "\n" in inner:
            raise self._error("a quoted text holds a line break")
        return _ESCAPE.sub(self._character, inner)

    def _character(self, escape: re.Match[str]) -> str:
        for digits, base in ((escape[1], 16), (escape[2], 16), (escape[3], 16), (escape[4], 8)):
            if digits is not None:
                code = int(digits, base)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000 or (base == 8 and code > 0xFF):  # noqa: PLR2004
                    raise self._error("an escape is not a character")
                return chr(code)
        named = '"' if escape[5] == '"' else _NAMED_ESCAPES.get(escape[5])
        if named is None:
            raise self._error("an escape is unknown")
        return named

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        if len(pattern) > _PATTERN_LIMIT:
            raise self._error("the pattern is too long")
        try:
            return re.compile(pattern.replace(r"\z", r"\Z"), re.ASCII)
        except (re.error, OverflowError, RecursionError) as error:
            raise self._error(f"the pattern is not usable ({error})") from error

    def _peek(self) -> str:
        """The next character that is not white space, empty at the end."""
        while self._position < len(self._text) and self._text[self._position].isspace():
            self._position += 1
        return self._text[self._position : self._position + 1]

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._error(f"{character!r} is expected")
        self._position += 1

    def _error(self, reason: str) -> FilterSyntaxError:
        return FilterSyntaxError(self._text, reason, self._position + 1)
