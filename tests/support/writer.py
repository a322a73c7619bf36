"""A writer of its own process: grafts what it was told to, however often it is killed and started again."""

import random
import stat
import sys
import time
from pathlib import Path

from fs.errors import FsError
from fs.format.tree import Node
from fs.publish.operations import Graft
from fs.publish.repository import Repository, Settings
from fs.publish.sql_leases import SqlLeases


def main() -> None:
    """Arguments: repository, storage, keys, database of leases, lifetime of leases in seconds, own name, grafts."""
    name, storage, keys, database, lifetime_s, own, count = sys.argv[1:]
    settings = Settings(leases=SqlLeases.open(database), lease_lifetime_s=float(lifetime_s))
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
                sys.stderr.write(f"{own} {number}: {error}\n")
                if not error.transient:
                    raise


if __name__ == "__main__":
    main()
