"""The program's exit codes."""

DONE = 0
FAILED = 1
WRONG_USAGE = 2
TOO_MANY_ERRORS = 3
CLIENT_LIMIT = 4
"""The client, not the server, was the limit."""
LIMIT_BROKEN = 5
"""A comparison broke a limit of --fail-if."""
INTERRUPTED = 130
STATUS = {
    DONE: "complete",
    FAILED: "failed",
    TOO_MANY_ERRORS: "too many errors",
    CLIENT_LIMIT: "client was the limit",
    INTERRUPTED: "interrupted",
}
"""Exit code of a run -> status of its point in a sweep."""
