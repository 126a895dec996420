"""The process that encodes chats and long prompts, and checks grammars, apart from the server's process.

A chat template comes with the weights and is untrusted code: it may loop without end, or take all memory. A
long prompt takes seconds to encode, and holds Python's lock for that time. A grammar comes from a client, and
compiling a hostile one may take minutes. Here, none of them stops the server. A job that takes too much
processor time ends this process, and only that job fails.

``fgengine.server.encoding`` starts it as ``python -m fgengine.server.text_worker FD FOLDER NICE``. FD is the
file descriptor of its end of the channel. NICE is added to its niceness. Jobs are answered one after the
other.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from fgengine.child import leave_ending_to_parent
from fgengine.extras import MissingPackage, is_installed
from fgengine.grammar import Grammar
from fgengine.matching import GrammarError, Grammars
from fgengine.server.messages import LENGTH_BYTES
from fgengine.text import TextCodec, TextError

MEMORY_BYTES = 1 << 30
"""Bytes of memory that the process may take beyond what it has when its modules are imported."""
HEAD_CHARACTERS_PER_TOKEN = 16
"""Only this number of characters for each allowed token is encoded first. Few texts have so long tokens."""
MAX_REASON = 500
"""Characters of a template's own error that are sent back."""
LOAD_SECONDS = 30.0
"""Processor time for loading the tokenizer and the template."""

END = "<|end of the answer|>"
"""A token that is added to the tokenizer when grammars are checked, in the place of the model's EOS."""


class EncodeText(msgspec.Struct, tag=True, frozen=True):
    """Asks for the token ids of a text."""

    text: str
    max_tokens: int
    """A longer prompt is not sent back."""
    cpu_seconds: float
    """Processor time after which the process ends."""
    special_tokens: bool = True


class EncodeChat(msgspec.Struct, tag=True, frozen=True):
    """Asks for the token ids of a chat."""

    messages: bytes
    """A list of messages as JSON, because MessagePack has no integers of more than 64 bits."""
    tools: bytes
    """A list of tools as JSON."""
    max_tokens: int
    max_characters: int
    """Limit of the text that the template makes."""
    cpu_seconds: float


class CheckGrammar(msgspec.Struct, tag=True, frozen=True):
    """Asks whether a grammar can be used."""

    grammar: Grammar
    cpu_seconds: float


class Loaded(msgspec.Struct, tag=True, frozen=True):
    """The first answer: the process is ready."""

    chat_problem: str
    """The reason why the model's chat template cannot be used, if it cannot."""


class Encoded(msgspec.Struct, tag=True, frozen=True):
    """The token ids of a prompt."""

    ids: list[int]


class Usable(msgspec.Struct, tag=True, frozen=True):
    """The grammar can be used."""


class TooLong(msgspec.Struct, tag=True, frozen=True):
    """The prompt has more tokens, or more characters, than allowed."""

    count: int
    unit: str
    exact: bool = True
    """False: it has more than ``count``."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The tokenizer or the template refuses the prompt, or the grammar cannot be used."""

    reason: str


Job = EncodeText | EncodeChat | CheckGrammar
Answer = Loaded | Encoded | Usable | TooLong | Refused
_jobs = msgspec.msgpack.Decoder(Job)
_answers = msgspec.msgpack.Decoder(Answer)
_encode = msgspec.msgpack.Encoder().encode


def send(channel: socket.socket, message: Job | Answer) -> None:
    """Send a message, with its length in front. Raises OSError."""
    body = _encode(message)
    channel.sendall(len(body).to_bytes(LENGTH_BYTES, "big") + body)


def receive_answer(channel: socket.socket) -> Answer:
    """Return the next answer. Raises EOFError if the process has ended, TimeoutError after the timeout."""
    answer: Answer = _answers.decode(_receive(channel))
    return answer


def _receive(channel: socket.socket) -> bytes:
    length = int.from_bytes(_exactly(channel, LENGTH_BYTES), "big")
    return _exactly(channel, length)


def _exactly(channel: socket.socket, size: int) -> bytes:
    body = bytearray()
    while len(body) < size:
        piece = channel.recv(min(size - len(body), 1 << 20))
        if not piece:
            raise EOFError
        body += piece
    return bytes(body)


