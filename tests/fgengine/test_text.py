"""Encoding, incremental decoding, stop strings and chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, WordPiece

from fgengine.model.files import ModelError
from fgengine.text import ChatTemplate, StopStrings, TextCodec, TextError, token_bytes

CORPUS = [
    "the quick brown fox",
    "été où ça naïve",
    "🦙🦙 🇫🇷 👩‍👩‍👧",
    "日本語のテキスト",
    "  code:\n\tx = 1\n",
] * 3
EOS = "<|end|>"
PLAIN = "<tool>"


def _byte_level() -> Tokenizer:
    """Train a tokenizer of GPT-2's kind, as for OPT, Llama 3, Qwen and SmolLM2."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(EOS, special=True)])
    tokenizer.add_tokens([AddedToken(PLAIN, special=False, normalized=False)])
    return tokenizer


def _sentencepiece() -> Tokenizer:
    """Make a tokenizer of Llama 2's kind: word marks, and byte tokens for unknown characters."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ("\u2581", "t", "h", "e", "th", "the", "\u2581the", "é", "日"):
        vocab[piece] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


BYTE_LEVEL, SENTENCEPIECE = _byte_level(), _sentencepiece()
BYTES = token_bytes(BYTE_LEVEL)
CODEC, SENTENCEPIECE_CODEC = TextCodec(BYTE_LEVEL), TextCodec(SENTENCEPIECE)
WORDS = st.lists(st.sampled_from([*CORPUS, "é", "🦙", " ", "the"]), max_size=8)
TEXTS = st.text(max_size=60) | WORDS.map("".join)


@given(TEXTS)
def test_incremental_decoding_gives_the_full_text(text: str) -> None:
    ids = CODEC.encode(text)
    pieces = _pieces(CODEC, ids)
    assert "".join(pieces) == BYTE_LEVEL.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


@given(st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=80))
def test_incremental_decoding_of_random_tokens(ids: list[int]) -> None:
    """A model with dummy weights generates invalid UTF-8, special tokens and added tokens."""
    assert "".join(_pieces(CODEC, ids)) == BYTE_LEVEL.decode(ids)


@given(TEXTS.filter(lambda text: "\u2581" not in text))
def test_incremental_decoding_with_sentencepiece(text: str) -> None:
    ids = SENTENCEPIECE_CODEC.encode(text)
    assert "".join(_pieces(SENTENCEPIECE_CODEC, ids)) == SENTENCEPIECE.decode(ids)


@given(TEXTS)
def test_at_most_one_incomplete_character_is_held_back(text: str) -> None:
    shown, detokenizer, added = "", CODEC.detokenizer(), b""
    for token in CODEC.encode(text):
        added += BYTES[token]
        shown += detokenizer.add(token)
        assert len(added) - len(shown.encode()) <= 3


def test_special_tokens_are_left_out_and_added_tokens_are_shown() -> None:
    ids = CODEC.encode(f"a{EOS}b{PLAIN}c")
    assert CODEC.decode(ids) == f"ab{PLAIN}c"
    assert CODEC.decode_all(ids) == f"a{EOS}b{PLAIN}c"


def test_a_list_of_tokens_names_special_ones() -> None:
    assert CODEC.token_bytes(CODEC.encode(EOS)[-1]) == EOS.encode()
    assert [CODEC.token_bytes(token) for token in CODEC.encode("é", special_tokens=False)] in (
        ["é".encode()],
        ["é".encode()[:1], "é".encode()[1:]],
    )


def test_ids_beyond_the_tokenizer_have_no_text() -> None:
    beyond = BYTE_LEVEL.get_vocab_size() + 5
    assert CODEC.decode([*CODEC.encode("é"), beyond]) == "é"
    assert CODEC.token_text(beyond) == ""


def test_a_tokenizer_of_another_kind_works_too() -> None:
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "un": 1, "##able": 2, "is": 3}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    codec = TextCodec(tokenizer)
    assert "".join(_pieces(codec, [1, 2, 3])) == "unable is"
    assert codec.token_text(3) == "is"


def test_the_text_continues_the_prompt() -> None:
    """It preserves the leading space, which a separate text would not have."""
    the = SENTENCEPIECE.token_to_id("\u2581the")
    text = SENTENCEPIECE_CODEC.detokenizer(prompt=[the])
    assert text.add(the) == " the"
    assert SENTENCEPIECE_CODEC.detokenizer().add(the) == "the"


def _pieces(codec: TextCodec, ids: list[int]) -> list[str]:
    text = codec.detokenizer()
    return [*(text.add(token) for token in ids), text.finish()]


# stop strings


def _watch(stops: list[str], chunks: list[str]) -> tuple[str, bool]:
    watcher = StopStrings(stops)
    shown = ""
    for chunk in chunks:
        shown += watcher.add(chunk)
        if watcher.stopped:
            return shown, True
    return shown + watcher.finish(), False


def _naive(stops: list[str], text: str) -> tuple[str, bool]:
    """Grow the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


