"""Compiles grammars, and follows an answer through one: which tokens may come next.

llguidance does the work; it is imported when the first grammar arrives. A grammar comes from a client, so it
may be hostile. What one step takes is limited here. What the compilation takes is limited by the process that
checks a grammar before the engine gets it (``fgengine.server.text_worker``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fgengine.extras import require_package
from fgengine.grammar import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions
    from tokenizers import Tokenizer

WHITESPACE = r"[ \t\r\n]{0,20}"
"""Whitespace between the parts of a JSON text. Without a limit, a model may generate nothing else."""
JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
}
"""llguidance's options for JSON schemas, under the names that a schema's ``x-guidance`` has too."""
COMPILED = 16
"""Number of compiled grammars that are kept: a client usually sends the same one again and again."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 25_000,
    "max_lexer_states": 10_000,
    "max_grammar_size": 100_000,
}
"""llguidance's limits, in its units. A lexer state takes 1 to 2 kB. A mask takes at most tens of
milliseconds."""


class GrammarError(ValueError):
    """A grammar cannot be used. The message names the field and the reason."""


class Grammars:
    """Compiles grammars for one model. Its methods may be called from several threads.

    grammars = Grammars(lambda: tokenizer, vocab_size=49152, eos_token_ids=[0])
    matcher = grammars.matcher(Grammar("regex", "yes|no"), prompt_len=3)
    matcher.allowed(tokens, 3)      # which tokens may be the first of the answer
    """

    def __init__(
        self, open_tokenizer: Callable[[], Tokenizer], *, vocab_size: int, eos_token_ids: Iterable[int]
    ) -> None:
        """``open_tokenizer`` is called once, for the first grammar.

        ``vocab_size``: number of logits. Those beyond the tokenizer's vocabulary are never allowed.
        """
        self._open_tokenizer = open_tokenizer
        self._vocab_size = vocab_size
        self._eos = sorted(token for token in eos_token_ids if 0 <= token < vocab_size)
        self._tokenizer: LLTokenizer | None = None
        self._opening = threading.Lock()
        self._compiled: OrderedDict[Grammar, LLMatcher | GrammarError] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, grammar: Grammar) -> bool:
        """Whether the grammar is compiled, so that ``matcher`` takes microseconds."""
        return grammar in self._compiled

    def matcher(self, grammar: Grammar, prompt_len: int) -> Matcher:
        """Return a matcher for the answer to a prompt. Raises GrammarError."""
        found = self.compile(grammar)
        if isinstance(found, GrammarError):
            raise found
        return Matcher(found.deep_copy(), prompt_len, self._eos)

    def compile(self, grammar: Grammar) -> LLMatcher | GrammarError:
        """Compile a grammar, unless it is compiled. Returns the matcher to copy, or why there is none."""
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        found: LLMatcher | GrammarError
        try:
            found = self._compile(grammar)
        except GrammarError as error:
            found = error
        with self._lock:
            self._compiled[grammar] = found
            while len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return found

    def _compile(self, grammar: Grammar) -> LLMatcher:
        require_package("llguidance", grammar.field)
        from llguidance import LLMatcher, LLParserLimits

        if not self._eos:
            raise GrammarError(f"{grammar.field} needs a model with an EOS token, which ends the answer")
        tokenizer = self._for_grammars(grammar.field)
        try:
            if grammar.kind == "json_schema":
                source = LLMatcher.grammar_from_json_schema(grammar.text, overrides=JSON_OPTIONS)
            elif grammar.kind == "regex":
                source = LLMatcher.grammar_from_regex(grammar.text)
            else:
                source = LLMatcher.grammar_from_lark(grammar.text)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from None
        matcher = LLMatcher(
            tokenizer, source, log_level=0, limits=LLParserLimits(**LIMITS, verbose_errors=False)
        )
        mask = matcher.compute_bitmask()  # some grammars fail only here
        if matcher.is_error():
            raise _refusal(grammar, matcher.get_error())
        if not any(mask):
            raise _refusal(grammar, "no text follows it")
        return matcher

    def _for_grammars(self, field: str) -> LLTokenizer:
        """Return the tokenizer in llguidance's form. Making it takes a tenth of a second or more."""
        from llguidance import LLTokenizer

        with self._opening:
            if self._tokenizer is None:
                try:
                    found = self._open_tokenizer()
                    highest = max(found.get_vocab(with_added_tokens=True).values(), default=0)
                    size = max(self._vocab_size, highest + 1)
                    ends = [token for token in self._eos if found.id_to_token(token) is not None]
                    if not ends:
                        raise ValueError("it does not have the model's EOS token")
                    self._tokenizer = LLTokenizer(found.to_str(), n_vocab=size, eos_token=ends)
                except BaseException as error:  # the library's panics are no Exception
                    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                        raise GrammarError(
                            f"{field} cannot be used with this model's tokenizer: {_first_line(str(error))}"
                        ) from None
                    raise
            return self._tokenizer


class Matcher:
    """Follows one answer through a grammar.

    Its state follows from the request's tokens alone. So it is the same after the KV was discarded, and each
    token is read once.
    """

    def __init__(self, matcher: LLMatcher, prompt_len: int, eos_token_ids: Sequence[int]) -> None:
        self._matcher = matcher
        self._read = prompt_len
        self._eos = eos_token_ids
        self.failure = ""
        """Why the grammar cannot be followed any more, for example because a step exceeded a limit."""

    def allowed(self, tokens: Sequence[int], end: int) -> bytes:
        """Return which tokens may follow the first ``end`` tokens of the request.

        Bit ``token % 8`` of byte ``token // 8`` is 1 if the token may. EOS may follow exactly when the answer
        is complete. After a failure only EOS may, so that the request ends.
        """
        if not self.failure:
            self._matcher.consume_tokens(list(tokens[self._read : end]))
            self._read = end
            mask = self._matcher.compute_bitmask()
            if self._matcher.is_error():
                self.failure = _first_line(self._matcher.get_error())
            elif any(mask):
                return mask
            else:
                self.failure = "no token of the model can follow"
        only_eos = bytearray(len(self._matcher.compute_bitmask()))
        for token in self._eos:
            only_eos[token // 8] |= 1 << token % 8
        return bytes(only_eos)


def _refusal(grammar: Grammar, reason: str) -> GrammarError:
    if reason.startswith("NoExtension"):
        reason = "no text follows it"
    what = "schema" if grammar.kind == "json_schema" else "grammar"
    return GrammarError(f"{grammar.field} has a {what} that cannot be used: {_first_line(reason)}")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
