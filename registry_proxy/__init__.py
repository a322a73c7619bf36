"""The OCI distribution protocol: client, tokens, pull-through cache."""
