"""``python -m fs.store.pac_worker``: runs a proxy configuration, which a stranger may have written.

Reads one JSON document: ``program`` and ``urls``, pairs of a URL and its host. Writes ``answers``, one for each, or
``error``. Memory and time are bounded; the interpreter is that of the package pacparser.
"""

import json
import resource
import sys

_CPU_S = 3
_MEMORY_BYTES = 512 << 20


def main() -> None:
    """Entry point."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    asked = json.load(sys.stdin)
    try:
        import pacparser  # noqa: PLC0415  # it may be absent
    except ImportError:
        print(json.dumps({"error": "install unpackd[pac], which brings pacparser"}))  # noqa: T201  # the answer
        return
    try:
        pacparser.init()
        pacparser.parse_pac_string(asked["program"])
        answers = [pacparser.find_proxy(url, host) for url, host in asked["urls"]]
    except Exception as error:  # noqa: BLE001  # the edge: whatever a stranger's program does is told
        print(json.dumps({"error": str(error) or type(error).__name__}))  # noqa: T201  # the answer
        return
    print(json.dumps({"answers": answers}))  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
