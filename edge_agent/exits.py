"""The exit codes, told in `edge-agent --help`."""

EXIT_UNHEALTHY = 1  # `doctor` found something that does not work
EXIT_DAMAGED = 1  # `spool verify` found something damaged
EXIT_CONFIG = 2  # the configuration is wrong: correct it
EXIT_PARKED = 3  # all else is settled, but parked envelopes are left: see `edge-agent status`
EXIT_RETRY = 75  # the spool broke, or another agent runs: start again (EX_TEMPFAIL)
