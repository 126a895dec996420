"""The error for an invalid parameter of a request. It knows the field's name."""

from __future__ import annotations


class InvalidParam(ValueError):
    """A field of a request has an invalid value. The message begins with the field's name.

    InvalidParam("top_k", "must be 0 (off) or more, not -2").field  # "top_k"
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem
        """The message without the name."""
