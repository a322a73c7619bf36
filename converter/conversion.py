"""What goes into a conversion, what is known on the way, and what comes out. PURE."""

from dataclasses import asdict, dataclass

from converter.changeset import ChangeSet
from converter.image_records import PlatformImage
from converter.placement import LayerDescription
from converter.sources import FoundImage, ImageSource
from converter.terms import Policy
from registry_proxy.oci.manifest import ImageConfig, Platform


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRequest:
    """What is to be converted."""

    source: ImageSource
    platforms: tuple[Platform, ...] = ()  # none: that of this machine; several: each gets a name of its own
    every_platform: bool = False  # all that there are
    refuses_losses: bool = False  # an image of which something has to be left out is refused
    policy: Policy = Policy.FOLLOW
    takes_foreign_layers: bool = False  # if the registry has them; their owners may not want them copied
    name: str | None = None  # ``registry/repository:tag`` in the repository; None: what the source says


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionResult:
    """What came of a conversion."""

    reference: str
    name: str
    platform: str
    resolved_digest: str
    manifest_digest: str
    config_digest: str
    public_path: str  # in the repository, with a leading slash
    flat_path: str
    revision: int
    changed: bool
    layers_total: int = 0
    layers_converted: int = 0
    bytes_fetched: int = 0
    entries: int = 0  # of the layers that were converted
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    referrers: tuple[str, ...] = ()  # digests of what was pushed to the registry about it
    images: tuple[PlatformImage, ...] = ()  # one a platform, if platforms were asked for by name or all

    def as_json(self) -> dict[str, object]:
        """The result as JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """One layer of an image, with what the repository knows of it."""

    description: LayerDescription
    changes: ChangeSet
    is_new: bool


@dataclass(frozen=True, slots=True)
class ReadImage:
    """The image of one platform, with all that is needed to publish it."""

    platform: Platform
    found: FoundImage
    config_bytes: bytes
    config: ImageConfig
    layers: list[ReadLayer]

    @property
    def digests(self) -> PlatformImage:
        """What the records say of it."""
        return PlatformImage(
            platform=str(self.platform),
            manifest=str(self.found.manifest_digest),
            config=str(self.found.manifest.config.digest),
        )
