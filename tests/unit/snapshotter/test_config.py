from pathlib import Path

import pytest

from snapshotter.config import load_settings
from snapshotter.errors import ConfigurationError


def file(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, '[snapshotter]\nmountpoint = "/file"\nroot = "/file"\naddress = "/file"\n')
    monkeypatch.setenv("UNPACKD_SNAPSHOTTER_ROOT", "/environment")
    monkeypatch.setenv("UNPACKD_SNAPSHOTTER_ADDRESS", "/environment")

    settings = load_settings(path, {"address": Path("/flag"), "root": None})

    found = (settings.mountpoint, settings.root, settings.address)
    assert found == (Path("/file"), Path("/environment"), Path("/flag"))


def test_it_works_without_a_file() -> None:
    settings = load_settings(None, {"mountpoint": Path("/cvmfs/x")})

    assert settings.mountpoint == Path("/cvmfs/x")
    assert settings.address.name == "unpackd-snapshotter.sock"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('[snapshotter]\nmountpoint = "/m"\nroot = 1\n', "root"),
        ('[snapshotter]\nmountpoint = "/m"\nlayer_timeout_s = -1\n', "layer_timeout_s"),
        ('[snapshotter]\nmountpoint = "/m"\n\nmountpiont = "/m"\n', "c.toml:4: unknown key 'mountpiont'"),
        ("[snapshotter\n", "c.toml"),
        ("snapshotter = 1\n", "not a table"),
        ("", "mountpoint is not set"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        load_settings(file(tmp_path, text), {})


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_settings(tmp_path / "absent", {})
