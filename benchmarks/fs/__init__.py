"""What the client costs its users, beside a local directory on the same disk in the same run."""
