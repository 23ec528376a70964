"""What the process that checks a signature says by its exit code. Python's own failure is 1, so neither word is 1."""

EXIT_SIGNED = 0
EXIT_FORGED = 3
