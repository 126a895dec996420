"""Collects the pieces of one answer and checks the complete answer. Has no side effects."""

from __future__ import annotations

from fgbench.client.endpoints import Endpoint, Piece
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec


class Answer:
    """The answer to one request. Times are seconds since the start of the load."""

    def __init__(self, spec: RequestSpec, endpoint: Endpoint, sent: float) -> None:
        self._spec = spec
        self._endpoint = endpoint
        self._splitter = endpoint.splitter()
        self._sent = sent
        self._times: list[float] = []
        self._ended = False
        self.prompt_tokens: int | None = None
        """Prompt tokens that the server reports; None: it has not reported them."""
        self.cached_tokens: int | None = None
        """Prompt tokens that the server found in its prefix cache; None: not reported."""
        self._output_tokens: int | None = None
        self._server: dict[str, float] | None = None
        self._error: str | None = None

    def feed(self, chunk: bytes, now: float) -> int:
        """Add received bytes; return the number of pieces with output that they completed.

        Raises StreamError if the bytes do not follow the endpoint's protocol.
        """
        before = len(self._times)
        for message in self._splitter.feed(chunk):
            self._take(self._endpoint.read(message), now)
        return len(self._times) - before

    def close(self, now: float) -> None:
        """End the answer after a complete HTTP response."""
        for message in self._splitter.close():
            self._take(self._endpoint.read(message), now)
        self._ended = self._ended or not self._endpoint.ends_with_marker

    def record(self, now: float, error: str | None = None, rejected: str | None = None) -> RequestRecord:
        """Return the record of the request, with times rounded to microseconds.

        Args:
            error: A failure outside the answer, such as a timeout; None: only the answer is checked.
            rejected: Why the server rejected the request; None: it did not.
        """
        ended_well = error is None and self._error is None and self._ended
        output_tokens = self._output_tokens
        if output_tokens is None:
            # The answer has no usage. If the endpoint never sends usage, a stream that ended well counts as
            # complete.
            is_complete = ended_well and self._times and not self._endpoint.ends_with_marker
            output_tokens = self._spec.output_tokens if is_complete else 0
        return RequestRecord(
            index=self._spec.index,
            scheduled=self._spec.scheduled,
            sent=round(self._sent, 6),
            prompt_tokens=self._spec.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            asked_tokens=self._spec.output_tokens,
            output_tokens=output_tokens,
            first_token=round(self._times[0], 6) if self._times else None,
            last_token=round(self._times[-1], 6) if self._times else None,
            token_times=tuple(round(t, 6) for t in self._times),
            finished=round(now, 6),
            error=None if rejected else error or self._problem(),
            rejected=rejected,
            server=self._server,
            user=self._spec.user,
        )

    def _take(self, piece: Piece, now: float) -> None:
        if piece.content:
            self._times.append(now)
        self._ended = self._ended or piece.last
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens
        if piece.cached_tokens is not None:
            self.cached_tokens = piece.cached_tokens
        if piece.output_tokens is not None:
            self._output_tokens = piece.output_tokens
        if piece.server is not None:
            self._server = piece.server
        if piece.error is not None:
            self._error = piece.error

    def _problem(self) -> str | None:
        """Return what is wrong with the answer; None if nothing is."""
        if self._error is not None:
            return f"server: {self._error}"
        if not self._ended:
            return "protocol: the stream ended before its closing marker"
        if not self._times:
            return "protocol: the answer holds no output"
        if self._output_tokens is None:
            if self._endpoint.ends_with_marker:
                return "protocol: the answer holds no usage, so its tokens cannot be counted"
        elif self._output_tokens != self._spec.output_tokens:
            return f"short: asked for {self._spec.output_tokens} tokens, got {self._output_tokens}"
        sent = 0 if isinstance(self._spec.prompt, str) else len(self._spec.prompt)
        if self.prompt_tokens is not None and self.prompt_tokens < sent:
            return f"short prompt: sent {sent} token ids, the server counted {self.prompt_tokens}"
        return None
