"""The web process: from settings to the application."""

from pathlib import Path

from starlette.types import ASGIApp

from converter.config import ConversionSettings
from converter.errors import FarmUsageError
from converter.farm_config import FarmSettings
from converter.farm_database import FarmDatabase
from converter.web.app import web_app
from converter.web.services import Services
from fs.origin import origin_app


def farm_app(settings: ConversionSettings, farm: FarmSettings) -> ASGIApp:
    """The application that the settings describe; with an origin if the storage is a directory here.

    Raises:
        FarmUsageError: the repository's name is missing.
    """
    if settings.repo is None:
        raise FarmUsageError("which repository? Set UNPACKD_REPO")
    services = Services.of(settings.repo, FarmDatabase(farm.database_url), farm)
    origin = None if settings.storage is None else origin_app(Path(settings.storage), settings.repo)
    return web_app(services, origin=origin)
