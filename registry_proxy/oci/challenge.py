"""Challenges: what a registry wants before it answers."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Source: RFC 9110, section 11.2: a scheme, then token68 or comma-separated parameters, quoted or not.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # the grammar's word for a name
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*')
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:\s+|$|(?=,))")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")
_MAX_HEADER = 16384


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge; scheme and parameter names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Read all ``WWW-Authenticate`` *headers*; several challenges may share one. What cannot be read ends a header."""
    found: list[Challenge] = []
    for header in headers:
        found += _parse_header(header[:_MAX_HEADER])
    return tuple(found)


def _parse_header(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while position < len(text):
        scheme = _SCHEME.match(text, position)
        if scheme is None:
            break
        position = scheme.end()
        token68 = _TOKEN68.match(text, position)
        if token68 is not None:
            position = token68.end()
        parameters, position = _parse_parameters(text, position)
        found.append(Challenge(scheme[1].lower(), parameters))
        if position < len(text) and text[position] != ",":
            break
        position += 1
    return found


def _parse_parameters(text: str, position: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while (match := _PARAMETER.match(text, position)) is not None:
        name, quoted, plain = match.groups()
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        parameters.setdefault(name.lower(), value)
        position = match.end()
        following = text.find(",", position, position + 1)
        if following < 0 or _PARAMETER.match(text, following + 1) is None:
            break
        position = following + 1
    return parameters, position
