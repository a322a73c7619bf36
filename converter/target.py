"""The repository that images go to, opened as the settings say."""

from typing import TYPE_CHECKING

from pydantic import SecretStr

from fs.publish.published import read_manifest
from fs.publish.repository import Repository
from fs.runtime.errors import UsageError
from fs.store.places import open_storage

if TYPE_CHECKING:
    from converter.config import ConversionSettings

_OF_ONE_MACHINE = "sqlite"


def open_target(settings: "ConversionSettings", *, farm_database_url: str | None = None) -> Repository:
    """The repository of *settings*, with the right to publish.

    Args:
        settings: which one. Without a name, it is what the storage has.
        farm_database_url: of the farm's jobs. If machines share it, they share the leases too, unless others are set.

    Raises:
        UsageError: it is not said where the repository or its keys are.
        FsError: it cannot be opened.
    """
    storage, keys = settings.storage, settings.keys
    if storage is None or keys is None:
        raise UsageError("changes are signed: give --storage and --keys, or UNPACKD_STORAGE and UNPACKD_KEYS")
    name = settings.repo or read_manifest(open_storage(storage).store).name
    if settings.leases is None and farm_database_url is not None and not farm_database_url.startswith(_OF_ONE_MACHINE):
        settings = settings.model_copy(update={"leases": SecretStr(farm_database_url)})
    return Repository.open(name, storage, keys, settings=settings.writing())
