#!/usr/bin/env python3
"""Puts images into one layout, under an index: usage: make-index.py LAYOUT IMAGE…; each is a layout with the tag 1."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

INDEX = "application/vnd.oci.image.index.v1+json"


def main() -> None:
    """Write the layout."""
    target, *images = map(Path, sys.argv[1:])
    blobs = target / "blobs" / "sha256"
    manifests = []
    for image in images:
        shutil.copytree(image / "blobs" / "sha256", blobs, dirs_exist_ok=True)
        [described] = json.loads((image / "index.json").read_text())["manifests"]
        manifest = json.loads((blobs / described["digest"].removeprefix("sha256:")).read_text())
        config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
        described.pop("annotations", None)
        manifests.append({**described, "platform": {key: config[key] for key in ("architecture", "os")}})
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    digest = hashlib.sha256(index).hexdigest()
    (blobs / digest).write_bytes(index)
    tagged = {
        "mediaType": INDEX,
        "digest": f"sha256:{digest}",
        "size": len(index),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


if __name__ == "__main__":
    main()
