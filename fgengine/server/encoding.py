"""Turns prompts into token ids without stopping the server, and refuses what is too long before it costs.

Short texts are encoded at once. Chats and long texts go to ``fgengine.server.text_worker``, a process of
their own, because a chat template may loop without end and a long text takes seconds. Grammars are checked
there, because compiling a hostile one takes minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import subprocess
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fgengine.child import python_module
from fgengine.grammar import Grammar
from fgengine.scheduling.refusal import QueueFull
from fgengine.server.process import describe_exit
from fgengine.server.schemas import BadRequestError
from fgengine.server.text_worker import (
    Answer,
    CheckGrammar,
    EncodeChat,
    Encoded,
    EncodeText,
    Job,
    Loaded,
    Refused,
    TooLong,
    Usable,
    receive_answer,
    send,
)
from fgengine.text import TextCodec, TextError

WORKER = python_module("fgengine.server.text_worker")
SHORT_TEXT = 4000
"""Characters up to which a text is encoded in the server's process: that takes 1 to 5 ms."""
BODY_BASE = 512 * 1024
"""Bytes that the body of a request may have besides its prompt."""
BODY_BYTES_PER_CHARACTER = 2
"""Bytes of JSON for a character of the longest tokens. Those are spaces, line breaks (``\\n``) and ASCII."""
PROCESSES = 2
"""Processes for short chats, and for long prompts. One that takes long holds up only one of them."""
LONG_NICE = 10
"""Niceness of the processes for long prompts, so that they do not slow the engine's steps down."""
CPU_SECONDS, CPU_SECONDS_PER_CHARACTER = 2.0, 20e-6
"""Processor time that one prompt may take: 20 times of what 1,000,000 characters of English take."""
GRAMMAR_SECONDS = 1.0
"""Processor time that the check of a grammar may take. Usual ones take milliseconds."""
MAX_WAITING_GRAMMARS = 32
"""Number of grammars that may wait to be checked."""
CHECKED = 256
"""Number of checked grammars that are remembered."""
PATIENCE = 20.0
"""A process that has not answered after this many times its processor time is ended: it may be stopped."""
START_SECONDS = 120.0
"""Seconds that a process may take to start."""
MAX_WAITING = 64 * 1024**2
"""Characters of prompts that may wait to be encoded."""


class EncodingError(RuntimeError):
    """A prompt cannot be encoded through no fault of the request. The message is a sentence."""


class TextProcess:
    """One process that encodes. Its methods block, so call them in a thread."""

    def __init__(self, folder: Path, nice: int = 0) -> None:
        """Start the process. Raises EncodingError if it cannot load the tokenizer."""
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*WORKER, str(theirs.fileno()), str(folder), str(nice)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        loaded = self._receive(START_SECONDS)
        assert isinstance(loaded, Loaded)
        self.chat_problem = loaded.chat_problem

    @property
    def alive(self) -> bool:
        """Whether the process runs. The system may have ended it, for example because memory ran out."""
        return self._process.poll() is None

    def ask(self, job: Job) -> Answer:
        """Return the answer to a job.

        Raises EncodingError if the process has ended; it must not be used again.
        """
        with contextlib.suppress(OSError):  # it has ended: receiving reports how
            send(self._channel, job)
        return self._receive(job.cpu_seconds * PATIENCE)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _receive(self, seconds: float) -> Answer:
        self._channel.settimeout(seconds)
        try:
            return receive_answer(self._channel)
        except TimeoutError:
            self.close()
            raise EncodingError(f"it did not answer for {seconds:g} s") from None
        except (EOFError, OSError):
            status = self._process.wait()
            self.close()
            raise EncodingError(describe_exit(status)) from None


