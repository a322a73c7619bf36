"""What the web application works with, handed in from outside."""

from dataclasses import dataclass

from pydantic import SecretStr

from converter.farm_config import FarmSettings, farm_rules
from converter.farm_database import FarmDatabase
from converter.farm_views import FarmViews
from converter.jobs import JobStore
from converter.uploads import UploadLimits, UploadSpool
from converter.wishes import WishStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """One farm's database and secrets."""

    repository: str
    views: FarmViews
    wishes: WishStore
    jobs: JobStore
    uploads: UploadSpool | None = None
    api_token: SecretStr | None = None
    webhook_authorization: SecretStr | None = None

    @classmethod
    def of(cls, repository: str, database: FarmDatabase, settings: FarmSettings) -> "Services":
        """The services of the farm whose settings these are."""
        limits = UploadLimits(
            blob_bytes=settings.upload_blob_bytes,
            total_bytes=settings.upload_total_bytes,
            keep_s=settings.upload_keep_s,
        )
        return cls(
            repository=repository,
            views=FarmViews(database),
            wishes=WishStore(database),
            jobs=JobStore(database, rules=farm_rules(settings)),
            uploads=None if settings.upload_directory is None else UploadSpool(settings.upload_directory, limits),
            api_token=settings.api_token,
            webhook_authorization=settings.webhook_authorization,
        )
