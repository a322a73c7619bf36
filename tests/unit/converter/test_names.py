"""One name for one text, whichever way an image is asked for."""

import pytest

from converter.names import published_name
from converter.wish import Wish

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("docker://library/debian:12", "docker.io/library/debian:12"),
        ("user/tool:1", "docker.io/user/tool:1"),
        ("index/tool:1", "docker.io/index/tool:1"),
        (f"r.example/tool@{DIGEST}", f"r.example/tool:{DIGEST}"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("http://host/a:c", "host/a:c"),
    ],
)
def test_published_names(text: str, name: str) -> None:
    assert published_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "registry.hub.docker.com/library/centos:7",
        "https://registry-1.docker.io/library/centos:7",
        "index.docker.io/library/centos:7",
        "docker.io/centos:7",
        "Registry.Example.org/group/tool:1",
        f"r.example:5000/group/tool:1@{DIGEST}",
        f"http://r.example/tool@{DIGEST}",
    ],
)
def test_a_conversion_and_a_wish_of_the_same_text_have_the_same_name(text: str) -> None:
    assert published_name(text) == Wish.parse(text).simple_name
