"""Messages and stubs of containerd's services, generated from ``protos/`` when the project is built."""
