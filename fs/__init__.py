"""The CernVM-FS repository: format, object stores, client and mount, publisher."""
