"""The engine's process: reads commands, runs the engine's steps and sends the new tokens.

``fgengine.server.process`` starts it as ``python -m fgengine.server.worker FD``. FD is the file descriptor of
its end of the channel. A thread reads the commands; they are executed between steps. Without work it blocks.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import Any, NamedTuple, Protocol

from fgengine.child import leave_ending_to_parent
from fgengine.config import EngineConfig
from fgengine.plan import TokenEvent
from fgengine.prompt_logprobs import PromptLogprobs
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyError
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.server import messages

GRACE_SECONDS = 3.0
"""Seconds that a step may still take after the server has ended; then the process ends anyway."""


class Steps(Protocol):
    """The part of ``fgengine.engine.Engine`` that the worker uses."""

    model_name: str
    vocab_size: int

    @property
    def max_model_len(self) -> int: ...
    @property
    def longest_step(self) -> float: ...
    @property
    def room(self) -> int | None: ...
    @property
    def has_work(self) -> bool: ...
    @property
    def retry_after(self) -> float | None: ...
    def prepare(self, params: SamplingParams) -> Callable[[], object] | None: ...
    def add(
        self, id: str, prompt: list[int], params: SamplingParams, *, user: str, arrival: float
    ) -> Request: ...
    def abort(self, id: str) -> bool: ...
    def expire(self) -> Sequence[tuple[Request, QueueTimeout]]: ...
    def step(self) -> Sequence[TokenEvent]: ...
    def stats(self) -> Mapping[str, Any]: ...
    def close(self) -> None: ...


MakeEngine = Callable[[EngineConfig, Callable[[str], None]], Steps]
Send = Callable[[messages.Event], None]
Inbox = queue.SimpleQueue["messages.Command | Prepared | None"]
"""The commands in order; None after the server has closed the channel."""


class Prepared(NamedTuple):
    """A command whose grammar has been compiled by a thread."""

    add: messages.Add


def run(channel: socket.socket, make_engine: MakeEngine, on_close: Callable[[], None] = lambda: None) -> int:
    """Run one engine for ``channel`` until the server closes the channel; return the exit status.

    ``on_close`` is called in the reading thread as soon as the channel is closed.
    """
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(channel, inbox, on_close), daemon=True).start()

    def send(event: messages.Event) -> None:
        channel.sendall(messages.frame(event))

    start = inbox.get()
    if not isinstance(start, messages.Start):
        return 0
    engine: Steps | None = None
    try:
        engine = make_engine(start.config, lambda text: send(messages.StartProgress(text)))
        send(
            messages.EngineReady(
                engine.model_name, engine.max_model_len, engine.vocab_size, engine.longest_step, engine.room
            )
        )
        _Loop(engine, inbox, send).run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has ended
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if engine is None and isinstance(error, (ValueError, OSError)):
            reason = str(error)  # a sentence about an invalid setting
        else:
            if isinstance(error, PolicyError):
                reason = str(error)  # a sentence that names the policy
            traceback.print_exc()
        with contextlib.suppress(OSError):
            send(messages.Broken(reason))
        return 1
    finally:
        if engine is not None:
            engine.close()
    return 0


class _Loop:
    def __init__(self, engine: Steps, inbox: Inbox, send: Send) -> None:
        self._engine = engine
        self._inbox = inbox
        self._send = send
        self._open: dict[str, Request] = {}
        self._preparing: set[str] = set()
        """Ids of requests whose grammars are being compiled."""
        self._compiler = ThreadPoolExecutor(1, "compile")

    def run(self) -> None:
        """Run until the channel closes. An exception in a step means that the engine is broken."""
        while True:
            while not (self._engine.has_work and self._inbox.empty()):
                command = self._inbox.get()
                if command is None:
                    return
                self._handle(command)
            for request, timeout in self._engine.expire():
                del self._open[request.id]
                self._send(messages.Expired(request.id, str(timeout), timeout.retry_after))
            if self._engine.has_work and (events := self._engine.step()):
                for event in events:
                    if event.prompt is not None:
                        self._send_prompt(event.request.id, event.prompt)
                tokens = [self._new_token(event) for event in events]
                self._send(messages.Stepped(tokens, self._engine.retry_after))

    def _handle(self, command: messages.Command | Prepared) -> None:
        if isinstance(command, Prepared):
            if command.add.id in self._preparing:
                self._preparing.discard(command.add.id)
                self._add(command.add)
        elif isinstance(command, messages.Add):
            if (job := self._engine.prepare(command.params)) is None:
                self._add(command)
            else:
                self._preparing.add(command.id)
                done = self._compiler.submit(job)
                done.add_done_callback(lambda _: self._inbox.put(Prepared(command)))
        elif isinstance(command, messages.Abort):
            request = self._open.pop(command.id, None)
            if request is not None:
                self._engine.abort(command.id)
                self._send(messages.Aborted(command.id, _account(request)))
            elif command.id in self._preparing:
                self._preparing.discard(command.id)
                self._send(messages.Refused(command.id, "the request was aborted before it was added"))
        elif isinstance(command, messages.AskStats):
            self._send(messages.Stats(dict(self._engine.stats())))

    def _add(self, command: messages.Add) -> None:
        try:
            self._open[command.id] = self._engine.add(
                command.id, command.prompt, command.params, user=command.user, arrival=command.arrival
            )
        except ValueError as error:
            retry_after = error.retry_after if isinstance(error, QueueFull) else None
            field = error.field if isinstance(error, RequestRefused) else None
            self._send(messages.Refused(command.id, str(error), retry_after, field))
        else:
            self._send(messages.Accepted(command.id))

    def _new_token(self, event: TokenEvent) -> messages.NewToken:
        request = event.request
        if request.finish_reason is None:
            return messages.NewToken(request.id, event.token, event.logprob, top=event.top)
        self._open.pop(request.id, None)
        return messages.NewToken(
            request.id, event.token, event.logprob, request.finish_reason, _account(request), event.top
        )

    def _send_prompt(self, id: str, prompt: PromptLogprobs) -> None:
        """Send the log probabilities of a prompt, in parts."""
        scored = (messages.PromptToken(logprob, top) for logprob, top in prompt.entries())
        tokens = chain([messages.PromptToken(None, [])], scored)
        while part := list(islice(tokens, messages.PROMPT_PART_TOKENS)):
            self._send(messages.PromptPart(id, part))


def _account(request: Request) -> messages.Account:
    return messages.Account(request.phase_since, request.accounting())


def _read_commands(channel: socket.socket, inbox: Inbox, on_close: Callable[[], None]) -> None:
    try:
        with channel.makefile("rb") as stream:
            while header := stream.read(messages.LENGTH_BYTES):
                inbox.put(messages.read_command(stream.read(int.from_bytes(header, "big"))))
    except ConnectionResetError:
        pass
    finally:
        inbox.put(None)
        on_close()


def _die_with_parent() -> None:
    """Make Linux kill this process when the server's process ends, even by SIGKILL and during a step."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _exit_after_grace() -> None:
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _load_engine(config: EngineConfig, report: Callable[[str], None]) -> Steps:
    if config.device_spec is None:
        report("importing torch")
    from fgengine.engine import Engine

    return Engine.from_config(config, report)


def main() -> None:
    """Run the engine's process; the first argument is the file descriptor of the channel."""
    leave_ending_to_parent()
    faulthandler.enable()  # after a crash in compiled code, print the Python stack
    _die_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    sys.exit(run(channel, _load_engine, on_close=_exit_after_grace))


if __name__ == "__main__":
    main()
