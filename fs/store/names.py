"""From the path of an object back to its name."""

import re

from fs.format.hashes import Algorithm, Hash, Suffix

_OBJECT_PATH = re.compile(r"data/([0-9a-f]{2})/([0-9a-f]{38})(-rmd160|-shake128)?([CHXMP]?)")


def parse_object_path(path: str) -> tuple[Hash, Suffix] | None:
    """Inverse of ``Hash.object_path``; None for whatever else lies in a store."""
    match = _OBJECT_PATH.fullmatch(path)
    if match is None:
        return None
    return Hash(bytes.fromhex(match[1] + match[2]), Algorithm(match[3] or "")), Suffix(match[4])
