"""Settings of conversions and of the farm: flags, ``UNPACKD_…`` variables, then ``[converter]`` of one TOML file."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, SecretStr, ValidationError

from converter.errors import SettingsError
from converter.farm_config import FarmSettings
from converter.limits import Limits
from fs.format.chunking import DEFAULT_SIZES, ChunkSizes
from fs.publish.keepers import keeper_of
from fs.publish.packing import Codec
from fs.publish.repository import Settings

DEFAULT_FILE = Path("/etc/unpackd/config.toml")
FILE_VARIABLE = "UNPACKD_CONFIG"
_TABLE, _LIMITS = "converter", "limits"
_VARIABLES = {
    "repo": "UNPACKD_REPO",
    "storage": "UNPACKD_STORAGE",
    "keys": "UNPACKD_KEYS",
    "leases": "UNPACKD_LEASES",
    "codec": "UNPACKD_CODEC",
    "foreign_layers": "UNPACKD_CONVERTER_FOREIGN_LAYERS",
    "push_provenance": "UNPACKD_CONVERTER_PUSH_PROVENANCE",
}
_PREFIX = "UNPACKD_CONVERTER_"
_LIMIT_PREFIX = _PREFIX + "LIMITS_"
_DEFAULTS = Limits()
_MOST_PROCESSES = 4  # a worker's; unpacking and parsing keep no more of them busy


class LimitSettings(BaseModel):
    """Limits of one layer; ``[converter.limits]`` and ``UNPACKD_CONVERTER_LIMITS_…``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_layer_bytes: PositiveInt = Field(default=_DEFAULTS.max_layer_bytes, description="One layer, unpacked.")
    max_entries: PositiveInt = Field(default=_DEFAULTS.max_entries, description="Entries of one layer.")
    max_header_bytes: PositiveInt = Field(default=_DEFAULTS.max_header_bytes, description="One extended header.")
    max_ratio: PositiveInt = Field(default=_DEFAULTS.max_ratio, description="Unpacked to packed bytes of one layer.")

    def limits(self) -> Limits:
        """The values as the layers' reader takes them."""
        return Limits(**self.model_dump())


def _words(value: object) -> object:
    """A list may be written with commas, as in a variable."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


class ConversionSettings(BaseModel):
    """Which repository images go to, and what they may cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repo: str | None = Field(default=None, description="Name of the repository.")
    storage: str | None = Field(default=None, description="Its storage: a directory or s3://BUCKET/PREFIX?….")
    keys: Path | None = Field(default=None, description="Directory with its keys.")
    leases: SecretStr | None = Field(
        default=None, description="URL of the keeper of leases, if several machines publish; it may hold a password."
    )
    codec: str = Field(default="isal:1", description="isal, zlib or libdeflate, each with :LEVEL at will; or none.")
    chunk_bytes: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        default=(DEFAULT_SIZES.least, DEFAULT_SIZES.average, DEFAULT_SIZES.most),
        description="Least, average and most bytes of the chunks of large files.",
    )
    push_provenance: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), description="Registries (host[:port][/path]) that get the signed provenance beside the image."
    )
    foreign_layers: Literal["refuse", "fetch"] = Field(
        default="refuse", description="Layers whose owners do not allow copies: refuse the image, or take them."
    )
    limits: LimitSettings = LimitSettings()

    def writing(self) -> Settings:
        """How the repository is written.

        Raises:
            FsError: there is no such codec or keeper of leases, or it does not answer.
        """
        leases = None if self.leases is None else self.leases.get_secret_value()
        codec = Codec.parse(self.codec, chunk_sizes=ChunkSizes(*self.chunk_bytes))
        processes = min(os.cpu_count() or 1, _MOST_PROCESSES)
        return Settings(codec=codec, leases=keeper_of(leases), writer_processes=processes)


def load_settings(
    file: Path | None = None,
    *,
    flags: Mapping[str, str | Path | None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ConversionSettings:
    """Settings from *flags*, *environment* and *file*, in this order.

    Args:
        file: None for the file that ``UNPACKD_CONFIG`` names, else the default one, which need not exist.
        flags: what the command line says; None for what it does not say.
        environment: the variables.

    Raises:
        SettingsError: a value is wrong, a key or a limit's variable is unknown, or the file cannot be read.
    """
    table = _of(ConversionSettings, _read_table(file, environment))
    limits = {**table.pop(_LIMITS, {}), **_limit_variables(environment)}
    values = {key: environment[variable] for key, variable in _VARIABLES.items() if environment.get(variable)}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return ConversionSettings.model_validate({**table, **values, **given, _LIMITS: limits})
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def load_farm_settings(
    file: Path | None = None,
    *,
    flags: Mapping[str, str | Path | None] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> FarmSettings:
    """Settings of the farm, from the same places; ``model_fields_set`` tells what somebody did set.

    Raises:
        SettingsError: as ``load_settings``.
    """
    table = _of(FarmSettings, _read_table(file, environment))
    variables = {key: _PREFIX + key.upper() for key in FarmSettings.model_fields}
    values = {key: environment[variable] for key, variable in variables.items() if environment.get(variable)}
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    try:
        return FarmSettings.model_validate({**table, **values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        where = variables[key] if key in values else f"setting {key}"
        raise SettingsError(f"{where}: {first['msg']}") from error


def config_file(file: Path | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """*file*, else the one that ``UNPACKD_CONFIG`` names; None for the default one."""
    named = environment.get(FILE_VARIABLE)
    return file or (Path(named) if named else None)


def _of(model: type[BaseModel], table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key in model.model_fields}


def _limit_variables(environment: Mapping[str, str]) -> dict[str, str]:
    found = {
        name.removeprefix(_LIMIT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_LIMIT_PREFIX)
    }
    for key in found:
        if key not in LimitSettings.model_fields:
            known = ", ".join(_LIMIT_PREFIX + name.upper() for name in LimitSettings.model_fields)
            raise SettingsError(f"{_LIMIT_PREFIX}{key.upper()} is no limit; there are {known}")
    return found


def _read_table(named: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """The table ``[converter]``, with only known keys in it; values are not checked."""
    file = config_file(named, environment)
    path = file or DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text).get(_TABLE, {})
    except FileNotFoundError as error:
        if file is None:
            return {}
        raise SettingsError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get(_LIMITS, {}), dict):
        raise SettingsError(f"{path}: {_TABLE} and {_TABLE}.{_LIMITS} must be tables")
    _refuse_unknown(path, text, _TABLE, table, (ConversionSettings, FarmSettings))
    _refuse_unknown(path, text, f"{_TABLE}.{_LIMITS}", table.get(_LIMITS, {}), (LimitSettings,))
    return table


def _refuse_unknown(
    path: Path, text: str, name: str, table: Mapping[str, object], models: tuple[type[BaseModel], ...]
) -> None:
    for key in table:
        if not any(key in model.model_fields for model in models):
            raise SettingsError(f"{path}:{_line_of(text, name, key)}: unknown key {key!r} in [{name}]")


def _line_of(text: str, table: str, key: str) -> int:
    """Number of the line on which *key* is set in *table*; 0 if it is written in some other form."""
    inside = False
    header = re.compile(rf"\s*\[\s*{re.escape(table)}(\.{re.escape(key)})?\s*\]")
    setting = re.compile(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("["):
            found = header.match(line)
            if found is not None and found.group(1):
                return number
            inside = found is not None
        elif inside and setting.match(line):
            return number
    return 0