class Answering:
    """Answers jobs for one model."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._grammars: Grammars | None = None

    def answer(self, job: Job) -> Answer:
        """Do a job; return its result, or why there is none."""
        try:
            if isinstance(job, CheckGrammar):
                self._open_grammars().matcher(job.grammar, prompt_len=0)
                return Usable()
            return _encoded(job, self._codec)
        except (TextError, GrammarError, MissingPackage) as error:
            return Refused(str(error)[:MAX_REASON])
        except MemoryError:
            what = "grammar" if isinstance(job, CheckGrammar) else "prompt"
            return Refused(f"this {what} takes more memory than a {what} may")
        except RecursionError:
            return Refused("this chat is nested too deeply: send one with less nesting")

    def prepare(self, job: Job) -> None:
        """Load what all jobs of this kind need, so that it does not count as this job's time."""
        if isinstance(job, CheckGrammar) and self._grammars is None and is_installed("llguidance"):
            self._open_grammars().compile(Grammar("regex", "a"))

    def _open_grammars(self) -> Grammars:
        """Return what compiles grammars here. The engine has its own, with the model's EOS tokens."""
        if self._grammars is None:
            tokenizer = Tokenizer.from_str(self._codec.tokenizer.to_str())
            tokenizer.add_special_tokens([END])
            end: int = tokenizer.get_vocab(with_added_tokens=True)[END]
            self._grammars = Grammars(lambda: tokenizer, vocab_size=end + 1, eos_token_ids=[end])
        return self._grammars


def _encoded(job: EncodeText | EncodeChat, codec: TextCodec) -> Answer:
    """Encode a prompt. Raises TextError."""
    if isinstance(job, EncodeText):
        text, special_tokens = job.text, job.special_tokens
    else:
        messages, tools = msgspec.json.decode(job.messages), msgspec.json.decode(job.tools)
        text, special_tokens = codec.render_chat(messages, tools), False
        if len(text) > job.max_characters:
            return TooLong(len(text), "characters")
    head = text[: HEAD_CHARACTERS_PER_TOKEN * job.max_tokens]
    if len(head) < len(text):
        # The text's beginning alone tells that most texts are too long. Twice as long, because where it is
        # cut, it may have other tokens than in the text.
        count = len(codec.encoding(head, special_tokens=special_tokens))
        if count > 2 * job.max_tokens:
            return TooLong(count, "tokens", exact=False)
    encoding = codec.encoding(text, special_tokens=special_tokens)
    if len(encoding) > job.max_tokens:
        return TooLong(len(encoding), "tokens")
    return Encoded(encoding.ids)


@contextmanager
def limited(cpu_seconds: float) -> Iterator[None]:
    """End the process with SIGPROF if the block takes more processor time. Compiled code ends too."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def limit_memory(more: int) -> None:
    """Let the process take at most ``more`` bytes of address space beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(channel: socket.socket, load: Callable[[], TextCodec]) -> None:
    """Answer the jobs that arrive on a channel until it is closed."""
    with limited(LOAD_SECONDS):
        codec = load()
    answering = Answering(codec)
    with contextlib.suppress(BrokenPipeError):
        send(channel, Loaded(codec.chat_problem))
    while True:
        try:
            job: Job = _jobs.decode(_receive(channel))
        except (EOFError, ConnectionError):
            return
        with limited(LOAD_SECONDS):
            answering.prepare(job)
        with limited(job.cpu_seconds):
            reply = answering.answer(job)
        with contextlib.suppress(BrokenPipeError):  # the server has ended: so does the next receive
            send(channel, reply)


def main() -> None:
    """Run the process; the arguments are those of the module."""
    leave_ending_to_parent()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel, folder = socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])
    os.nice(int(sys.argv[3]))
    from transformers.utils import chat_template_utils  # noqa: F401  (before the limit: it is no untrusted code)

    if sys.platform == "linux":
        limit_memory(MEMORY_BYTES)
    run(channel, lambda: TextCodec.load(folder))


if __name__ == "__main__":
    main()
