from pathlib import Path

import pytest

from registry_proxy.config import load_settings
from registry_proxy.errors import ConfigError

GOOD = """
[proxy]
listen = "127.0.0.1:5010"
max_bytes = "1.5G"

[[proxy.upstreams]]
name = "hub"
url = "https://registry-1.docker.io"

[[proxy.upstreams]]
name = "local"
url = "http://127.0.0.1:5000/"
allow = ["team/*"]

[snapshotter]
mountpoint = "/cvmfs/x"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, GOOD), listen="[::1]:7")

    assert settings.max_bytes == 3 << 29
    assert settings.address == ("::1", 7)
    assert [one.registry for one in settings.upstreams] == ["docker.io", "127.0.0.1:5000"]
    assert settings.upstreams[1].allows("team/a")
    assert not settings.upstreams[1].allows("other/a")


def test_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPACKD_REGISTRY_PROXY_TAG_TTL_S", "7")

    assert load_settings(write(tmp_path, GOOD)).tag_ttl_s == 7


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('max_bytes = "1.5G"', "max_byte = 1", r"config.toml:4: unknown key 'max_byte' in \[proxy\]"),
        (
            'allow = ["team/*"]',
            "allowed = 1",
            r"config.toml:13: unknown key 'allowed' in \[\[proxy.upstreams\]\] number 2",
        ),
        ('max_bytes = "1.5G"', 'max_bytes = "much"', "config.toml:4: max_bytes"),
        ('listen = "127.0.0.1:5010"', 'listen = "here"', "config.toml:3: listen .* ADDRESS:PORT"),
        ('name = "local"', 'name = "hub"', "two upstreams have the same name"),
        ('name = "local"', 'name = "a/b"', "config.toml:11: name"),
        ("http://127.0.0.1:5000/", "http://u:p@127.0.0.1/", "url has to be"),
        ("http://127.0.0.1:5000/", "ftp://127.0.0.1", "url has to be"),
        ("[proxy]", '[proxy]\ndefault = "x"', "no upstream"),
        ("[proxy]", "[proxy", "config.toml: "),
        ("[[proxy.upstreams]]", "[[other.upstreams]]", "no table"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_settings(write(tmp_path, GOOD.replace(old, new)))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_settings(tmp_path / "none.toml")
