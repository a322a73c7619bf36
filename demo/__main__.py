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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs while the demo goes on, and where it is."""

    folder: Path
    image: str  # the reference, without scheme
    layout: Path | None  # the image that is pushed; None for one in a public registry
    origin: str  # URL of unpackd's listener
    figures: dict[str, float]

    @property
    def mountpoint(self) -> Path:
        """Where the repository is mounted."""
        return self.folder / "mnt"

    @property
    def registry_log(self) -> Path:
        """The access log of the local registry; absent for a public one."""
        return self.folder / "registry.log"


def demonstrate(image: str | None, layout: Path | None) -> dict[str, float]:
    """Run all steps in a folder that is removed afterwards; gives the figures by name."""
    source = None if image else (layout or demo_image())
    with ExitStack() as blocks:
        folder = Path(blocks.enter_context(temporary_folder()))
        port, registry_port = free_port(), free_port()
        origin = f"http://127.0.0.1:{port}"
        if source:
            blocks.enter_context(registry(folder, registry_port, f"{origin}/hooks/distribution"))
        stack = Stack(folder, image or f"127.0.0.1:{registry_port}/demo/science:1", source, origin, {})
        start_unpackd(stack, port, blocks)
        root = convert(stack, blocks)
        run_by_chroot(stack, root)
        run_by_containerd(stack, root, blocks)
        step("counting")
        stack.figures.update(content_figures(root, folder / "up", folder / "cache"))
        if source:
            stack.figures["second push visible seconds"] = second_push(source, stack.image, root)
        return stack.figures


def start_unpackd(stack: Stack, port: int, blocks: ExitStack) -> None:
    """``unpackd up`` with a wishlist that asks for the image."""
    step("starting unpackd up: repository, farm, origin, status page")
    wishlist = stack.folder / "wishlist.yaml"
    wish = f"http://{stack.image.rpartition(':')[0]}:*" if stack.layout else f"https://{stack.image}"
    wishlist.write_text(f"version: 1\nuser: demo\ncvmfs_repo: {REPOSITORY}\ninput:\n  - '{wish}'\n")
    log = stack.folder / "up.log"
    command = [UNPACKD, "up", "--dir", stack.folder / "up", "--name", REPOSITORY, "--wishlist", wishlist]
    process = blocks.enter_context(running([*command, "--listen", f"127.0.0.1:{port}"], log))
    started(process, lambda: listens(port), "unpackd up", log)
    say(f"    status page: {stack.origin}/")


def convert(stack: Stack, blocks: ExitStack) -> Path:
    """Push the image, wait for the farm, mount the repository; gives the image's path in the mount."""
    figures = stack.figures
    if stack.layout:
        step(f"pushing the image to the registry: {stack.image}")
        figures["push seconds"] = push(stack.layout, stack.image)
    step("the farm converts it, told by the registry" if stack.layout else "the farm converts it, as the wish says")
    before = time.monotonic()
    state = wait_for_image(stack.origin, stack.image, stack.folder / "up.log")
    figures["convert seconds"] = time.monotonic() - before
    figures["bytes from the registry"] = bytes_answered(stack.registry_log)

    step("mounting the repository")
    stack.mountpoint.mkdir()
    before = time.monotonic()
    blocks.enter_context(mounted(stack))
    figures["mount seconds"] = time.monotonic() - before
    path = str(state["public_path"]).lstrip("/")
    root = stack.mountpoint / path
    say(f"    {path} -> {root.readlink()}")
    say("    " + "  ".join(sorted(os.listdir(root))))
    return root


def run_by_chroot(stack: Stack, root: Path) -> None:
    """A program from the mounted image, twice."""
    program = program_of(root)
    step(f"chroot {root.relative_to(stack.mountpoint)} {' '.join(program)}")
    stack.figures["chroot cold seconds"] = timed(lambda: say("    " + run(["chroot", root, *program]).strip()))
    stack.figures["chroot warm seconds"] = timed(lambda: run(["chroot", root, *program]))


def run_by_containerd(stack: Stack, root: Path, blocks: ExitStack) -> None:
    """Our snapshotter, containerd, a lazy pull, two containers."""
    step("containerd with the snapshotter: unpackd pull, ctr run")
    figures, folder, program = stack.figures, stack.folder, program_of(root)
    plugin, log = folder / "snapshotter" / "snapshotter.sock", folder / "snapshotter.log"
    command = [UNPACKD, "snapshotter", "--address", plugin, "--root", folder / "snapshotter-root"]
    process = blocks.enter_context(running([*command, "--mountpoint", stack.mountpoint], log))
    started(process, plugin.exists, "unpackd snapshotter", log)
    address = blocks.enter_context(containerd(folder, plugin))
    sent = bytes_answered(stack.registry_log)
    figures["pull seconds"] = timed(lambda: run([UNPACKD, "pull", stack.image, "--containerd", address]))
    figures["bytes from the registry for the pull"] = bytes_answered(stack.registry_log) - sent
    ctr = ["ctr", "--address", address, "run", "--rm", "--snapshotter", "cvmfs-snapshotter", stack.image]
    figures["ctr run seconds"] = timed(lambda: say("    " + run([*ctr, "demo-1", *program]).strip()))
    figures["ctr run again seconds"] = timed(lambda: run([*ctr, "demo-2", *program]))


def program_of(root: Path) -> tuple[str, ...]:
    """What is run from the image: the demo's own program if it is there."""
    return PROGRAM if (root / PROGRAM[1].lstrip("/")).exists() else PROGRAM_OF_ANY_IMAGE


def push(layout: Path, reference: str) -> float:
    """Copy the image into the local registry; gives the seconds."""
    command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{reference}"]
    return timed(lambda: run(command))


def second_push(source: Path, image: str, root: Path) -> float:
    """Push the image under another tag; gives the seconds until the mounted client shows it."""
    step("pushing a second tag: it appears on the mounted client by itself")
    other = root.with_name(root.name.rpartition(":")[0] + ":2")
    reference = image.rpartition(":")[0] + ":2"
    push(source, reference)
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
def mounted(stack: Stack) -> Iterator[None]:
    """The repository at the mount point."""
    key = stack.folder / "up" / "keys" / f"{REPOSITORY}.pub"
    where = ["--url", f"{stack.origin}/cvmfs/{REPOSITORY}", "--pubkey", key, "--cache", stack.folder / "cache"]
    run([UNPACKD, "mount", REPOSITORY, stack.mountpoint, *where])
    try:
        yield
    finally:
        if answers(["mountpoint", "-q", stack.mountpoint]):
            run([UNPACKD, "umount", stack.mountpoint])


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
