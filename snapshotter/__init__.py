"""containerd's remote snapshotter over a mounted repository."""
