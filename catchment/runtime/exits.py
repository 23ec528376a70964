"""The exit codes of both programs: one table, shown by `--help` and in docs/operator/reference.md."""

DONE, STOP, USAGE, REFUSED, RETRY, INTERRUPTED, FORCED = 0, 1, 2, 3, 75, 130, 143

MEANINGS = {
    DONE: "done",
    STOP: "stop and look: a check found something wrong, the lake or spool is damaged, or an internal error",
    USAGE: "the command or the configuration is wrong: correct what the message names",
    REFUSED: "refused as it stands: there is no such thing, it is not valid, or it is in use",
    RETRY: "try again later: broker, storage, disk or spool is unavailable",
    INTERRUPTED: "interrupted",
    FORCED: "stopped at once, because it did not end in time after SIGTERM",
}


def exit_table() -> str:
    """The table as one paragraph of a help text."""
    return "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items()) + "."
