"""What all commands share: exit codes, errors, logs, output, signals."""
