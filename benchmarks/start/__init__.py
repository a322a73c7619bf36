"""From nothing to the first line of a container's output, by several snapshotters; see ``__main__``."""
