"""The documented configuration file: every command can read its table, and no setting is missing."""

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from converter import config as converter_config
from converter.farm_config import FarmSettings
from registry_proxy import config as proxy_config
from snapshotter import config as snapshotter_config

if TYPE_CHECKING:
    from pydantic import BaseModel

EXAMPLE = Path(__file__).parents[2] / "docs" / "config.example.toml"


def uncommented() -> str:
    """The example with every setting in force that is commented out."""
    return re.sub(r"(?m)^# (?=[a-z_]+ = )", "", EXAMPLE.read_text())


@pytest.mark.parametrize("every_setting", [False, True])
def test_each_room_reads_its_table(tmp_path: Path, *, every_setting: bool) -> None:
    file = EXAMPLE
    if every_setting:
        file = tmp_path / "config.toml"
        file.write_text(uncommented())

    conversion = converter_config.load_settings(file, environment={})
    farm = converter_config.load_farm_settings(file, environment={})
    proxy = proxy_config.load_settings(file)
    snapshotter = snapshotter_config.load_settings(file, {})

    assert conversion.repo == "unpacked.example.org"
    assert farm.database_url == "sqlite:////srv/unpackd/farm.sqlite"
    assert proxy.upstreams[0].name == "hub"
    assert snapshotter.mountpoint == Path("/cvmfs/unpacked.example.org")


def test_every_setting_is_there_and_what_is_commented_out_is_the_default() -> None:
    document = tomllib.loads(uncommented())
    in_force = tomllib.loads(EXAMPLE.read_text())
    converter, limits = document["converter"], document["converter"].pop("limits")
    proxy = document["proxy"]
    upstream = proxy["upstreams"][0]
    tables: list[tuple[dict[str, object], set[str]]] = [
        (converter, {*converter_config.ConversionSettings.model_fields, *FarmSettings.model_fields} - {"limits"}),
        (limits, set(converter_config.LimitSettings.model_fields)),
        (proxy, set(proxy_config.ProxySettings.model_fields)),
        (upstream, set(proxy_config.UpstreamSettings.model_fields)),
        (document["snapshotter"]["repositories"][0], set(snapshotter_config.RepositorySettings.model_fields)),
        (document["snapshotter"], set(snapshotter_config.SnapshotterSettings.model_fields)),
    ]
    for table, fields in tables:
        assert set(table) == fields

    models: list[tuple[dict[str, object], dict[str, object], type[BaseModel]]] = [
        (converter, in_force["converter"], FarmSettings),
        (limits, {}, converter_config.LimitSettings),
        (document["snapshotter"], in_force["snapshotter"], snapshotter_config.SnapshotterSettings),
    ]
    for table, set_there, model in models:
        for key in table.keys() - set_there.keys() & model.model_fields.keys():
            default = model.model_fields[key].default
            assert default is None or table[key] in (default, str(default)), key
