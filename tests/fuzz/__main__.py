"""Search for inputs that break a target: ``python -m tests.fuzz [TARGET…] [--seconds N] [--json]``; needs atheris.

Each target runs in a process of its own, so that a crash of native code is seen as well. What breaks it is left in
``--work``. An input may take 10 s and 512 MiB. Exit 1 if something was found.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

INPUT_TIMEOUT_S = 10
MEMORY_MIB = 512
INPUT_BYTES = 16384


def main() -> int:
    """Run all targets, or the ones named."""
    from tests.fuzz import targets

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(targets.TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--work", type=Path, help="corpora and findings; temporary by default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        results = [search(name, work, arguments.seconds) for name in arguments.targets or targets.TARGETS]
        if arguments.json:
            print(json.dumps({"seconds_each": arguments.seconds, "targets": results}, indent=1))
        else:
            for one in results:
                print(f"{one['target']:16} {one['inputs']:10} inputs {one['coverage']:6} edges  {one['found'] or 'ok'}")
    return 1 if any(one["found"] for one in results) else 0


def search(name: str, work: Path, seconds: int) -> dict[str, Any]:
    """Let atheris search *name* for so long."""
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus, findings = work / name / "corpus", work / name / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    words = work / name / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    command = [
        sys.executable, "-m", "tests.fuzz.search", name, str(corpus), f"-max_total_time={seconds}",
        f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={INPUT_BYTES}",
        f"-artifact_prefix={findings}/", "-print_final_stats=1", *([f"-dict={words}"] if target.words else []),
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, check=False, timeout=seconds + 300)
    said = done.stderr.decode("utf-8", "replace") + done.stdout.decode("utf-8", "replace")
    inputs = re.search(r"number_of_executed_units:\s*(\d+)", said)
    coverage = re.findall(r"cov: (\d+)", said)
    return {
        "target": name,
        "seconds": round(time.monotonic() - began, 1),
        "inputs": int(inputs[1]) if inputs else 0,
        "coverage": int(coverage[-1]) if coverage else 0,
        "found": "" if done.returncode == 0 else said[said.find(" === Uncaught") :][-3000:],
    }


def _escaped(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
