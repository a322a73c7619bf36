"""From a registry to a running process: push, convert, mount, chroot, ``ctr run``; then a table of what it took."""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo.stack import (
    DemoError,
    answers,
    bytes_answered,
    containerd,
    free_port,
    listens,
    registry,
    require_root,
    run,
    running,
    started,
    wait_until,
)

REPOSITORY = "unpacked.demo.local"
UNPACKD = Path(sys.executable).with_name("unpackd")
RECIPE = Path(__file__).with_name("make-image.sh")
CONVERSION_TIMEOUT_S = 900.0
PROGRAM = ("/usr/bin/python3", "/opt/app/hello.py")
PROGRAM_OF_ANY_IMAGE = ("/bin/sh", "-c", "echo hello from $(cat /etc/os-release | head -n 1)")


def main() -> int:
    """Parse the command line, run the demo, print the table."""
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("image", nargs="?", help="a reference in a public registry; default: made from packages")
    parser.add_argument("--layout", type=Path, help="an OCI layout with tag 1 instead of the image made from packages")
    parser.add_argument("--json", action="store_true", help="the table as one JSON document on stdout")
    options = parser.parse_args()
    try:
        require_root()
        figures = demonstrate(options.image, options.layout)
    except DemoError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print_table(figures)
    return 0


def demonstrate(image: str | None, layout: Path | None) -> dict[str, float]:
    """Run all steps in a folder that is removed afterwards; gives the figures by name."""
    figures: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(temporary_folder()))
        port, registry_port = free_port(), free_port()
        origin = f"http://127.0.0.1:{port}"
        source = None if image else (layout or demo_image())
        registry_log = folder / "registry.log"
        if source:
            stack.enter_context(registry(folder, registry_port, f"{origin}/hooks/distribution"))
            image = f"127.0.0.1:{registry_port}/demo/science:1"
        assert image is not None

        step("starting unpackd up: repository, farm, origin, status page")
        wishlist = folder / "wishlist.yaml"
        wish = f"http://{image.rpartition(':')[0]}:*" if source else f"https://{image}"
        wishlist.write_text(f"version: 1\nuser: demo\ncvmfs_repo: {REPOSITORY}\ninput:\n  - '{wish}'\n")
        up_log = folder / "up.log"
        command = [UNPACKD, "up", "--dir", folder / "up", "--name", REPOSITORY, "--wishlist", wishlist]
        up = stack.enter_context(running([*command, "--listen", f"127.0.0.1:{port}"], up_log))
        started(up, lambda: listens(port), "unpackd up", up_log)
        say(f"    status page: {origin}/")

        before = time.monotonic()
        if source:
            step(f"pushing the image to the registry: {image}")
            run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{source}:1", f"docker://{image}"])
            figures["push seconds"] = time.monotonic() - before
            before = time.monotonic()
        step("the farm converts it, told by the registry" if source else "the farm converts it, as the wishlist asks")
        state = wait_for_image(origin, image, up_log)
        figures["convert seconds"] = time.monotonic() - before
        public_path = str(state["public_path"]).lstrip("/")
        figures["bytes from the registry"] = bytes_answered(registry_log)

        step("mounting the repository")
        mountpoint = folder / "mnt"
        mountpoint.mkdir()
        before = time.monotonic()
        stack.enter_context(mounted(mountpoint, f"{origin}/cvmfs/{REPOSITORY}", folder))
        figures["mount seconds"] = time.monotonic() - before
        root = mountpoint / public_path
        say(f"    {public_path} -> {os.readlink(root)}")
        say("    " + "  ".join(sorted(os.listdir(root))))

        program = PROGRAM if (root / PROGRAM[1].lstrip("/")).exists() else PROGRAM_OF_ANY_IMAGE
        step(f"chroot {public_path} {' '.join(program)}")
        figures["chroot cold seconds"] = timed(lambda: say("    " + run(["chroot", root, *program]).strip()))
        figures["chroot warm seconds"] = timed(lambda: run(["chroot", root, *program]))

        step("containerd with the snapshotter: unpackd pull, ctr run")
        snapshotter_socket = folder / "snapshotter" / "snapshotter.sock"
        snapshotter_log = folder / "snapshotter.log"
        command = [UNPACKD, "snapshotter", "--address", snapshotter_socket, "--root", folder / "snapshotter-root"]
        snapshotter = stack.enter_context(running([*command, "--mountpoint", mountpoint], snapshotter_log))
        started(snapshotter, snapshotter_socket.exists, "unpackd snapshotter", snapshotter_log)
        socket_path = stack.enter_context(containerd(folder, snapshotter_socket))
        sent = bytes_answered(registry_log)
        figures["pull seconds"] = timed(lambda: run([UNPACKD, "pull", image, "--containerd", socket_path]))
        figures["bytes from the registry for the pull"] = bytes_answered(registry_log) - sent
        ctr = ["ctr", "--address", socket_path, "run", "--rm", "--snapshotter", "cvmfs-snapshotter", image]
        figures["ctr run seconds"] = timed(lambda: say("    " + run([*ctr, "demo-1", *program]).strip()))
        figures["ctr run again seconds"] = timed(lambda: run([*ctr, "demo-2", *program]))

        step("counting")
        figures |= content_figures(root, folder / "up", folder / "cache")
        if source:
            figures["second push visible seconds"] = second_push(source, image, root)
    return figures