SMALL = st.text("ab🦙", min_size=1, max_size=4)


@settings(max_examples=300)
@given(st.lists(SMALL, min_size=1, max_size=4), st.lists(st.text("ab🦙", max_size=5), max_size=12))
@pytest.mark.slow
def test_stop_strings_do_not_depend_on_the_chunks(stops: list[str], chunks: list[str]) -> None:
    text = "".join(chunks)
    assert _watch(stops, chunks) == _watch(stops, list(text)) == _naive(stops, text)


def test_text_that_cannot_be_a_stop_string_is_shown_at_once() -> None:
    watcher = StopStrings(["\n\nUser:"])
    assert [watcher.add(piece) for piece in ["a\n", "\n", "Us", "b", "\n"]] == ["a", "", "", "\n\nUsb", ""]
    assert watcher.finish() == "\n"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings([""])


# files


@pytest.mark.parametrize("pieces", [["one END two"], ["one E", "ND two"], [*"one END two"]])
def test_the_stop_string_may_be_shown(pieces: list[str]) -> None:
    watcher = StopStrings(["END", "two"], keep=True)
    shown = ""
    for piece in pieces:
        shown += watcher.add(piece)
        if watcher.stopped:
            break
    assert shown == "one END"


def test_a_codec_is_loaded_with_its_chat_template(tmp_path: Path) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "chat_template": "{{ bos_token }}{% for m in messages %}\n"
        "  {% if true %}\n{{ m['content'] | tojson }}\n  {% endif %}\n{% endfor %}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    codec = TextCodec.load(tmp_path)
    assert codec.decode(codec.encode_chat([{"role": "user", "content": "é"}])) == '<s>"é"\n'


def test_the_template_file_has_priority_over_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    (tmp_path / "chat_template.jinja").write_text("new")
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    assert template.render([]) == "new"


def test_a_chat_without_a_template_is_refused(tmp_path: Path) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TextError, match="no chat template"):
        TextCodec.load(tmp_path).encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception('no') }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_templates_run_in_a_sandbox(tmp_path: Path, source: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    template = ChatTemplate.load(tmp_path)
    assert template is not None
    with pytest.raises(TextError, match="refuses"):
        template.render([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("chat_template.jinja", b"{% if %}"),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_an_unreadable_chat_template_only_disables_chats(tmp_path: Path, name: str, content: bytes) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_bytes(content)
    codec = TextCodec.load(tmp_path)
    assert codec.decode(codec.encode("hi")) == "hi"
    with pytest.raises(TextError, match=r"chat template .*cannot be read.*; use /v1/completions"):
        codec.encode_chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "hi"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "hi"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", '{"a": 2, "b": 1}'),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
    ],
)
def test_features_that_templates_on_the_hub_use_are_supported(tmp_path: Path, source: str, text: str) -> None:
    BYTE_LEVEL.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(source)
    codec = TextCodec.load(tmp_path)
    assert codec.decode(codec.encode_chat([{"role": "user", "content": "hi"}])) == text


def test_an_unreadable_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        TextCodec.load(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        TextCodec.load(tmp_path)


def test_ids_that_no_tokenizer_can_have_have_no_text() -> None:
    """A client can send any 64-bit number, and the text is made before the engine refuses them."""
    ids = [*CODEC.encode("ab"), -1, 2**32, 2**63 - 1]
    assert CODEC.decode(ids) == "ab"
    assert CODEC.detokenizer(prompt=[-(2**63), 2**40]).add(ids[0]) == CODEC.decode(ids[:1])
