"""Prompts are encoded without stopping the server; what takes too much time or memory costs only itself."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from fgengine.scheduling.refusal import QueueFull
from fgengine.server import bodies, encoding, parsing
from fgengine.server.encoding import SHORT_TEXT, Encoder, EncodingError
from fgengine.server.schemas import BadRequestError
from fgengine.text import TextCodec, TextError

TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.content == 'loop' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% if m.content == 'memory' %}{{ m.content * 8000000000 }}{% endif %}"
    "{% if m.content == 'number' %}{{ 10 ** (m.content | length * 100000000) > 1 }}{% endif %}"
    "{% if m.content == 'zero' %}{{ 1 // 0 }}{% endif %}"
    "{% if m.content == 'long' %}{{ 'word ' * 900000 }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
HOSTILE = ["loop", "memory", "number", "zero", "long"]
UNTIL_THE_LIMIT = ("loop", "number")
"""Those that compute until their time is up."""


@pytest.fixture(scope="module")
def hostile(byte_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    """An encoder whose chat template does harm if a chat asks for it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    byte_tokenizer.save(str(folder / "tokenizer.json"))
    encoder = Encoder(TextCodec(byte_tokenizer), folder)
    encoder.max_tokens = 100_000
    yield encoder
    encoder.close()


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@contextlib.asynccontextmanager
async def loop_keeps_going(longest: float, beats: int = 0) -> AsyncIterator[None]:
    """Check that the event loop is never stopped by this process.

    It is stopped if something computes here, for more than ``longest`` seconds of processor time, or if it
    waits for another process, so that it has fewer than ``beats`` turns. On a busy machine, both figures are
    the same.
    """
    computed = []

    async def beat() -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0.01)
            computed.append(time.process_time() - before)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
    assert max(computed, default=0.0) < longest, sorted(computed)[-3:]
    assert len(computed) >= beats


