"""Names of wished images, as wishlists have them. PURE."""

import re
from dataclasses import dataclass, field
from typing import Self

from converter.errors import WishSyntaxError
from converter.terms import USUAL, Terms

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::([0-9]{1,5}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_MAX_PORT = 65535
_MAX_REPOSITORY_LENGTH = 255
_MAX_SHOWN = 200


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One repository of one registry: what is looked at in one go."""

    registry: str
    repository: str


@dataclass(frozen=True, slots=True)
class Wish:
    """One wanted image, or all images of a repository whose tag matches a pattern.

    Source: distribution project, reference grammar; CernVM-FS 2.12, DUCC, names of images.
    """

    registry: str
    repository: str
    tag: str | None = None  # may hold ``*``
    digest: str | None = None
    scheme: str | None = None  # None where the text has none
    line: int = field(default=0, compare=False)
    terms: Terms = field(default=USUAL, compare=False)

    @classmethod
    def parse(cls, text: str, *, line: int = 0, terms: Terms = USUAL) -> Self:
        """Read ``[http[s]://]registry/repository[:tag][@digest]``.

        Raises:
            WishSyntaxError: the text is no such name; the message says what is wrong.
        """
        scheme, rest = _split_scheme(text)
        rest, at, digest = rest.partition("@")
        if at and _DIGEST.fullmatch(digest) is None:
            raise WishSyntaxError(f"{shown_text(digest)} is not a digest: sha256: and 64 hexadecimal digits")
        registry, slash, path = rest.partition("/")
        if not slash:
            raise WishSyntaxError(f"{shown_text(text)} names no repository: write registry/repository:tag")
        _check_registry(registry, text, scheme)
        path, colon, tag = path.partition(":")
        path = path.strip("/")  # as DUCC does
        _check_repository(path, text)
        if colon:
            _check_tag(tag)
        elif not at:
            raise WishSyntaxError(f"{shown_text(text)} has neither a tag nor a digest: add a tag such as :latest")
        if at and "*" in tag:
            raise WishSyntaxError("a digest names one image, so its tag cannot hold *")
        return cls(registry, path, tag if colon else None, digest if at else None, scheme, line, terms)

    @property
    def source(self) -> Source:
        """Where the image is."""
        return Source(self.registry, self.repository)

    @property
    def is_pattern(self) -> bool:
        """True if the wish stands for every tag that matches."""
        return self.tag is not None and "*" in self.tag

    @property
    def simple_name(self) -> str:
        """Registry, repository and tag (the digest if there is no tag): the name under which people find the image."""
        return f"{self.registry}/{self.repository}:{self.tag or self.digest}"

    @property
    def reference(self) -> str:
        """The whole name, with scheme and digest as far as they were written."""
        scheme = f"{self.scheme}://" if self.scheme else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{scheme}{self.registry}/{self.repository}{tag}{digest}"

    def with_tag(self, tag: str) -> "Wish":
        """The wish for one tag that the pattern matches."""
        return Wish(self.registry, self.repository, tag, None, self.scheme, self.line, self.terms)

    def matches(self, tag: str) -> bool:
        """True if *tag* is one that is wished: ``*`` stands for any characters, everything else for itself."""
        return self.tag is not None and matches_pattern(self.tag, tag)


def matches_pattern(pattern: str, text: str) -> bool:
    """Compare without a regular expression: time stays linear for any number of stars.

    DUCC turns ``*`` into ``.*`` and leaves the rest unescaped, so that its ``.`` matches any character; here a dot is
    a dot.
    """
    first, *pieces = pattern.split("*")
    if not pieces:
        return text == first
    last = pieces.pop()
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for piece in pieces:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def _split_scheme(text: str) -> tuple[str | None, str]:
    match = _SCHEME.match(text)
    if match is None:
        return None, text
    scheme = match[1].lower()
    if scheme not in ("http", "https"):
        raise WishSyntaxError(f"the scheme {shown_text(match[1])} is not known: write https:// (or http://), or none")
    return scheme, text[match.end() :]


def _check_registry(registry: str, text: str, scheme: str | None) -> None:
    match = _HOST.fullmatch(registry)
    if match is None or (match[1] is not None and int(match[1]) > _MAX_PORT) or ".." in registry:
        raise WishSyntaxError(
            f"{shown_text(registry)} is not the name of a registry, such as registry.example.org:5000"
        )
    if scheme is None and registry != "localhost" and not any(c in registry for c in ".:"):
        raise WishSyntaxError(
            f"{shown_text(registry)} does not look like a registry: there is no default registry, write its name "
            f"(docker.io/{shown_text(text)[1:-1]}) or a scheme (https://{registry}/…)"
        )


def _check_repository(path: str, text: str) -> None:
    if not path:
        raise WishSyntaxError(f"{shown_text(text)} names no repository: write registry/repository:tag")
    if "*" in path:
        raise WishSyntaxError("* stands for tags only, not for repositories")
    if len(path) > _MAX_REPOSITORY_LENGTH:
        raise WishSyntaxError(f"the repository's name is longer than {_MAX_REPOSITORY_LENGTH} characters")
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component) is None:
            raise WishSyntaxError(
                f"{shown_text(component)} is not part of a repository's name: lower-case letters and digits, with "
                "single . _ or - between them"
            )


def _check_tag(tag: str) -> None:
    if "*" in tag and _PATTERN.fullmatch(tag):
        return
    if _TAG.fullmatch(tag) is None:
        hint = " (a pattern knows only *)" if any(c in tag for c in "?[](){}|+^$") else ""
        raise WishSyntaxError(f"{shown_text(tag)} is not a tag: letters, digits, _ . -, at most 128{hint}")


def shown_text(text: str) -> str:
    """*text* in quotes with everything that does not print escaped, and not too long."""
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
