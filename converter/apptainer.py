"""What Apptainer reads in a root file system to act as the image's config says, added to a copy of the tree. PURE.

Names, their places, and which variables of the environment win are those that DUCC and Apptainer have for images of
registries; the scripts are ours. Contents of the image are neither changed nor read: the copy shares the nodes of the
tree and has a few names more, all of them hidden: they are found by whoever asks for them, and listings are those of
the image.

Source: Apptainer 1.4 user guide, "Environment and Metadata", "Support for Docker and OCI Containers"; CernVM-FS 2.12,
ducc/singularity (names of files, links and mount points).
"""

import json
import re
import stat
from collections.abc import Callable, Mapping

from fs.format.tree import Content, Node
from registry_proxy.oci.manifest import ImageConfig

OWN_DIRECTORY = b".singularity.d"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINKS = {
    b"singularity": b".singularity.d/runscript",
    b".run": b".singularity.d/actions/run",
    b".exec": b".singularity.d/actions/exec",
    b".test": b".singularity.d/actions/test",
    b".shell": b".singularity.d/actions/shell",
    b"environment": b".singularity.d/env/90-environment.sh",
}
_MOUNT_POINTS = (b"dev", b"proc", b"root", b"sys", b"home", b"etc", b"var", b"var/tmp", b"tmp")
_EMPTY_FILES = (b"etc/hosts", b"etc/resolv.conf")
_FOR_EVERYBODY = (b"var/tmp", b"tmp")

_ENVIRONMENT = """\
#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    if [ -f "$script" ]; then
        . "$script"
    fi
done
"""
_ACTIONS = {
    b"exec": 'exec "$@"\n',
    b"run": 'exec /.singularity.d/runscript "$@"\n',
    b"shell": 'if [ -x /bin/bash ]; then\n    exec /bin/bash --norc "$@"\nfi\nexec /bin/sh "$@"\n',
    b"start": 'exec /.singularity.d/startscript "$@"\n',
    b"test": 'if [ -x /.singularity.d/test ]; then\n    exec /.singularity.d/test "$@"\nfi\n',
}
_LIBRARIES = """\
#!/bin/sh
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
export LD_LIBRARY_PATH
"""
_RUNTIME = """\
#!/bin/sh
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PREPEND_PATH:$PATH"
fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then
    PATH="$PATH:$SING_USER_DEFINED_APPEND_PATH"
fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then
    PATH="$SING_USER_DEFINED_PATH"
fi
export PATH
"""
_NOTHING = "#!/bin/sh\n"


def with_apptainer_files(root: Node, config: ImageConfig, store: Callable[[bytes], Content]) -> Node:
    """The tree *root* with what Apptainer needs beside it; *root* stays as it is.

    Args:
        root: the image's root directory.
        config: its config.
        store: keeps the bytes of a small file.
    """
    copy = _copy(root)
    if OWN_DIRECTORY not in copy.children:
        _add(copy, OWN_DIRECTORY, _own_directory(config, store))
    for name, target in _LINKS.items():
        _add(copy, name, Node(mode=stat.S_IFLNK | 0o777, target=target))
    for path in _MOUNT_POINTS:
        _add(copy, path, Node(mode=stat.S_IFDIR | (0o1777 if path in _FOR_EVERYBODY else 0o755)))
    for path in _EMPTY_FILES:
        _add(copy, path, _file(store, "", 0o644))
    return copy


def _copy(directory: Node) -> Node:
    return Node(
        mode=directory.mode,
        uid=directory.uid,
        gid=directory.gid,
        mtime_ns=directory.mtime_ns,
        xattrs=directory.xattrs,
        children=dict(directory.children),
        is_hidden=directory.is_hidden,
    )


def _add(root: Node, path: bytes, node: Node) -> None:
    """Add a hidden node unless its name is taken or a directory on the way is none; those on the way are copied."""
    *above, name = path.split(b"/")
    here = root
    for step in above:
        below = here.children.get(step)
        if below is None or not below.is_directory:
            return
        if name in below.children:
            return
        here.children[step] = here = _copy(below)
    if name not in here.children:
        node.is_hidden = True
        here.children[name] = node


def _own_directory(config: ImageConfig, store: Callable[[bytes], Content]) -> Node:
    def script(text: str) -> Node:
        return _file(store, text, 0o755)

    environment = {
        b"01-base.sh": _NOTHING,
        b"10-docker2singularity.sh": environment_script(config.environment),
        b"90-environment.sh": _NOTHING,
        b"95-apps.sh": _NOTHING,
        b"99-base.sh": _LIBRARIES,
        b"99-runtimevars.sh": _RUNTIME,
    }
    return _directory(
        {
            b"actions": _directory({name: script(_ENVIRONMENT + text) for name, text in _ACTIONS.items()}),
            b"env": _directory({name: script(text) for name, text in environment.items()}),
            b"libs": _directory({}),
            b"labels.json": _file(store, json.dumps(dict(config.labels), indent=4, sort_keys=True) + "\n", 0o644),
            b"runscript": script(run_script(config)),
            b"startscript": script(_NOTHING),
        }
    )


def environment_script(variables: tuple[str, ...]) -> str:
    """Sets the image's variables; what is set before wins, except for the search path.

    Names that no shell can set are left out.
    """
    lines = [_NOTHING]
    for variable in variables:
        name, equals, value = variable.partition("=")
        if _VARIABLE.fullmatch(name) is None:
            continue
        if name == "PATH":
            lines.append(f"PATH={quoted(value)}\nexport PATH\n")
        elif equals:
            lines.append(f'if [ -z "${{{name}:-}}" ]; then\n    {name}={quoted(value)}\nfi\nexport {name}\n')
        else:
            lines.append(f'{name}="${{{name}:-}}"\nexport {name}\n')
    return "".join(lines)


def run_script(config: ImageConfig) -> str:
    """Starts entry point and arguments, or without arguments entry point and command, as the config has them."""
    entry_point = "".join(f" {quoted(word)}" for word in config.entrypoint)
    command = "".join(f" {quoted(word)}" for word in config.command)
    default = f"{entry_point}{command}" or " /bin/sh"
    return (
        f'#!/bin/sh\nif [ "$#" -gt 0 ]; then\n    set --{entry_point} "$@"\nelse\n    set --{default}\nfi\nexec "$@"\n'
    )


def quoted(text: str) -> str:
    """*text* as one word of a shell; without backslashes outside of quotes, which Apptainer's own reads otherwise."""
    return "'" + text.replace("\0", "").replace("'", "'\"'\"'") + "'"


def _directory(children: Mapping[bytes, Node]) -> Node:
    return Node(mode=stat.S_IFDIR | 0o755, children=dict(children))


def _file(store: Callable[[bytes], Content], text: str, mode: int) -> Node:
    return Node(mode=stat.S_IFREG | mode, content=store(text.encode("utf-8", "surrogateescape")))
