"""Writing a repository: ingest, catalogs, commits."""
