"""References, digests, manifests, challenges as pure functions and values."""
