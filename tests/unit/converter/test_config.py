"""Settings: precedence, unknown keys with their line."""

from pathlib import Path

import pytest

from converter.config import load_farm_settings, load_settings
from converter.errors import SettingsError
from fs.errors import RefusedError
from fs.publish.file_leases import FileLeases

ABSENT = {"UNPACKD_CONFIG": ""}


def test_flags_before_environment_before_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[converter]\nrepo = "file"\nstorage = "/file"\nkeys = "/file"\n[converter.limits]\nmax_entries = 5\n'
    )
    environment = {"UNPACKD_STORAGE": "/env", "UNPACKD_KEYS": "/env", "UNPACKD_CONVERTER_LIMITS_MAX_HEADER_BYTES": "6"}

    settings = load_settings(file, flags={"keys": Path("/flag"), "repo": None}, environment=environment)

    assert (settings.repo, settings.storage, settings.keys) == ("file", "/env", Path("/flag"))
    assert settings.limits.limits().max_entries == 5
    assert settings.limits.limits().max_header_bytes == 6


def test_file_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[converter]\nrepo = "file"\n[snapshotter]\nother = 1\n')

    assert load_settings(environment={"UNPACKD_CONFIG": str(file)}).repo == "file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[converter]\nrepo = 'x'\nrepoo = 'y'\n", ":3: unknown key 'repoo'"),
        ("# limits\n[converter.limits]\nmax_entries = 1\n\nmax_files = 2\n", ":5: unknown key 'max_files'"),
        ("[converter.limit]\nmax_entries = 1\n", ":1: unknown key 'limit'"),
        ("[converter.limits]\nmax_entries = -1\n", "limits.max_entries"),
        ("[converter.limits]\nmax_entries = 'many'\n", "limits.max_entries"),
        ("converter = 1\n", "must be tables"),
        ("[converter\n", "config.toml"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)

    with pytest.raises(SettingsError) as caught:
        load_settings(file, environment=ABSENT)

    assert said in str(caught.value)


def test_the_farm_is_set_in_the_same_table(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[converter]\nrepo = "file"\nconcurrency = 7\nmax_attempts = 8\nlisten = "h:1"\nheartbeat_s = 9\n')
    environment = {
        "UNPACKD_CONVERTER_MAX_ATTEMPTS": "6",
        "UNPACKD_CONVERTER_CONCURRENCY": "",
        "UNPACKD_CONFIG": str(file),
    }

    settings = load_farm_settings(flags={"listen": "h:2", "wishlist": None}, environment=environment)

    assert (settings.concurrency, settings.max_attempts, settings.listen, settings.heartbeat_s) == (7, 6, "h:2", 9)
    assert settings.model_fields_set == {"concurrency", "max_attempts", "listen", "heartbeat_s"}
    assert load_settings(file, environment=ABSENT).repo == "file"


@pytest.mark.parametrize(
    ("text", "variable", "said"),
    [
        ("concurrency = 0", "", "setting concurrency: "),
        ("concurrency = 1", "many", "UNPACKD_CONVERTER_CONCURRENCY: "),
        ("concurency = 1", "", ":2: unknown key 'concurency' in [converter]"),
    ],
)
def test_mistakes_in_the_farms_settings(tmp_path: Path, text: str, variable: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[converter]\n{text}\n")

    with pytest.raises(SettingsError) as caught:
        load_farm_settings(file, environment={"UNPACKD_CONVERTER_CONCURRENCY": variable})

    assert said in str(caught.value)


def test_unknown_limit_of_the_environment_is_named() -> None:
    with pytest.raises(SettingsError, match="UNPACKD_CONVERTER_LIMITS_MAX_FILES"):
        load_settings(environment={"UNPACKD_CONVERTER_LIMITS_MAX_FILES": "1"})


def test_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "absent.toml", environment=ABSENT)


def test_how_the_repository_is_written(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[converter]\ncodec = "zlib:9"\nchunk_bytes = [64, 128, 256]\nleases = "file://{tmp_path}"\n')

    settings = load_settings(file, environment={})
    writing = settings.writing()

    assert (writing.codec.encoder.value, writing.codec.level, writing.codec.chunk_sizes.most) == ("zlib", 9, 256)
    assert isinstance(writing.leases, FileLeases)
    assert str(tmp_path) not in repr(settings.leases), "it may hold a password"
    assert load_settings(file, environment={"UNPACKD_CODEC": "none"}).codec == "none"
    assert load_settings(environment={}, file=None).writing().leases is None


@pytest.mark.parametrize("variable", ["UNPACKD_CODEC", "UNPACKD_LEASES"])
def test_a_codec_or_keeper_that_is_none_is_refused(variable: str) -> None:
    with pytest.raises(RefusedError):
        load_settings(environment={variable: "nonsense"}).writing()
