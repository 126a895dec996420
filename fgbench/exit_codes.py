"""What the program's exit codes mean."""

DONE = 0
FAILED = 1
WRONG_USAGE = 2
TOO_MANY_ERRORS = 3
CLIENT_LIMIT = 4
"""The client, not the server, was the limit."""
INTERRUPTED = 130
STATUS = {
    DONE: "complete",
    FAILED: "failed",
    TOO_MANY_ERRORS: "too many errors",
    CLIENT_LIMIT: "client was the limit",
    INTERRUPTED: "interrupted",
}
"""Of a point of a sweep, by the exit code of its run."""
