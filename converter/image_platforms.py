"""Which platforms of an image are converted, and by which links their users find them."""

import platform as machine
import re
from collections.abc import Sequence

from converter import placement
from converter.conversion import ConversionRequest, ReadImage
from converter.errors import ImageRefusedError
from converter.image_records import SourceRecord
from fs.publish.view import View
from registry_proxy.oci.manifest import Platform

_MOST_MACHINES = Platform("linux", "amd64")
_ODD = re.compile(r"[^a-z0-9_./-]|\.\.")


def machine_platform() -> Platform:
    """The platform of this machine."""
    return Platform.parse(f"linux/{machine.machine()}")


class PlatformChoice:
    """The platforms that one request asks for."""

    def __init__(self, request: ConversionRequest) -> None:
        self._platforms = request.platforms
        self._machine = machine_platform()
        self.is_every = request.every_platform
        self.is_multiple = request.every_platform or len(request.platforms) > 1
        self.asked = "all" if request.every_platform else ",".join(map(str, request.platforms or (self._machine,)))

    @property
    def named(self) -> list[Platform]:
        """The platforms that are asked for by name; that of this machine if none is."""
        return list(dict.fromkeys(self._platforms or (self._machine,)))

    def of(self, offered: Sequence[Platform]) -> list[Platform]:
        """Those of an index that can be unpacked, if all are asked for."""
        return [platform for platform in offered if platform.os == "linux"] or [self._machine]

    def is_covered_by(self, record: SourceRecord) -> bool:
        """True if all that is asked for was converted already."""
        if record.platform == self.asked:
            return True
        is_default = not self._platforms and not self.is_every
        return is_default and str(self._machine) in {one.platform for one in record.images}

    def check(self, name: str, found: Platform, wanted: Platform) -> None:
        """Refuse an image for *found* that is not what was asked for. Raises ImageRefusedError."""
        if found.os != "linux":
            raise ImageRefusedError(f"{name} is an image for {found}; only Linux images can be unpacked")
        if self._platforms and found.architecture not in ("", wanted.architecture):
            raise ImageRefusedError(f"{name} is an image for {found}, not for {wanted}")
        if _ODD.search(str(found)) or _ODD.search(str(wanted)):
            raise ImageRefusedError(f"{name}: {str(found)!r} cannot be the name of a platform")

    def default_of(self, images: Sequence[ReadImage]) -> ReadImage:
        """The image for readers whose platform is not known: of most machines, else of this one, else the first."""
        for wanted in (_MOST_MACHINES, self._machine):
            for image in images:
                if (image.platform.os, image.platform.architecture) == (wanted.os, wanted.architecture):
                    return image
        return images[0]


def platform_links(view: View, name: str) -> list[bytes]:
    """The links for single platforms that *name* has."""
    if view.lookup(placement.MULTIARCH) is None:
        return []
    directories = [
        entry.name.decode("utf-8", "surrogateescape") for entry in view.list(placement.MULTIARCH) if entry.is_directory
    ]
    links = [placement.platform_link(directory, name) for directory in directories]
    return [link for link in links if view.lookup(link) is not None]


def leads_as_recorded(view: View, name: str, record: SourceRecord) -> bool:
    """True if every link of *name* says what it has to say for *record*, and the trees are there."""
    if any(view.lookup(placement.flat_path(image.config)) is None for image in record.all_images):
        return False
    public = placement.public_path(name)
    links = {public: placement.public_target(public, record.config)}
    if record.images:
        directories = {one: placement.platform_directory(Platform.parse(one.platform)) for one in record.images}
        links = {
            placement.platform_link(directory, name): placement.public_target(
                placement.platform_link(directory, name), one.config
            )
            for one, directory in directories.items()
        }
        default = next(directory for one, directory in directories.items() if one.config == record.config)
        links[public] = placement.variant_target(name, default)
    for link, target in links.items():
        entry = view.lookup(link)
        if entry is None or not entry.is_symlink or entry.target != target:
            return False
    return True
