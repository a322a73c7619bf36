"""The compose file calls commands that exist, with settings that exist."""

from pathlib import Path

import typer.main
import yaml

import unpackd
from converter.config import load_settings
from converter.farm_config import FarmSettings

COMPOSE = yaml.safe_load((Path(__file__).parents[3] / "compose" / "compose.yaml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "unpackd"}


def test_every_process_of_the_farm_is_there() -> None:
    commands = typer.main.get_command(unpackd.app)
    words = {name: service["command"][0] for name, service in OURS.items() if name != "create"}

    assert words == {"web": "web", "watch": "watch", "worker": "worker", "origin": "repo"}
    assert set(words.values()) <= set(getattr(commands, "commands", {}))


def test_every_variable_is_a_setting() -> None:
    prefix = "UNPACKD_CONVERTER_"
    known = {prefix + name.upper() for name in FarmSettings.model_fields}
    known |= {"UNPACKD_REPO", "UNPACKD_STORAGE", "UNPACKD_KEYS"}

    for service in OURS.values():
        assert set(service["environment"]) <= known


def test_the_variables_of_the_repository_are_read() -> None:
    environment = {"UNPACKD_REPO": "r", "UNPACKD_STORAGE": "/s", "UNPACKD_KEYS": "/k"}

    settings = load_settings(Path("/dev/null"), environment=environment)

    assert (settings.repo, settings.storage, settings.keys) == ("r", "/s", Path("/k"))
