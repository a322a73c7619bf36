"""Settings of the farm: variables ``UNPACKD_CONVERTER_…``; the repository it publishes into comes from ``config``."""

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from converter.errors import SettingsError
from converter.job_rules import Rules


class FarmSettings(BaseSettings):
    """Everything that can be set, the same for all processes of one farm."""

    model_config = SettingsConfigDict(
        env_prefix="UNPACKD_CONVERTER_", env_ignore_empty=True, frozen=True, extra="forbid"
    )

    database_url: str = Field(default="sqlite:///farm.sqlite", description="SQLAlchemy URL of the job database.")
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="redis://, redis+socket://, amqp:// or filesystem:///DIRECTORY (one machine only).",
    )
    concurrency: PositiveInt = Field(default=2, description="Conversions at a time in one worker.")
    deadline_s: PositiveFloat = Field(default=7200, description="Longest time of one conversion.")
    max_attempts: PositiveInt = Field(default=5, description="Tries before a conversion counts as failed.")
    heartbeat_s: PositiveFloat = Field(default=2, description="How often a worker says that it lives.")
    stale_after_s: PositiveFloat = Field(
        default=30, description="A worker elsewhere that is silent for so long is dead."
    )
    poll_interval_s: PositiveFloat = Field(default=60, description="How often wished registries are asked.")
    collapse_s: PositiveFloat = Field(
        default=1, description="Notifications of one repository within this time are one."
    )
    registry_connections: PositiveInt = Field(default=8, description="Questions to registries at a time.")
    webhook_authorization: SecretStr | None = Field(
        default=None, description="Authorization header that webhooks must carry."
    )
    api_token: SecretStr | None = Field(default=None, description="Bearer token for what changes something.")


def load_farm_settings() -> FarmSettings:
    """Settings from the environment.

    Raises:
        SettingsError: a value is wrong.
    """
    try:
        return FarmSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "UNPACKD_CONVERTER_" + "_".join(map(str, first["loc"])).upper()
        raise SettingsError(f"{name}: {first['msg']}") from error


def sqlite_url(path: Path) -> str:
    """URL of the SQLite database in file *path*."""
    return f"sqlite:///{path.absolute()}"


def farm_rules(settings: FarmSettings) -> Rules:
    """The rules of jobs as *settings* have them."""
    return Rules(max_attempts=settings.max_attempts, stale_after_s=settings.stale_after_s)
