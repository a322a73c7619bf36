"""Settings of the snapshotter: flags, then ``UNPACKD_SNAPSHOTTER_…`` variables, then ``[snapshotter]`` of a file."""

import os
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from snapshotter.errors import ConfigurationError

DEFAULT_FILE = Path("/etc/unpackd/config.toml")
DEFAULT_NAME = "cvmfs-snapshotter"
"""Name of the plugin in containerd's configuration: the one that nerdctl knows."""
DEFAULT_ADDRESS = Path("/run/unpackd-snapshotter/unpackd-snapshotter.sock")
DEFAULT_ROOT = Path("/var/lib/unpackd-snapshotter")
_TABLE = "snapshotter"


class RootForm(StrEnum):
    """How a whole root file system becomes the lower layer of containers."""

    AUTO = "auto"
    """``EROFS`` where this machine and the image allow it, else ``FUSE``."""
    EROFS = "erofs"
    """The same, but do not start on a machine that does not allow it."""
    FUSE = "fuse"
    """The tree in the mounted repository."""


class RepositorySettings(BaseModel):
    """One of several repositories."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mountpoint: Path = Field(description="Where it is mounted.")
    name: str = Field("", pattern=r"[\w.-]*", description="What snapshots remember it by; default: of the mount point.")
    prefixes: tuple[str, ...] = Field((), description="Beginnings of names of images for which it is asked first.")
    by_layer_digest: bool = Field(default=False, description="As the setting of this name for the first.")

    @field_validator("mountpoint")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.absolute()

    @property
    def label(self) -> str:
        """Its name."""
        return self.name or self.mountpoint.name


class SnapshotterSettings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(env_prefix="UNPACKD_SNAPSHOTTER_", extra="forbid", frozen=True)

    mountpoint: Path | None = Field(None, description="Where the repository is mounted.")
    repositories: tuple[RepositorySettings, ...] = Field((), description="Others, asked in this order after it.")
    address: Path = Field(DEFAULT_ADDRESS, description="Socket that containerd's proxy_plugins entry names.")
    root: Path = Field(DEFAULT_ROOT, description="Directory for writable layers and the database.")
    layer_timeout_s: float = Field(5.0, gt=0, le=60, description="Limit of one look at the repository.")
    by_layer_digest: bool = Field(
        default=False,
        description="Serve layers by the label cri.layer-digest from a repository that has no ChainIDs (DUCC's). "
        "Only where containerd sets that label itself: else an image's author can claim another layer's ChainID.",
    )

    rootfs: RootForm = Field(RootForm.AUTO, description="How root file systems are given to containers.")
    start_profiles: bool = Field(
        default=True, description="Have the mount fetch what an earlier start of an image read, when it is asked for."
    )

    metrics: str = Field("", pattern=r"(.+:\d+)?", description="HOST:PORT for figures; none by default.")
    count_served: bool = Field(
        default=True,
        description="Say of a served layer what it holds. False: nothing, for kubelets that would evict images.",
    )

    @field_validator("mountpoint", "address", "root")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Paths are given to other processes, so they must not depend on the working directory."""
        return None if path is None else path.absolute()

    @model_validator(mode="after")
    def _has_repositories(self) -> Self:
        labels = [repository.label for repository in self.repositories]
        if self.mountpoint is None and not labels:
            raise ValueError("mountpoint is not set")
        if len(set(labels)) < len(labels) or "" in labels:
            raise ValueError("repositories need names that differ")
        return self

    @property
    def mountpoints(self) -> tuple[Path, ...]:
        """Where repositories are mounted, in the order in which they are asked."""
        first = () if self.mountpoint is None else (self.mountpoint,)
        return (*first, *(repository.mountpoint for repository in self.repositories))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags and the file come merged as arguments (see ``load_settings``); nothing else is read."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (init_settings, env_settings)


def load_settings(file: Path | None, flags: Mapping[str, Path | str | None]) -> SnapshotterSettings:
    """Settings from *flags*, the environment and *file*, in this order.

    Args:
        file: None for the default file, which need not exist.
        flags: what the command line says; None for what it does not say.

    Raises:
        ConfigurationError: a value is missing or wrong, the file cannot be read, or it has an unknown key.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    table = _table(file)
    environment = SnapshotterSettings.model_config.get("env_prefix", "").lower()
    values = {name: value for name, value in table.items() if not _is_in_environment(f"{environment}{name}")}
    try:
        return SnapshotterSettings(**{**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if not name:
            advice = "; give --mountpoint, or mountpoint = … or repositories" if "not set" in first["msg"] else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{message}{advice} in [{_TABLE}]") from error
        raise ConfigurationError(f"{name}: {first['msg']}") from error


def _is_in_environment(name: str) -> bool:
    return any(variable.lower() == name for variable in os.environ)


def _table(file: Path | None) -> dict[str, Any]:
    path = file or DEFAULT_FILE
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except FileNotFoundError as error:
        if file is None:
            return {}
        raise ConfigurationError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    table = document.get(_TABLE, {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{path}: {_TABLE} is not a table")
    for key in table:
        if key not in SnapshotterSettings.model_fields:
            raise ConfigurationError(f"{path}:{_line_of(text, key)}: unknown key {key!r} in [{_TABLE}]")
    return table


def _line_of(text: str, key: str) -> int:
    """Number of the line on which *key* is set in the package's table; 0 if it is written in some other form."""
    inside = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("["):
            inside = line.strip().strip("[]").strip() == _TABLE
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return number
    return 0