class Pool:
    """Processes that encode. Each job has one of them for itself; if all are busy, it waits."""

    def __init__(self, folder: Path, size: int, nice: int = 0) -> None:
        self._folder, self._nice = folder, nice
        self._idle: queue.SimpleQueue[TextProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(size, "encode")

    async def start(self) -> str:
        """Start a process; return why chats cannot be encoded, or an empty text. Raises EncodingError."""
        process = await asyncio.to_thread(TextProcess, self._folder, self._nice)
        self._idle.put(process)
        return process.chat_problem

    async def ask(self, job: Job) -> Answer:
        """Return the answer to a job. Raises EncodingError if it took too much time or memory."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, job)

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def _ask(self, job: Job) -> Answer:
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = TextProcess(self._folder, self._nice)
        if not process.alive:
            process.close()
            process = TextProcess(self._folder, self._nice)
        try:
            answer = process.ask(job)
        except EncodingError as error:
            if isinstance(job, CheckGrammar):
                return Refused(
                    f"{job.grammar.field} is too complex: its check took too much time or memory; simplify it"
                )
            what = "the model's chat template" if isinstance(job, EncodeChat) else "the model's tokenizer"
            raise EncodingError(f"{what} took too much time or memory for this prompt: {error}") from None
        self._idle.put(process)
        return answer


class Encoder:
    """Encodes prompts for one model.

        encoder = await Encoder.load(folder)
        encoder.max_tokens = 8192                  # when the engine knows it
        await encoder.text("some text")            # token ids

    All methods raise BadRequestError for a prompt that is too long, TextError if the tokenizer or the
    template refuses it, EncodingError if it took too much time or memory, and QueueFull if too many prompts
    wait.
    """

    def __init__(self, codec: TextCodec, folder: Path) -> None:
        self.codec = codec
        """The tokenizer, without the chat template."""
        self.max_tokens = 0
        """Tokens that a prompt may have, set when the engine is ready."""
        self.chat_problem = ""
        """The reason why chats cannot be encoded, if the model's template is unusable."""
        self._short, self._long = Pool(folder, PROCESSES), Pool(folder, PROCESSES, LONG_NICE)
        self._grammars = Pool(folder, 1, LONG_NICE)
        self._waiting = 0
        self._checked: OrderedDict[Grammar, str] = OrderedDict()
        """Why a grammar cannot be used; empty: it can be."""
        self._waiting_grammars = 0
        self._checking = asyncio.Lock()
        """Held while a grammar is checked, so that each is checked once."""

    @classmethod
    async def load(cls, folder: Path, model: str | None = None) -> Encoder:
        """Load the tokenizer of a folder and start a process.

        Raises ModelError if it cannot be used, or not with this model (a name or a path; None: any).
        """
        encoder = cls(await asyncio.to_thread(TextCodec.without_chats, folder, model), folder)
        try:
            encoder.chat_problem = await encoder._short.start()
        except EncodingError as error:
            encoder.chat_problem = f"the model's chat template cannot be loaded: {error}"
        return encoder

    @property
    def max_characters(self) -> int:
        """Characters that a text may have. A longer one has more than ``max_tokens`` tokens."""
        return self.max_tokens * self.codec.longest_token

    @property
    def max_body_bytes(self) -> int:
        """Bytes that the body of a request may have."""
        return BODY_BASE + BODY_BYTES_PER_CHARACTER * self.max_characters

    async def prompt(self, prompt: str | list[int], *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of a prompt, which may be text or token ids."""
        if isinstance(prompt, str):
            return await self.text(prompt, special_tokens=special_tokens)
        if len(prompt) > self.max_tokens:
            raise self._too_long(TooLong(len(prompt), "tokens"), "prompt")
        return prompt

    async def text(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with the model's beginning-of-sequence token."""
        if len(text) <= SHORT_TEXT:
            return self.codec.encode(text, special_tokens=special_tokens)
        self._check(len(text), "prompt")
        return await self._ask(
            EncodeText(text, self.max_tokens, _cpu_seconds(len(text)), special_tokens), len(text)
        )

    async def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of a chat in the model's format, up to the start of the assistant's answer."""
        if self.chat_problem:
            raise TextError(f"{self.chat_problem}; use /v1/completions")
        count = sum(len(text) for message in messages for text in message.values())
        self._check(count, "messages")
        return await self._ask(
            EncodeChat(
                [dict(message) for message in messages],
                self.max_tokens,
                self.max_characters + BODY_BASE,
                _cpu_seconds(count),
            ),
            count,
        )

    async def check(self, grammar: Grammar | None) -> None:
        """Check that a grammar can be used. Raises BadRequestError, QueueFull and EncodingError."""
        if grammar is None or self._checked.get(grammar) == "":
            return
        if grammar not in self._checked:
            if self._waiting_grammars >= MAX_WAITING_GRAMMARS:
                raise QueueFull("too many grammars wait to be checked", 1.0)
            self._waiting_grammars += 1
            try:
                async with self._checking:
                    if grammar not in self._checked:
                        self._checked[grammar] = await self._reason_against(grammar)
            finally:
                self._waiting_grammars -= 1
            while len(self._checked) > CHECKED:
                self._checked.popitem(last=False)
        if reason := self._checked[grammar]:
            raise BadRequestError(reason, grammar.field)

    async def _reason_against(self, grammar: Grammar) -> str:
        job = CheckGrammar(grammar, GRAMMAR_SECONDS)
        answer = await self._grammars.ask(job)
        if isinstance(answer, Usable):
            return ""
        assert isinstance(answer, Refused)
        return answer.reason

    def close(self) -> None:
        """End the processes."""
        self._short.close()
        self._long.close()
        self._grammars.close()

    def _check(self, characters: int, field: str) -> None:
        if characters > self.max_characters:
            raise self._too_long(TooLong(characters, "characters"), field)
        if self._waiting and self._waiting + characters > MAX_WAITING:
            raise QueueFull("too many long prompts wait to be encoded", 1.0)

    def _too_long(self, found: TooLong, field: str) -> BadRequestError:
        limit = f"{self.max_tokens} tokens"
        if found.unit == "characters":
            limit += f", which have at most {self.max_characters} characters"
        count = f"{found.count}" if found.exact else f"more than {found.count}"
        message = f"the prompt has {count} {found.unit}: the model takes {limit}"
        return BadRequestError(message, field, "context_length_exceeded")

    async def _ask(self, job: Job, characters: int) -> list[int]:
        self._waiting += characters
        try:
            answer = await (self._short if characters <= SHORT_TEXT else self._long).ask(job)
        finally:
            self._waiting -= characters
        if isinstance(answer, Encoded):
            return answer.ids
        if isinstance(answer, TooLong):
            raise self._too_long(answer, "messages" if isinstance(job, EncodeChat) else "prompt")
        assert isinstance(answer, Refused)
        raise TextError(answer.reason)


def _cpu_seconds(characters: int) -> float:
    return CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * characters
