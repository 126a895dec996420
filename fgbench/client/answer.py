"""Collects the pieces of one answer and checks the complete answer. Has no side effects."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fgbench.client.endpoints import LONE_SURROGATE, Endpoint, Piece
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

BUNDLED = 0.75
"""If an answer has fewer pieces per token than this, its pieces carry several tokens each."""
BEGINNING_BYTES = 200
BROKEN_OFF = ("abort", "aborted", "cancelled", "error")
"""Reasons for the end of an answer that neither the model nor the requested length gave."""


class Answer:
    """The answer to one request. Times are seconds since the start of the load."""

    def __init__(
        self,
        spec: RequestSpec,
        endpoint: Endpoint,
        sent: float,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        """Begin an answer.

        ``count_tokens``: counts the tokens of an answer that reports none, from its text; None: nothing can.
        """
        self._spec = spec
        self._count_tokens = count_tokens
        self._texts: list[bytes] = []
        """Texts of the pieces as JSON strings, if the endpoint keeps them."""
        self._endpoint = endpoint
        self._splitter = endpoint.splitter()
        self._sent = sent
        self._times: list[float] = []
        self._empty: set[int] = set()
        """Positions in ``_times`` of the pieces whose text was empty."""
        self._ended = False
        self._finished = ""
        """Why the answer ended, as the server said; empty: it did not say."""
        self._beginning = b""
        """First bytes of the answer, until a message is complete. They tell what it is, if not a stream."""
        self._messages = 0
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
        if not self._messages and len(self._beginning) < BEGINNING_BYTES:
            self._beginning += chunk[:BEGINNING_BYTES]
        for message in self._splitter.feed(chunk):
            self._take(self._endpoint.read(message), now)
        return len(self._times) - before

    def close(self, now: float) -> None:
        """End the answer after a complete HTTP response."""
        for message in self._splitter.close():
            self._take(self._endpoint.read(message), now)
        # Some servers end the response without a closing marker, after they said why the answer ended.
        self._ended = self._ended or bool(self._finished) or not self._endpoint.ends_with_marker

    def record(self, now: float, error: str | None = None, rejected: str | None = None) -> RequestRecord:
        """Return the record of the request, with times rounded to microseconds.

        Args:
            error: A failure outside the answer, such as a timeout; None: only the answer is checked.
            rejected: Why the server rejected the request; None: it did not.
        """
        if error is None and self._error is None and self._ended and self._output_tokens is None:
            self._output_tokens = self._tokens_without_usage()
        output_tokens = self._output_tokens or 0
        times = self._times_of_tokens(output_tokens)
        return RequestRecord(
            index=self._spec.index,
            scheduled=self._spec.scheduled,
            sent=round(self._sent, 6),
            prompt_tokens=self._spec.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens,
            asked_tokens=self._spec.output_tokens,
            output_tokens=output_tokens,
            first_token=round(times[0], 6) if times else None,
            last_token=round(times[-1], 6) if times else None,
            token_times=tuple(round(t, 6) for t in times),
            finished=round(now, 6),
            error=None if rejected else error or self._problem(),
            rejected=rejected,
            server=self._server,
            user=self._spec.user,
        )

    def _tokens_without_usage(self) -> int | None:
        """Return the tokens of a complete answer whose server does not count them; None: not known.

        An answer that ended at its length has the number of tokens that was asked for. So has every answer of
        an endpoint that never reports usage, because its length is forced.
        """
        if not self._times:
            return None
        if self._finished == "length" or not self._endpoint.ends_with_marker:
            return self._spec.output_tokens
        if self._count_tokens is None or not self._texts:
            return None
        text = "".join(msgspec.json.decode(LONE_SURROGATE.sub(rb"\\ufffd", piece)) for piece in self._texts)
        return min(self._spec.output_tokens, self._count_tokens(text))

    def _times_of_tokens(self, output_tokens: int) -> list[float]:
        """Return the times of the pieces that carry tokens.

        A piece without text may carry a token that is only a part of a character. But if there are more
        pieces than tokens, some pieces carry none. These are pieces without text: first those at the
        beginning, such as a message with only a role, then those at the end, such as a closing message. If
        pieces carry several tokens each, no piece without text at the beginning or the end carries one.
        """
        times, last = self._times, len(self._times) - 1
        if not self._empty or not output_tokens:
            return times
        bundled = len(times) < BUNDLED * output_tokens
        surplus = len(times) if bundled else len(times) - output_tokens
        first = 0
        while first < last and first in self._empty and surplus > 0:
            first, surplus = first + 1, surplus - 1
        while last > first and last in self._empty and surplus > 0:
            last, surplus = last - 1, surplus - 1
        return times[first : last + 1]

    def _take(self, piece: Piece, now: float) -> None:
        self._messages += 1
        if piece.content:
            if piece.empty:
                self._empty.add(len(self._times))
            self._times.append(now)
        self._texts += piece.texts
        self._finished = self._finished or piece.finished
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
        if not self._messages and self._beginning:
            return f"protocol: {_what_it_is(self._beginning)}"
        if not self._ended:
            return "protocol: the stream ended before its closing marker"
        natural = self._endpoint.wishes.natural_lengths
        if self._finished.lower() in BROKEN_OFF:
            return f"server: it broke the answer off ({self._finished})"
        if not self._times and not (natural and self._finished and not self._output_tokens):
            return "protocol: the answer holds no output"
        if self._output_tokens is None and self._times:
            return f"protocol: the answer holds no usage, so its tokens cannot be counted: {self._remedy()}"
        asked, got = self._spec.output_tokens, self._output_tokens or 0
        if got > asked or (got < asked and not natural):
            return f"{'short' if got < asked else 'long'}: asked for {asked} tokens, got {got}"
        sent = 0 if isinstance(self._spec.prompt, str) else len(self._spec.prompt)
        if self.prompt_tokens is not None and self.prompt_tokens < sent:
            return f"short prompt: sent {sent} token ids, the server counted {self.prompt_tokens}"
        return None

    def _remedy(self) -> str:
        if self._endpoint.wishes.natural_lengths:
            return "give the model's tokenizer with --tokenizer"
        return "the server ended it before its length, so try --natural-lengths with --tokenizer"


def _what_it_is(beginning: bytes) -> str:
    """Return what an answer is that is not a stream of messages, from its first bytes."""
    text = beginning.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        return f"the server answered at once instead of streaming: {text[:80]}"
    if text.startswith("<"):
        return f"the server answered with a web page, so this is not its API: {text[:80]}"
    return f"the answer is not a stream of server-sent events: {text[:80]}"
