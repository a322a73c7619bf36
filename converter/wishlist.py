"""Wishlists: which images are wanted, how they are kept, and in which repository. PURE.

Version 1 is DUCC's recipe, unchanged. Version 2 is ours: it has terms. Every mistake of a text is found in one go and
carries its line and column.

Source: CernVM-FS 2.12, documentation of DUCC, "Image Wishlist"; the names of images as DUCC reads them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import yaml

from converter.errors import Mistake, WishlistError, WishSyntaxError
from converter.terms import ALL, USUAL, Terms, read_platforms, read_policy
from converter.wish import Wish, shown_text

SIZE_LIMIT_BYTES = 1 << 20
_DEPTH_LIMIT = 8  # a wishlist has four levels; the composer of libyaml recurses
_DUCC, _OURS = 1, 2  # versions
_KEYS = {
    _DUCC: ("version", "user", "cvmfs_repo", "output_format", "input"),
    _OURS: ("version", "repository", "policy", "platforms", "images"),
}
_REPOSITORY = {_DUCC: "cvmfs_repo", _OURS: "repository"}
_IMAGES = {_DUCC: "input", _OURS: "images"}
_IMAGE_KEYS = ("image", "policy", "platforms")
_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same rules, ten times as quick

_STRING, _INTEGER, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:int", "tag:yaml.org,2002:null"
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


@dataclass(frozen=True, slots=True)
class Wishlist:
    """A wishlist without mistakes. The same image written twice is wished once."""

    repository: str
    wishes: tuple[Wish, ...]
    user: str = ""
    output_format: str = ""
    version: int = _DUCC


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
            text = f"a wishlist is a mapping with the keys {', '.join(_KEYS[_DUCC])}"
            raise WishlistError([_at(root.start_mark if root else None, text)])
        version = self._version(root)
        values = dict(self._pairs(root, _KEYS[version], f"a wishlist of version {version}"))
        for key in (_REPOSITORY[version], _IMAGES[version]):
            if key not in values:
                self._note(root, f"the key {key} is missing")
        wishlist = Wishlist(
            repository=self._repository(_REPOSITORY[version], values.get(_REPOSITORY[version])),
            wishes=self._once(self._wishes(version, values)),
            user=self._text("user", values.get("user")),
            output_format=self._text("output_format", values.get("output_format")),
            version=version,
        )
        if self.mistakes:
            raise WishlistError(self.mistakes)
        return wishlist

    def _note(self, node: yaml.Node, text: str) -> None:
        self.mistakes.append(_at(node.start_mark, text))

    def _pairs(self, root: yaml.MappingNode, keys: tuple[str, ...], what: str) -> Iterator[tuple[str, yaml.Node]]:
        seen = set()
        for key, value in root.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name not in keys:
                self._note(key, f"unknown key {shown_text(name)}: {what} has {', '.join(keys)}")
            elif name in seen:
                self._note(key, f"the key {name} is here a second time")
            else:
                seen.add(name)
                yield name, value

    def _version(self, root: yaml.MappingNode) -> int:
        """DUCC never looks at the version, so that its absence means 1."""
        found = [value for key, value in root.value if isinstance(key, yaml.ScalarNode) and key.value == "version"]
        if not found:
            return _DUCC
        node = found[0]
        if not isinstance(node, yaml.ScalarNode) or node.tag != _INTEGER:
            self._note(node, "version is a number: 1 or 2")
        elif node.value not in map(str, _KEYS):
            self._note(node, f"version {shown_text(node.value)} is not known: this program reads versions 1 and 2")
        else:
            return int(node.value)
        return _DUCC

    def _text(self, key: str, node: yaml.Node | None) -> str:
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
            return ""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            self._note(node, f"{key} is a text")
            return ""
        return str(node.value)

    def _repository(self, key: str, node: yaml.Node | None) -> str:
        name = self._text(key, node)
        if node is not None and isinstance(node, yaml.ScalarNode) and _REPOSITORY_NAME.fullmatch(name) is None:
            self._note(node, f"{shown_text(name)} is not the name of a repository, such as unpacked.example.org")
        return name

    # --- images

    def _once(self, wishes: Iterator[tuple[Wish, yaml.Node]]) -> tuple[Wish, ...]:
        found: dict[Wish, Wish] = {}
        for wish, node in wishes:
            known = found.setdefault(wish, wish)
            if known.terms != wish.terms:
                self._note(node, f"this image is wished in line {known.line} with other terms")
        return tuple(found)

    def _wishes(self, version: int, values: dict[str, yaml.Node]) -> Iterator[tuple[Wish, yaml.Node]]:
        key, node = _IMAGES[version], values.get(_IMAGES[version])
        terms = self._terms(values, USUAL)
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _NULL):
            return
        if not isinstance(node, yaml.SequenceNode):
            self._note(node, f"{key} is a list: one line with - and the name of an image for each")
            return
        for item in node.value:
            if version == _OURS and isinstance(item, yaml.MappingNode):
                yield from self._detailed(item, terms)
            else:
                yield from self._named(item, terms, f"an entry of {key}")

    def _detailed(self, item: yaml.MappingNode, terms: Terms) -> Iterator[tuple[Wish, yaml.Node]]:
        """A wish with terms of its own."""
        values = dict(self._pairs(item, _IMAGE_KEYS, "an image"))
        if "image" not in values:
            self._note(item, "the key image is missing")
            return
        yield from self._named(values["image"], self._terms(values, terms), "image")

    def _named(self, item: yaml.Node, terms: Terms, what: str) -> Iterator[tuple[Wish, yaml.Node]]:
        if not isinstance(item, yaml.ScalarNode) or item.tag != _STRING:
            self._note(item, f"{what} is the name of an image: registry/repository:tag")
            return
        try:
            yield Wish.parse(item.value, line=item.start_mark.line + 1, terms=terms), item
        except WishSyntaxError as error:
            self._note(item, str(error))

    def _terms(self, values: dict[str, yaml.Node], usual: Terms) -> Terms:
        """What *values* say of policy and platforms, and what is usual where they say nothing."""
        terms = usual
        if "policy" in values:
            try:
                terms = replace(terms, policy=read_policy(self._text("policy", values["policy"])))
            except ValueError as error:
                self._note(values["policy"], str(error))
        if "platforms" in values:
            terms = replace(terms, platforms=self._platforms(values["platforms"]))
        return terms

    def _platforms(self, node: yaml.Node) -> tuple[str, ...]:
        if isinstance(node, yaml.ScalarNode) and node.value == ALL:
            return (ALL,)
        is_list = isinstance(node, yaml.SequenceNode)
        if not is_list or any(not isinstance(item, yaml.ScalarNode) or item.tag != _STRING for item in node.value):
            self._note(node, "platforms is all, or a list of os/architecture[/variant]: [linux/amd64, linux/arm64]")
            return ()
        try:
            return read_platforms([item.value for item in node.value])
        except ValueError as error:
            self._note(node, str(error))
            return ()
