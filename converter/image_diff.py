"""What tells two published images apart: paths, layers, config."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from converter import placement
from converter.errors import RecordError, shown
from converter.image_records import Provenance
from converter.inventory import Chosen, provenance_of
from converter.tree_digest import Item, items_of_view, objects_of
from fs.publish.view import View

CONFIG_LIMIT_BYTES = 1 << 24
_ASPECTS = ("mode", "uid", "gid", "mtime_ns", "target", "rdev", "first")
_TOP_LEVEL = ("architecture", "variant", "os", "os.version", "author", "created")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathChange:
    """One path that is not the same in both images."""

    path: str
    change: str  # "added", "removed", "changed"
    what: tuple[str, ...] = ()  # of "changed": "content", "mode", "uid", …
    old_size: int | None = None  # of files
    new_size: int | None = None

    @property
    def size_change(self) -> int:
        """Bytes that the path has more in the new image."""
        return (self.new_size or 0) - (self.old_size or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """One setting of the config that is not the same; None where an image has none."""

    key: str  # such as ``Entrypoint`` or ``Env.PATH``
    old: object
    new: object


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSets:
    """The layers by where they are, as digests of blobs."""

    shared: tuple[str, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    shared_bytes: int  # compressed
    only_old_bytes: int
    only_new_bytes: int


def differences(view: View, old: Chosen, new: Chosen, *, with_times: bool = False) -> dict[str, Any]:
    """Everything that tells two images apart, as JSON has it.

    Raises:
        RecordError: records of an image are missing or cannot be read.
        AbsentError: a tree was collected.
    """
    before, after = (provenance_of(view, image) for _, image in (old, new))
    paths = sorted(path_changes(view, before.config, after.config, with_times=with_times), key=lambda one: one.path)
    counts = {kind: sum(one.change == kind for one in paths) for kind in ("added", "removed", "changed")}
    return {
        "old": _summary(old[0], before),
        "new": _summary(new[0], after),
        **counts,
        "size_change": sum(one.size_change for one in paths),
        "layers": asdict(layer_sets(before, after)),
        "settings": [asdict(one) for one in setting_changes(view, before.manifest, after.manifest)],
        "paths": [asdict(one) for one in paths],
    }


def _summary(name: str | None, known: Provenance) -> dict[str, object]:
    return {
        "name": name,
        "manifest": known.manifest,
        "config": known.config,
        "platform": known.platform,
        "size": known.size,
        "files": known.files,
    }


def path_changes(view: View, old_config: str, new_config: str, *, with_times: bool = False) -> Iterator[PathChange]:
    """What tells the flat trees of two images apart, by path.

    Args:
        view: of the repository that has both.
        old_config: digest of a config.
        new_config: digest of the other.
        with_times: name what differs in its modification time only; builds change those of files that are the same.

    Raises:
        AbsentError: a tree is not there.
        FsError: a catalog cannot be read.
    """
    old = {item.path: item for item in items_of_view(view, placement.flat_path(old_config))}
    for item in items_of_view(view, placement.flat_path(new_config)):
        before = old.pop(item.path, None)
        if before is None:
            yield PathChange(path=_shown(item), change="added", new_size=_size(item))
            continue
        what = tuple(_differences(before, item, with_times=with_times))
        if what:
            yield PathChange(
                path=_shown(item), change="changed", what=what, old_size=_size(before), new_size=_size(item)
            )
    for before in old.values():
        yield PathChange(path=_shown(before), change="removed", old_size=_size(before))


def _differences(old: Item, new: Item, *, with_times: bool) -> Iterator[str]:
    for aspect in _ASPECTS:
        if getattr(old, aspect) != getattr(new, aspect) and (with_times or aspect != "mtime_ns"):
            yield "links" if aspect == "first" else aspect.removesuffix("_ns")
    if dict(old.xattrs) != dict(new.xattrs):
        yield "xattrs"
    if objects_of(old.content) != objects_of(new.content):
        yield "content"


def _shown(item: Item) -> str:
    return shown(item.path) or "/"


def _size(item: Item) -> int | None:
    return None if item.content is None else item.content.size


def layer_sets(old: Provenance, new: Provenance) -> LayerSets:
    """Which layers the images have in common."""
    old_sizes = {layer.digest: layer.size for layer in old.layers}
    new_sizes = {layer.digest: layer.size for layer in new.layers}
    shared = tuple(digest for digest in new_sizes if digest in old_sizes)
    only_old = tuple(digest for digest in old_sizes if digest not in new_sizes)
    only_new = tuple(digest for digest in new_sizes if digest not in old_sizes)
    return LayerSets(
        shared=shared,
        only_old=only_old,
        only_new=only_new,
        shared_bytes=sum(new_sizes[digest] for digest in shared),
        only_old_bytes=sum(old_sizes[digest] for digest in only_old),
        only_new_bytes=sum(new_sizes[digest] for digest in only_new),
    )


def setting_changes(view: View, old_manifest: str, new_manifest: str) -> list[SettingChange]:
    """What tells the configs of two images apart, without what follows from the layers. Raises RecordError."""
    old, new = (_settings(view, manifest) for manifest in (old_manifest, new_manifest))
    return [
        SettingChange(key=key, old=old.get(key), new=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _settings(view: View, manifest: str) -> dict[str, object]:
    path = placement.image_path(manifest) + b"/config.json"
    if view.lookup(path) is None:
        raise RecordError(f"{path.decode()} is missing")
    try:
        document = json.loads(view.read(path, CONFIG_LIMIT_BYTES))
        inner: Mapping[str, Any] = document.get("config") or {}
        settings: dict[str, object] = {key: document[key] for key in _TOP_LEVEL if document.get(key)}
        for key, value in inner.items():
            if key == "Env":
                settings |= {f"Env.{name}": setting for name, setting in _variables(value)}
            elif isinstance(value, dict):  # Labels, ExposedPorts, Volumes, Healthcheck
                settings |= {f"{key}.{name}": one for name, one in value.items()}
            elif value not in (None, "", [], False):  # absent and empty mean the same
                settings[key] = value
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{path.decode()} is malformed ({error!r})") from error
    return settings


def _variables(environment: Sequence[str] | None) -> Iterator[tuple[str, str]]:
    for variable in environment or ():
        name, _, value = variable.partition("=")
        yield name, value
