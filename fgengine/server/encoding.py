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
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from fgengine.cache import cache_folder
from fgengine.child import ending_signals_blocked, python_module
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
from fgengine.server.tools import Tool
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
MAX_WAITING, MAX_JOBS = 64 * 1024**2, 4096
"""Characters, and number, of the prompts that may wait to be encoded."""


class EncodingError(RuntimeError):
    """A prompt cannot be encoded through no fault of the request. The message is a sentence."""


class TextProcess:
    """One process that encodes. Its methods block, so call them in a thread."""

    def __init__(self, folder: Path, nice: int = 0) -> None:
        """Start the process; it can be used once ``loaded`` has returned. Raises OSError."""
        self._channel, theirs = socket.socketpair()
        with theirs, ending_signals_blocked():
            self._process = subprocess.Popen(
                [*WORKER, str(theirs.fileno()), str(folder), str(nice)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def loaded(self) -> str:
        """Wait for the start; return why chats cannot be encoded, or an empty text.

        Raises EncodingError if it cannot load the tokenizer.
        """
        loaded = self._receive(START_SECONDS)
        assert isinstance(loaded, Loaded)
        return loaded.chat_problem

    @property
    def pid(self) -> int:
        """The process's number in the operating system."""
        return self._process.pid

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

    def kill(self) -> None:
        """End the process from any thread; one that waits for its answer gets an EncodingError."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and forget it."""
        self._process.kill()
        self._process.wait()
        self._channel.close()

    def _receive(self, seconds: float) -> Answer:
        self._channel.settimeout(seconds)
        try:
            return receive_answer(self._channel)
        except TimeoutError:
            raise EncodingError(f"its process did not answer for {seconds:g} s") from None
        except (EOFError, OSError):
            raise EncodingError(describe_exit(self._process.wait())) from None


class Pool:
    """Processes that encode. Each job has one of them for itself; if all are busy, it waits."""

    def __init__(self, folder: Path, size: int, nice: int = 0) -> None:
        self._folder, self._nice = folder, nice
        self._idle: queue.SimpleQueue[TextProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(size, "encode")
        self._processes: set[TextProcess] = set()
        """Those that may run. Threads add and remove them, under the lock."""
        self._lock = threading.Lock()
        self._closed = False

    async def start(self) -> str:
        """Start a process; return why chats cannot be encoded, or an empty text. Raises EncodingError."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._start_one)

    async def ask(self, job: Job) -> Answer:
        """Return the answer to a job. Raises EncodingError if it took too much time or memory."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, job)

    def close(self) -> None:
        """End the processes, also those that have a job."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_one(self) -> str:
        process = self._new_process()
        try:
            problem = process.loaded()
        except EncodingError:
            self._forget(process)
            raise
        self._idle.put(process)
        return problem

    def _new_process(self) -> TextProcess:
        with self._lock:
            if self._closed:
                raise EncodingError("the server is shutting down")
            try:
                process = TextProcess(self._folder, self._nice)
            except OSError as error:
                raise EncodingError(f"the process for prompts could not be started: {error}") from None
            self._processes.add(process)
            return process

    def _forget(self, process: TextProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.close()

    def _ask(self, job: Job) -> Answer:
        process = self._take()
        try:
            answer = process.ask(job)
        except EncodingError as error:
            self._forget(process)
            if isinstance(job, CheckGrammar):
                return Refused(
                    f"{job.grammar.field} is too complex: its check took too much time or memory; simplify it"
                )
            what = "the model's chat template" if isinstance(job, EncodeChat) else "the model's tokenizer"
            raise EncodingError(f"{what} took too much time or memory for this prompt: {error}") from None
        self._idle.put(process)
        return answer

    def _take(self) -> TextProcess:
        """Return a process that runs and has no job."""
        while True:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                self._start_one()
                continue
            if process.alive:
                return process
            self._forget(process)


class Encoder:
    """Encodes prompts for one model.

        encoder = await Encoder.load(folder)
        encoder.max_tokens = 8192                  # when the engine knows it
        await encoder.text("some text")            # token ids

    All methods raise BadRequestError for a prompt that is too long, TextError if the tokenizer or the
    template refuses it, EncodingError if it took too much time or memory, and QueueFull if too many prompts
    wait.
    """

    def __init__(self, codec: TextCodec, folder: Path, *, trusted: bool = True) -> None:
        """``trusted``: whether the tokenizer may encode in the server's process. One that a user's folder has
        may have a regular expression that takes hours for a short text.
        """
        self.codec = codec
        """The tokenizer, without the chat template."""
        self.max_tokens = 0
        """Tokens that a prompt may have, set when the engine is ready."""
        self.chat_problem = ""
        """The reason why chats cannot be encoded, if the model's template is unusable."""
        self._short, self._long = Pool(folder, PROCESSES), Pool(folder, PROCESSES, LONG_NICE)
        self._grammars = Pool(folder, 1, LONG_NICE)
        self._inline = SHORT_TEXT if trusted else 0
        self._waiting, self._jobs = 0, 0
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
        codec = await asyncio.to_thread(TextCodec.without_chats, folder, model)
        trusted = folder.resolve().is_relative_to(cache_folder().resolve())  # its files were verified
        encoder = cls(codec, folder, trusted=trusted)
        try:
            encoder.chat_problem = await encoder._short.start()
        except EncodingError as error:
            encoder.chat_problem = f"the model's chat template cannot be loaded: {error}"
        except BaseException:  # the server is ending
            encoder.close()
            raise
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

    async def prompts(
        self, prompts: Sequence[str | list[int]], *, special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the token ids of several prompts. Other requests have their turns in between."""
        encoded = []
        for prompt in prompts:
            encoded.append(await self.prompt(prompt, special_tokens=special_tokens))
            if len(prompts) > 1:
                await asyncio.sleep(0)
        return encoded

    async def text(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with the model's beginning-of-sequence token."""
        if len(text) <= self._inline:
            return self.codec.encode(text, special_tokens=special_tokens)
        self._check(len(text), "prompt")
        return await self._ask(
            EncodeText(text, self.max_tokens, _cpu_seconds(len(text)), special_tokens), len(text)
        )

    async def chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> list[int]:
        """Return the token ids of a chat in the model's format, up to the start of the assistant's answer.

        ``messages``: as ``TextCodec.render_chat`` takes them. ``tools``: what the template shows.
        """
        if self.chat_problem:
            raise TextError(f"{self.chat_problem}; use /v1/completions")
        try:
            count = sum(_characters(value) for message in messages for value in message.values())
            self._check(count, "messages")
            chat, shown = msgspec.json.encode(messages), msgspec.json.encode(tools)
        except RecursionError:
            raise BadRequestError(
                "the chat is nested too deeply: send one with less nesting", "messages"
            ) from None
        count += len(shown)
        limit = self.max_characters + BODY_BASE
        return await self._ask(EncodeChat(chat, shown, self.max_tokens, limit, _cpu_seconds(count)), count)

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
        if self._jobs >= MAX_JOBS or (self._waiting and self._waiting + characters > MAX_WAITING):
            raise QueueFull("too many prompts wait to be encoded", 1.0)

    def _too_long(self, found: TooLong, field: str) -> BadRequestError:
        limit = f"{self.max_tokens} tokens"
        if found.unit == "characters":
            limit += f", which have at most {self.max_characters} characters"
        count = f"{found.count}" if found.exact else f"more than {found.count}"
        message = f"the prompt has {count} {found.unit}: the model takes {limit}"
        return BadRequestError(message, field, "context_length_exceeded")

    async def _ask(self, job: Job, characters: int) -> list[int]:
        self._waiting += characters
        self._jobs += 1
        try:
            answer = await (self._short if characters <= SHORT_TEXT else self._long).ask(job)
        finally:
            self._waiting -= characters
            self._jobs -= 1
        if isinstance(answer, Encoded):
            return answer.ids
        if isinstance(answer, TooLong):
            raise self._too_long(answer, "messages" if isinstance(job, EncodeChat) else "prompt")
        assert isinstance(answer, Refused)
        raise TextError(answer.reason)


def _characters(value: Any) -> int:
    """Return the characters of a text, or of another value as JSON."""
    return len(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _cpu_seconds(characters: int) -> float:
    return CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * characters
