"""Wishlists: which images are wanted, and in which repository. PURE.

Version 1 is DUCC's recipe, unchanged. Every mistake of a text is found in one go and carries its line and column.

Source: CernVM-FS 2.12, documentation of DUCC, "Image Wishlist"; the names of images as DUCC reads them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

import yaml

from converter.farm_errors import Mistake, WishlistError, WishSyntaxError

SIZE_LIMIT_BYTES = 1 << 20
_DEPTH_LIMIT = 8  # a wishlist has two levels; the composer of libyaml recurses
_SUPPORTED_VERSION = 1
_KEYS = ("version", "user", "cvmfs_repo", "output_format", "input")
_REQUIRED = ("cvmfs_repo", "input")
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same rules, ten times as quick

_STRING, _INTEGER, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:null"
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::([0-9]{1,5}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
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

    @classmethod
    def parse(cls, text: str, *, line: int = 0) -> Self:
        """Read ``[http[s]://]registry/repository[:tag][@digest]``.

        Raises:
            WishSyntaxError: the text is no such name; the message says what is wrong.
        """
        scheme, rest = _split_scheme(text)
        rest, at, digest = rest.partition("@")
        if at and _DIGEST.fullmatch(digest) is None:
            raise WishSyntaxError(f"{_shown(digest)} is not a digest: sha256: and 64 hexadecimal digits")
        registry, slash, path = rest.partition("/")
        if not slash:
            raise WishSyntaxError(f"{_shown(text)} names no repository: write registry/repository:tag")
        _check_registry(registry, text, scheme)
        path, colon, tag = path.partition(":")
        path = path.strip("/")  # as DUCC does
        _check_repository(path, text)
        if colon:
            _check_tag(tag)
        elif not at:
            raise WishSyntaxError(f"{_shown(text)} has neither a tag nor a digest: add a tag such as :latest")
        if at and "*" in tag:
            raise WishSyntaxError("a digest names one image, so its tag cannot hold *")
        return cls(registry, path, tag if colon else None, digest if at else None, scheme, line)

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
        return Wish(self.registry, self.repository, tag, None, self.scheme, self.line)

    def matches(self, tag: str) -> bool:
        """True if *tag* is one that is wished: ``*`` stands for any characters, everything else for itself."""
        return self.tag is not None and matches_pattern(self.tag, tag)


@dataclass(frozen=True, slots=True)
class Wishlist:
    """A wishlist without mistakes. The same image written twice is wished once."""

    repository: str  # cvmfs_repo
    wishes: tuple[Wish, ...]
    user: str = ""
    output_format: str = ""
    version: int = _SUPPORTED_VERSION


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


def parse_wishlist(text: bytes) -> Wishlist:
    """Read a wishlist.

    Raises:
        WishlistError: with every mistake of the text.
    """
    if len(text) > SIZE_LIMIT_BYTES:
        raise WishlistError([Mistake(1, 1, f"the file has more than the {SIZE_LIMIT_BYTES} bytes that are allowed")])
    return _Reader().read(_composed(_decoded(text)))


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = text[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise WishlistError([Mistake(line, column, "this byte is not UTF-8 text")]) from error


def _composed(text: str) -> yaml.Node | None:
    """The tree of nodes; nothing is constructed, so aliases are not expanded and tags do nothing."""
    try:
        depth = documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            documents += isinstance(event, yaml.DocumentStartEvent)
            if depth > _DEPTH_LIMIT or documents > 1:
                reason = "is nested too deeply" if depth > _DEPTH_LIMIT else "starts a second document"
                raise WishlistError([_at(event.start_mark, f"this {reason}: a wishlist is one mapping with one list")])
        node: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "cannot be read"
        raise WishlistError([_at(error.problem_mark or error.context_mark, f"not YAML: {problem}")]) from error
    except yaml.YAMLError as error:  # a character that YAML does not allow; it has a position instead of a mark
        at = next((i for i, c in enumerate(text) if not (c.isprintable() or c in "\t\r\n\x85")), 0)
        before = text[:at]
        mistake = Mistake(before.count("\n") + 1, at - before.rfind("\n"), "not YAML: this character is not allowed")
        raise WishlistError([mistake]) from error
    return node


class _Mark(Protocol):
    """A place in the text, from either of the two loaders; counted from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


def _at(mark: _Mark | None, text: str) -> Mistake:
    if mark is None:
        return Mistake(1, 1, text)
    return Mistake(mark.line + 1, mark.column + 1, text)


class _Reader:
    """Collects the mistakes of one text."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def read(self, root: yaml.Node | None) -> Wishlist:
        if not isinstance(root, yaml.MappingNode):
            text = f"a wishlist is a mapping with the keys {', '.join(_KEYS)}"
            raise WishlistError([_at(root.start_mark if root else None, text)])
        values = dict(self._pairs(root))
        for key in _REQUIRED:
            if key not in values:
                self._note(root, f"the key {key} is missing")
        self._check_version(values.get("version"))
        wishlist = Wishlist(
            repository=self._repository(values.get("cvmfs_repo")),
            wishes=tuple(dict.fromkeys(self._wishes(values.get("input")))),
            user=self._text("user", values.get("user")),
            output_format=self._text("output_format", values.get("output_format")),
        )
        if self.mistakes:
            raise WishlistError(self.mistakes)
        return wishlist

    def _note(self, node: yaml.Node, text: str) -> None:
        self.mistakes.append(_at(node.start_mark, text))

    def _pairs(self, root: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
        seen = set()
        for key, value in root.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name not in _KEYS:
                self._note(key, f"unknown key {_shown(name)}: a wishlist has {', '.join(_KEYS)}")
            elif name in seen:
                self._note(key, f"the key {name} is here a second time")
            else:
                seen.add(name)
                yield name, value

    def _check_version(self, node: yaml.Node | None) -> None:
        """DUCC never looks at the version, so that its absence means 1."""
        if node is None:
            return
        if not isinstance(node, yaml.ScalarNode) or node.tag != _INTEGER:
            self._note(node, "version is a number: 1")
        elif node.value != str(_SUPPORTED_VERSION):
            self._note(node, f"version {_shown(node.value)} is not known: this program reads version 1")

    def _text(self, key: str, node: yaml.Node | None) -> str:
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
            return ""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            self._note(node, f"{key} is a text")
            return ""
        return str(node.value)

    def _repository(self, node: yaml.Node | None) -> str:
        name = self._text("cvmfs_repo", node)
        if node is not None and isinstance(node, yaml.ScalarNode) and _REPOSITORY_NAME.fullmatch(name) is None:
            self._note(node, f"{_shown(name)} is not the name of a repository, such as unpacked.example.org")
        return name

    def _wishes(self, node: yaml.Node | None) -> Iterator[Wish]:
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
            return
        if not isinstance(node, yaml.SequenceNode):
            self._note(node, "input is a list: one line with - and the name of an image for each")
            return
        for item in node.value:
            if not isinstance(item, yaml.ScalarNode) or item.tag != _STRING:
                self._note(item, "an entry of input is the name of an image: registry/repository:tag")
                continue
            try:
                yield Wish.parse(item.value, line=item.start_mark.line + 1)
            except WishSyntaxError as error:
                self._note(item, str(error))


def _split_scheme(text: str) -> tuple[str | None, str]:
    match = _SCHEME.match(text)
    if match is None:
        return None, text
    scheme = match[1].lower()
    if scheme not in ("http", "https"):
        raise WishSyntaxError(f"the scheme {_shown(match[1])} is not known: write https:// (or http://), or none")
    return scheme, text[match.end() :]


def _check_registry(registry: str, text: str, scheme: str | None) -> None:
    match = _HOST.fullmatch(registry)
    if match is None or (match[1] is not None and int(match[1]) > _MAX_PORT) or ".." in registry:
        raise WishSyntaxError(f"{_shown(registry)} is not the name of a registry, such as registry.example.org:5000")
    if scheme is None and registry != "localhost" and not any(c in registry for c in ".:"):
        raise WishSyntaxError(
            f"{_shown(registry)} does not look like a registry: there is no default registry, write its name "
            f"(docker.io/{_shown(text)[1:-1]}) or a scheme (https://{registry}/…)"
        )


def _check_repository(path: str, text: str) -> None:
    if not path:
        raise WishSyntaxError(f"{_shown(text)} names no repository: write registry/repository:tag")
    if "*" in path:
        raise WishSyntaxError("* stands for tags only, not for repositories")
    if len(path) > _MAX_REPOSITORY_LENGTH:
        raise WishSyntaxError(f"the repository's name is longer than {_MAX_REPOSITORY_LENGTH} characters")
    for component in path.split("/"):
        if _COMPONENT.fullmatch(component) is None:
            raise WishSyntaxError(
                f"{_shown(component)} is not part of a repository's name: lower-case letters and digits, with "
                "single . _ or - between them"
            )


def _check_tag(tag: str) -> None:
    if "*" in tag and _PATTERN.fullmatch(tag):
        return
    if _TAG.fullmatch(tag) is None:
        hint = " (a pattern knows only *)" if any(c in tag for c in "?[](){}|+^$") else ""
        raise WishSyntaxError(f"{_shown(tag)} is not a tag: letters, digits, _ . -, at most 128{hint}")


def _shown(text: str) -> str:
    """*text* in quotes with everything that does not print escaped, and not too long."""
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")
