"""How a wished image is kept: which digests of its tag, and for which platforms. PURE."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from registry_proxy.errors import ProxyError
from registry_proxy.oci.manifest import Platform

ALL = "all"


class Policy(StrEnum):
    """What happens when the tag of an image comes to name another digest."""

    FOLLOW = "follow"  # the path leads to the new one; the old one stays for the retention time
    PIN = "pin"  # nothing: the path stays with what was converted first
    ARCHIVE = "archive"  # the path leads to the new one; the old one stays for good


@dataclass(frozen=True, slots=True)
class Terms:
    """Policy and platforms of a wish."""

    policy: Policy = Policy.FOLLOW
    platforms: tuple[str, ...] = ()  # os/architecture[/variant], or "all" alone; none: that of the worker's machine

    def joined(self, other: Self) -> Self:
        """The terms that satisfy both: what keeps more wins, and each platform is there."""
        order = (Policy.ARCHIVE, Policy.FOLLOW, Policy.PIN)
        policy = min(self.policy, other.policy, key=order.index)
        platforms = tuple(dict.fromkeys((*self.platforms, *other.platforms)))
        return type(self)(policy, (ALL,) if ALL in platforms else platforms)

    def encode(self) -> tuple[str, str]:
        """Policy and platforms as a database has them."""
        return self.policy.value, json.dumps(self.platforms)

    @classmethod
    def decode(cls, policy: str | None, platforms: str | None) -> Self:
        """Inverse of ``encode``; what is not known is what is usual."""
        if policy is None or platforms is None:
            return cls()
        return cls(Policy(policy), tuple(json.loads(platforms)))


USUAL = Terms()


def read_policy(text: str) -> Policy:
    """The policy called *text*. Raises ValueError, whose message says which there are."""
    try:
        return Policy(text)
    except ValueError:
        raise ValueError(f"{text[:200]!r} is no policy: there are {', '.join(Policy)}") from None


def read_platforms(words: Sequence[str]) -> tuple[str, ...]:
    """Platforms in their usual form, or ``("all",)``. Raises ValueError, whose message says what is wrong."""
    if ALL in words:
        if len(words) > 1:
            raise ValueError("beside all, there is nothing to add")
        return (ALL,)
    try:
        return tuple(dict.fromkeys(str(Platform.parse(word)) for word in words))
    except ProxyError as error:
        raise ValueError(str(error)) from error
