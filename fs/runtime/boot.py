"""Telling a process that was killed from a machine that went down: only the second loses what was not synced."""

from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Differs from one start of the machine to the next."""
    return _BOOT_ID.read_text().strip()
