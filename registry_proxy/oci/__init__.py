"""The OCI model as pure code: names, digests, manifests, challenges, error codes."""
