"""A writer of its own process: grafts what it was told to, however often it is killed and started again.

Its machine's clock may be wrong: ``time.time`` is put forward before anything of the project is loaded.
"""

import random
import stat
import sys
import time
from pathlib import Path

_SKEW_S = float(sys.argv[7]) if __name__ == "__main__" else 0.0
if _SKEW_S:
    _right_time = time.time
    time.time = lambda: _right_time() + _SKEW_S

from fs.errors import FsError  # noqa: E402  # after the clock was put forward
from fs.format.tree import Node  # noqa: E402
from fs.publish.keepers import open_leases  # noqa: E402
from fs.publish.operations import Graft  # noqa: E402
from fs.publish.repository import Repository, Settings  # noqa: E402


def main() -> None:
    """Arguments: repository, storage, keys, leases, their lifetime (s), own name, skew of the clock (s), grafts."""
    name, storage, keys, leases, lifetime_s, own, _, count = sys.argv[1:]
    settings = Settings(leases=open_leases(leases), lease_lifetime_s=float(lifetime_s))
    repository = Repository.open(name, storage, Path(keys), settings=settings, durable=False)
    for number in range(int(count)):
        path = f"/{own}-{number}".encode()
        while repository.view().lookup(path) is None:
            time.sleep(random.random() * 0.05)
            try:
                content = repository.ingester().add_bytes(path * 10)
                tree = Node(
                    mode=stat.S_IFDIR | 0o755, children={b"f": Node(mode=stat.S_IFREG | 0o644, content=content)}
                )
                repository.commit([Graft(path, repository.prepare_subtree(path, tree))])
            except FsError as error:
                sys.stderr.write(f"{own} {number} refused: {error}\n")
                if not error.transient:
                    raise


if __name__ == "__main__":
    main()
