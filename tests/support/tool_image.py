"""An image with one static program, small enough to be made by every test, that does to files what a test wants."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import anyio

from converter.conversion import ConversionRequest
from converter.pipeline import convert_image
from converter.sources import parse_source
from tests.support.images import Layout, Member, directory, hardlink, make_layout, symlink
from tests.support.published import Published, publish
from tests.support.registry import Registry

PROGRAM = r"""
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
static int done(int status, const char *what) { if (status) perror(what); return status != 0; }
int main(int argc, char **argv) {
    const char *word = argv[1];
    if (!strcmp(word, "pause")) for (;;) pause();
    if (!strcmp(word, "append")) {
        FILE *f = fopen(argv[2], "a");
        return done(!f || fputs(argv[3], f) < 0 || fclose(f), argv[2]);
    }
    if (!strcmp(word, "move")) return done(rename(argv[2], argv[3]), argv[2]);
    if (!strcmp(word, "remove")) return done(remove(argv[2]), argv[2]);
    if (!strcmp(word, "chmod")) return done(chmod(argv[2], strtol(argv[3], 0, 8)), argv[2]);
    for (int i = 2; i < argc; i++) {
        FILE *f = fopen(argv[i], "r");
        int c;
        if (!f) { printf("no %s\n", argv[i]); continue; }
        while ((c = fgetc(f)) != EOF) putchar(c);
        if (ferror(f)) return done(1, argv[i]);
        fclose(f);
    }
    return 0;
}
"""
TOOL = "/bin/tool"


@dataclass(frozen=True, slots=True)
class ToolImages:
    """Two images of the same layers, in a registry and in a repository."""

    published: Published
    app: str  # reference; prints /etc/soft
    pause: str  # reference; does nothing
    layout: Layout  # of the first


def make_tool_images(work: Path, registry: Registry) -> ToolImages:
    """Build the program and the images below *work*, push and convert them. Needs gcc."""
    (work / "tool.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-static", "-Os", "-w", "-o", work / "tool", work / "tool.c"], check=True, timeout=60)
    tool = Member("bin/tool", (work / "tool").read_bytes(), mode=0o755)
    base = [directory("bin"), tool, directory("etc"), Member("etc/base", b"base\n"), Member("etc/gone", b"gone\n")]
    top = [Member("etc/top", b"top\n"), hardlink("etc/hard", "etc/base"), symlink("etc/soft", "top")]
    top += [directory("dir"), Member("dir/file", b"file\n"), Member("etc/empty")]
    published = publish(work / "made")
    layouts, references = [], []
    for name, command in (("app", ["cat", "/etc/soft"]), ("pause", ["pause"])):
        layout = make_layout(work / name, [base, top], settings={"Entrypoint": [TOOL], "Cmd": command})
        layouts.append(layout)
        references.append(registry.push(layout.source, f"real/{name}:1"))
        anyio.run(convert_image, ConversionRequest(source=parse_source(layout.source)), published.writer)
    return ToolImages(published, *references, layouts[0])
