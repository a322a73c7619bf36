"""The repository format as pure functions and values: no files, sockets, clock or logging."""