def second_push(source: Path, image: str, root: Path) -> float:
    """Push the image under another tag; gives the seconds until the mounted client shows it."""
    step("pushing a second tag: it appears on the mounted client by itself")
    other = root.with_name(root.name.rpartition(":")[0] + ":2")
    reference = image.rpartition(":")[0] + ":2"
    run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{source}:1", f"docker://{reference}"])
    return wait_until(lambda: os.path.lexists(other), f"{other.name} on the mounted client")


def wait_for_image(origin: str, image: str, log: Path) -> dict[str, object]:
    """Wait until the farm has converted *image*; gives what its API says of it."""
    found: dict[str, object] = {}

    def converted() -> bool:
        with urllib.request.urlopen(f"{origin}/api/v1/images", timeout=10) as reply:
            images = json.load(reply)["images"]
        for known in images:
            if str(known["reference"]).removeprefix("http://").removeprefix("https://") == image:
                if known["state"] == "failed":
                    raise DemoError(f"the conversion failed: {known['error']}")
                found.update(known)
                return known["state"] == "done"
        return False

    wait_until(converted, f"the conversion of {image} (log: {log})", CONVERSION_TIMEOUT_S)
    return found


@contextmanager
def mounted(mountpoint: Path, url: str, folder: Path) -> Iterator[None]:
    """The repository mounted at *mountpoint*."""
    key = folder / "up" / "keys" / f"{REPOSITORY}.pub"
    run([UNPACKD, "mount", REPOSITORY, mountpoint, "--url", url, "--pubkey", key, "--cache", folder / "cache"])
    try:
        yield
    finally:
        if answers(["mountpoint", "-q", mountpoint]):
            run([UNPACKD, "umount", mountpoint])


def content_figures(root: Path, storage: Path, cache: Path) -> dict[str, float]:
    """What is in the image, what the repository holds for it, and what the client has fetched."""
    entries = files = size = 0
    for directory, names, plain in os.walk(root):
        entries += len(names) + len(plain)
        for name in plain:
            status = os.lstat(os.path.join(directory, name))
            if status.st_mode & 0o170000 == 0o100000:
                files += 1
                size += status.st_size
    objects = [path for path in storage.glob("**/data/??/*") if path.is_file()]
    return {
        "entries": entries,
        "files": files,
        "bytes in files": size,
        "objects in the repository": len(objects),
        "bytes in the repository": sum(path.stat().st_size for path in objects),
        "bytes in the client's cache": sum(path.stat().st_size for path in cache.glob("**/*") if path.is_file()),
    }


def demo_image() -> Path:
    """The OCI layout of the image made from packages; made once a recipe and kept."""
    recipe = hashlib.sha256(RECIPE.read_bytes()).hexdigest()[:12]
    base = Path(os.environ.get("UNPACKD_DEMO_CACHE", "/var/cache/unpackd-demo"))
    layout = base / recipe / "layout"
    if not (layout / "index.json").exists():
        step("making an image from Debian packages (kept for the next time)")
        shutil.rmtree(layout.parent, ignore_errors=True)
        if subprocess.run([RECIPE, layout.parent], check=False, stdin=subprocess.DEVNULL).returncode != 0:
            raise DemoError("the image could not be made; the last words above say why")
    return layout


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A folder of its own, kept with its logs if something fails."""
    folder = tempfile.mkdtemp(prefix="unpackd-demo-")
    try:
        yield folder
    except BaseException:
        say(f"logs are kept in {folder}")
        raise
    shutil.rmtree(folder, ignore_errors=True)


def timed(action: Callable[[], object]) -> float:
    """The seconds that *action* takes."""
    before = time.monotonic()
    action()
    return time.monotonic() - before


def step(text: str) -> None:
    """Say what comes now."""
    say(f"\033[1m--> {text}\033[0m" if sys.stderr.isatty() else f"--> {text}")


def say(text: str) -> None:
    """Talk goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def print_table(figures: dict[str, float]) -> None:
    """The figures, one a line, with units that people read."""
    print()
    for name, value in figures.items():
        label = name.removesuffix(" seconds")
        print(f"  {label:<40} {readable(name, value):>14}")
    stored, held = figures["bytes in the repository"], figures["bytes in files"]
    print(f"  {'stored bytes per byte of files':<40} {stored / held:>14.2f}")


def readable(name: str, value: float) -> str:
    """*value* in the unit that its *name* says."""
    if name.endswith("seconds"):
        return f"{value:.2f} s"
    if name.startswith("bytes"):
        return f"{value / 1e6:,.1f} MB" if value >= 1e5 else f"{value:,.0f} B"
    return f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