@pytest.mark.slow
@pytest.mark.parametrize("harm", HOSTILE)
async def test_a_hostile_template_costs_only_its_own_chat(
    hostile: Encoder, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CPU_SECONDS", 0.3)
    async with loop_keeps_going(1.0, beats=5 if harm in UNTIL_THE_LIMIT else 0):
        with pytest.raises((TextError, EncodingError, BadRequestError)) as caught:
            await hostile.chat(chat(harm))
    assert "\n" not in str(caught.value)
    assert hostile.codec.decode(await hostile.chat(chat("hello"))) == "hello"


@pytest.mark.slow
async def test_other_chats_do_not_wait_for_one_that_loops(
    hostile: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.gather(*(hostile.chat(chat("hello")) for _ in range(8)))  # both processes may have started
    monkeypatch.setattr(encoding, "CPU_SECONDS", 4.0)
    looping = asyncio.create_task(hostile.chat(chat("loop")))
    await asyncio.sleep(0.1)
    await hostile.chat(chat("hello"))
    assert not looping.done()
    with pytest.raises(EncodingError, match=r"chat template took too much time or memory.*SIGPROF"):
        await looping


@pytest.mark.slow
async def test_a_template_that_takes_all_memory_when_it_is_compiled_is_not_used(
    byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ 'a' * 8000000000 }}")
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = await Encoder.load(tmp_path)
    encoder.max_tokens = 100_000
    with contextlib.closing(encoder):
        with pytest.raises((TextError, EncodingError)):
            await encoder.chat(chat("hello"))
        assert encoder.codec.decode(await encoder.text("x" * 50_000)) == "x" * 50_000


async def test_long_texts_are_encoded_like_short_ones(encoder: Encoder, hostile: Encoder) -> None:
    text = "é, 語 and 👍 " * SHORT_TEXT
    assert await hostile.text(text[: SHORT_TEXT * 2]) == encoder.codec.encode(text[: SHORT_TEXT * 2])


async def test_a_text_that_is_too_long_is_refused_before_it_is_encoded(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_ask", None)
    text = "x" * (encoder.max_characters + 1)
    for refused in (encoder.text(text), encoder.chat(chat(text)), encoder.prompt([1] * 5000)):
        with pytest.raises(BadRequestError, match=r"the prompt has .* the model takes 4096 tokens"):
            await refused


async def test_the_beginning_of_a_long_text_tells_that_it_has_too_many_tokens(
    hostile: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "max_tokens", 2000)
    monkeypatch.setattr(type(hostile), "max_characters", 1_000_000)
    with pytest.raises(BadRequestError, match="the prompt has more than 32000 tokens"):
        await hostile.text("x" * 900_000)


@pytest.mark.slow
async def test_long_prompts_do_not_delay_short_chats(
    hostile: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hostile.chat(chat("hello"))
    await hostile.text("x" * (SHORT_TEXT + 1))
    monkeypatch.setattr(encoding, "CPU_SECONDS", 1.0)
    long = [*chat("loop"), *chat("x" * SHORT_TEXT)]
    looping = [asyncio.create_task(hostile.chat(long)) for _ in range(encoding.PROCESSES + 1)]
    await asyncio.sleep(0.2)
    await hostile.chat(chat("hello"))
    assert not any(task.done() for task in looping)
    results = await asyncio.gather(*looping, return_exceptions=True)
    assert {type(result) for result in results} == {EncodingError}


async def test_a_text_with_too_many_tokens_is_refused(
    hostile: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "max_tokens", 7000)
    monkeypatch.setattr(type(hostile), "max_characters", 10_000)
    with pytest.raises(BadRequestError, match="the prompt has 8000 tokens"):
        await hostile.text("x" * 8000)


async def test_only_so_many_prompts_wait(hostile: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_WAITING", 100_000)
    texts = [asyncio.create_task(hostile.text("x" * 40_000)) for _ in range(6)]
    results = await asyncio.gather(*texts, return_exceptions=True)
    assert [type(one) for one in results] == [list] * 2 + [QueueFull] * 4


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "suspend"])
async def test_a_process_that_ended_or_stopped_is_replaced(
    hostile: Encoder, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hostile.chat(chat("hello"))
    # Not those for long texts, which another test may have started: no chat of this test goes to them.
    workers = [psutil.Process(process.pid) for process in hostile._short._processes]
    for worker in workers:
        getattr(worker, end)()
    if end == "kill":
        psutil.wait_procs(workers, timeout=10)
    else:
        monkeypatch.setattr(encoding, "PATIENCE", 0.05)
        for _ in workers:
            with pytest.raises(EncodingError, match="did not answer"):
                await hostile.chat(chat("hello"))
        monkeypatch.undo()
    assert hostile.codec.decode(await hostile.chat(chat("hello"))) == "hello"


def test_a_panic_of_the_tokenizer_is_an_error_of_the_text(byte_tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("(a+)+$"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    with pytest.raises(TextError, match="tokenizer fails at this text"):
        TextCodec(tokenizer).encode("a" * 3000 + "b")


async def test_nothing_holds_a_refused_prompt(served: Any) -> None:
    size = 3777
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            status, _ = await served.post("/v1/completions", {"prompt": [97] * size, "max_tokens": 900})
            assert status == 400  # together more than the engine allows
        await served.get("/health")  # the last handler has ended
        held = [one for one in gc.get_objects() if type(one) is list and len(one) == size]
        assert len(held) <= 1  # the engine's thread keeps its last command until the next one
    finally:
        gc.enable()


async def test_large_bodies_do_not_stop_the_server(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them, the event loop has a turn for the other requests."""
    turns, parsed_in = 0, []

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    def read_body(*args: Any) -> Any:
        parsed_in.append(turns)
        return parsing.read_body(*args)

    monkeypatch.setattr(bodies, "read_body", read_body)
    counting = asyncio.create_task(count_turns())
    limit = served.service.encoder.max_body_bytes - 1000
    numbers = json.dumps({"prompt": [1] * (limit // 3), "max_tokens": 5}).encode()

    async def attack() -> int:
        async with served.session.post(served.url + "/v1/completions", data=numbers) as response:
            return int(response.status)

    async with loop_keeps_going(1.0):
        assert set(await asyncio.gather(*(attack() for _ in range(32)))) == {400}
    counting.cancel()
    assert len(set(parsed_in)) == 32


def test_the_signal_of_the_time_limit_is_the_one_in_messages() -> None:
    assert signal.Signals.SIGPROF.name in str(encoding.describe_exit(-signal.SIGPROF))


def seconds_to(call: Any) -> float:
    """Return the processor time of a call, the shortest of three."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        call()
        times.append(time.process_time() - begun)
    return min(times)


def detokenize(codec: TextCodec, ids: list[int]) -> str:
    stream = codec.detokenizer()
    return "".join([*map(stream.add, ids), stream.finish()])


def test_the_time_to_decode_grows_with_the_number_of_tokens(encoder: Encoder) -> None:
    """It grew with the square of it for tokens that complete no character: 16 KB of ids took seconds."""
    codec = encoder.codec
    for decode in (codec.decode, partial(detokenize, codec)):
        few, many = (seconds_to(partial(decode, [0xF0] * count)) for count in (2000, 16_000))
        assert many < 25 * max(few, 0.001)


def test_characters_are_whole_beside_many_broken_ones(encoder: Encoder) -> None:
    codec = encoder.codec
    ids = codec.encode("a") + [0xF0] * 100 + codec.encode("é語👍")
    assert detokenize(codec, ids).endswith("é語👍")
    assert detokenize(codec, ids).startswith("a")


@pytest.mark.slow
async def test_the_tokenizer_of_a_users_folder_cannot_stop_the_server(
    byte_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("a*a*(?<!a)$"), "isolated"), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(encoding, "CPU_SECONDS", 0.5)
    encoder = await Encoder.load(tmp_path)
    encoder.max_tokens = 10_000
    with contextlib.closing(encoder):
        async with loop_keeps_going(2.0, beats=5):
            with pytest.raises((EncodingError, TextError)):
                await encoder.text("a" * 2000)
        assert await encoder.text("hello") == encoder.codec.encode("hello")


@pytest.mark.slow
async def test_closing_does_not_wait_for_a_job(hostile: Encoder, byte_tokenizer: Tokenizer) -> None:
    encoder = Encoder(TextCodec(byte_tokenizer), hostile._short._folder)
    encoder.max_tokens = 100_000
    await encoder.chat(chat("hello"))
    job = asyncio.create_task(encoder.chat(chat("loop")))
    await asyncio.sleep(0.1)
    encoder.close()
    with pytest.raises(EncodingError, match=r"SIGKILL|shutting down"):  # not SIGPROF, its own end
        await job
    encoder._short._threads.shutdown(wait=True)
    with pytest.raises((EncodingError, RuntimeError)):
        await encoder.chat(chat("hello"))


@pytest.mark.slow
async def test_the_error_of_a_template_is_short(tmp_path: Path, byte_tokenizer: Tokenizer) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('A' * 3000000) }}")
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = Encoder(TextCodec(byte_tokenizer), tmp_path)
    encoder.max_tokens = 1000
    with contextlib.closing(encoder), pytest.raises(TextError) as caught:
        await encoder.chat(chat("hello"))
    assert len(str(caught.value)) <= 500
