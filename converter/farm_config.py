"""Settings of the farm: values and their defaults; ``config`` reads them. PURE."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, SecretStr

from converter.job_rules import Rules


class FarmSettings(BaseModel):
    """Everything that can be set, the same for all processes of one farm: ``[converter]``, ``UNPACKD_CONVERTER_…``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    database_url: str = Field(default="sqlite:///farm.sqlite", description="SQLAlchemy URL of the job database.")
    broker_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="redis://, redis+socket://, amqp:// or filesystem:///DIRECTORY (one machine only).",
    )
    listen: str = Field(default="127.0.0.1:8480", description="HOST:PORT of page, API, hooks and origin.")
    wishlist: Path | None = Field(default=None, description="Wishlist to apply, now and whenever the file changes.")
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
    upload_directory: Path | None = Field(
        default=None, description="Where images that users send wait; web and workers share it. None: they cannot."
    )
    upload_blob_bytes: PositiveInt = Field(default=20 << 30, description="Largest blob that users may send.")
    upload_total_bytes: PositiveInt = Field(default=100 << 30, description="What may wait in that directory.")
    upload_keep_s: PositiveFloat = Field(default=86400, description="How long it stays after it was last asked for.")
    tags_per_look: PositiveInt = Field(
        default=100, description="Known tags of one repository that are asked for at each look; new ones always are."
    )
    webhook_authorization: SecretStr | None = Field(
        default=None, description="Authorization header that webhooks must carry."
    )
    api_token: SecretStr | None = Field(default=None, description="Bearer token for what changes something.")


def sqlite_url(path: Path) -> str:
    """URL of the SQLite database in file *path*."""
    return f"sqlite:///{path.absolute()}"


def farm_rules(settings: FarmSettings) -> Rules:
    """The rules of jobs as *settings* have them."""
    return Rules(max_attempts=settings.max_attempts, stale_after_s=settings.stale_after_s)
