"""Reading a repository: trust, catalogs, cache, mount."""
