"""Build hook: compiles the ``.proto`` files beside it into ``snapshotter/_proto``.

Hatchling runs it for wheels and for editable installs; ``python protos/build_hook.py`` does the same by hand. The
generated modules are not committed: generated code refuses an older protobuf or grpcio than the tools that wrote it,
so it is made by the tools of the machine that builds.
"""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = Path(__file__).resolve().parent
PACKAGE = "snapshotter/_proto"


class ProtosBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's configuration type is its own affair
    """Generates before anything is collected into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002  # hatchling's signature
        """See BuildHookInterface: called before each build, *version* is ``standard`` or ``editable``."""
        if self.target_name == "wheel":
            generate(Path(self.root))


def generate(root: Path) -> None:
    """Compile every proto of the package into the source tree *root*. Raises RuntimeError if one does not compile."""
    import grpc_tools  # noqa: PLC0415  # only there when something is built
    from grpc_tools import protoc  # noqa: PLC0415

    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
            f"--python_out={root}",
            f"--grpc_python_out={root}",
            *sources,
        ],
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")


if __name__ == "__main__":
    generate(PROTOS.parent)
    sys.stdout.write(f"generated {PACKAGE}\n")
