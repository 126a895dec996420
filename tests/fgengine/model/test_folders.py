"""Damaged, wrong and hostile model folders: each ends in one sentence with the file and the field."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fgengine.model.catalog import shape_of
from fgengine.model.dummy_tokenizer import write_byte_tokenizer
from fgengine.model.files import ModelError
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.text import TextCodec

T = TypeVar("T")
CPU = torch.device("cpu")
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "torch_dtype": "bfloat16",
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 300,
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DEEP = b"[" * 100_000
NESTED_DEEPLY = b'{"chat_template": ' + DEEP + b"]" * 100_000 + b"}"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it should be: two shards with their index, a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    write_byte_tokenizer(folder, 300, eos=2, bos=1)
    places = load(shape_of(str(folder)), None, CPU, torch.float32).places()
    names = sorted(places)
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        save_file({name: places[name].clone() for name in names[number::2]}, folder / shard)
        weight_map |= dict.fromkeys(names[number::2], shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def open_all(folder: Path) -> tuple[ModelShape, TextCodec]:
    """Read the folder as ``fgbench serve`` does."""
    shape = shape_of(str(folder))
    codec = TextCodec.load(folder, str(folder))
    load(shape, folder, CPU, torch.float32)
    return shape, codec


def refusal(folder: Path) -> str:
    """Return the sentence that refuses the folder."""
    with pytest.raises(ModelError) as caught:
        open_all(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "<object" not in sentence
    assert len(sentence) < 200 + 4 * len(str(folder))
    return sentence


def edit(file: Path, change: Callable[[Any], Any] | dict[str, Any]) -> None:
    """Change the JSON of a file: by a function, or by new values of fields. ``...`` removes a field."""
    found = json.loads(file.read_bytes())
    if callable(change):
        found = change(found)
    else:
        found = {name: value for name, value in (found | change).items() if value is not ...}
    file.write_text(json.dumps(found))


def test_a_folder_as_it_should_be_is_read(folder: Path) -> None:
    shape, codec = open_all(folder)
    assert shape.eos_token_ids == (2, 3)
    assert codec.chat_problem == ""
    assert codec.decode(codec.encode_chat([{"role": "user", "content": "hi"}])) == "user: hi\nassistant: "


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_hidden_layers": 2**30},
            "num_hidden_layers is 1073741824, but it must be a whole number <=",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, but it must be a whole number >= 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, but it must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, but it must be a whole number"),
        ({"num_hidden_layers": None}, "num_hidden_layers is null"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers is a list"),
        ({"num_hidden_layers": 10**4000}, "num_hidden_layers"),
        ({"hidden_size": "32"}, 'hidden_size is "32"'),
        ({"hidden_size": 2**40}, "hidden_size is 1099511627776"),
        ({"hidden_size": 30, "head_dim": None}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 2**20, "intermediate_size": 2**20, "num_hidden_layers": 4096}, "parameters"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is 1099511627776"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"num_key_value_heads": -2}, "num_key_value_heads is -2"),
        ({"head_dim": 7}, "head_dim is 7, but it must be even"),
        ({"head_dim": 0}, "head_dim is 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps is "small"'),
        ({"rms_norm_eps": float("nan")}, "is not valid JSON"),
        ({"rms_norm_eps": float("inf")}, "is not valid JSON"),
        ({"rope_theta": -1}, "rope_theta is -1, but it must be a number >= 1"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_theta": 1e300}, "rope_theta is 1e+300"),
        ({"rope_theta": "10000"}, 'rope_theta is "10000"'),
        ({"rope_scaling": "x"}, 'rope_scaling is "x", but it must be a JSON object or null'),
        ({"rope_scaling": [1]}, "rope_scaling is a list"),
        ({"rope_scaling": {"rope_type": 5}}, "rope_scaling.rope_type is 5"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "rope_scaling.factor is -2"),
        (
            {"rope_scaling": LLAMA["rope_scaling"] | {"high_freq_factor": 1.0}},
            "rope_scaling.high_freq_factor",
        ),
        (
            {"rope_scaling": LLAMA["rope_scaling"] | {"original_max_position_embeddings": 0.5}},
            "rope_scaling.original_max_position_embeddings is 0.5",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5}}}, "rope_parameters: layers that differ"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, but it must be true or false or null"),
        ({"mlp_bias": 0}, "mlp_bias is 0"),
        ({"eos_token_id": 2.5}, "eos_token_id is 2.5, but it must be a whole number, a list or null"),
        ({"eos_token_id": [2, "3"]}, 'eos_token_id[1] is "3"'),
        ({"eos_token_id": [2, True]}, "eos_token_id[1] is true"),
        ({"eos_token_id": [[2]]}, "eos_token_id[0] is a list"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": 300}, "eos_token_id is 300, but it must be below vocab_size, which is 300"),
        ({"bos_token_id": 300}, "bos_token_id is 300, but it must be below vocab_size"),
        ({"bos_token_id": "<s>"}, 'bos_token_id is "<s>"'),
        ({"torch_dtype": "int4"}, 'torch_dtype is "int4", but it must be one of float16'),
        ({"dtype": 16}, "dtype is 16"),
        ({"model_type": 5}, "model_type '5' is not supported"),
        ({"model_type": ...}, "model_type 'None' is not supported"),
        ({"model_type": "mistral", "sliding_window": "x"}, 'sliding_window is "x"'),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_wrong_config_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    edit(folder / "config.json", change)
    sentence = refusal(folder)
    assert sentence.startswith(str(folder / "config.json"))
    assert words in sentence


def test_a_number_of_thousands_of_digits_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA).replace("300", "1" + "0" * 6000))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ffn_dim": ...}, "ffn_dim is missing"),
        ({"ffn_dim": 2**21}, "ffn_dim is 2097152"),
        ({"hidden_size": 33}, "hidden_size 33 is not a multiple of num_attention_heads 4"),
        ({"hidden_size": 4, "num_attention_heads": 4}, "head_dim is 1, but it must be even"),
        ({"word_embed_proj_dim": 0}, "word_embed_proj_dim is 0"),
        ({"do_layer_norm_before": 1}, "do_layer_norm_before is 1"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm = True is not supported"),
        ({"enable_bias": "yes"}, 'enable_bias is "yes"'),
    ],
)
def test_a_wrong_config_of_opt_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    (folder / "config.json").write_text(json.dumps(OPT))
    assert shape_of(str(folder)).family == "opt"
    edit(folder / "config.json", change)
    assert words in refusal(folder)


FILES = ("config.json", "generation_config.json", "tokenizer.json", INDEX)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("blobs/not-there")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("name", [*FILES, SHARDS[0]])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (a_folder, "is not a file"),
        (a_pipe, "is not a file"),
        (a_link_to_nothing, "is a link to a file that is not there"),
        (a_link_to_itself, "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_refused(
    folder: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder / name)
    sentence = refusal(folder)
    assert sentence.startswith(str(folder / name))
    assert words in sentence


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"\x80\x04\x95", "is not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not valid JSON"),
        (DEEP, "must hold a JSON object"),
        (b'{"x": ' * 100_000, ""),
        (b"[]", "must hold a JSON object, not a list"),
        (b"null", "must hold a JSON object, not null"),
        (b'"text"', 'must hold a JSON object, not "text"'),
    ],
)
def test_what_is_no_json_object_is_refused(folder: Path, name: str, content: bytes, words: str) -> None:
    (folder / name).write_bytes(content)
    sentence = refusal(folder)
    assert sentence.startswith(str(folder / name))
    assert words in sentence


@pytest.mark.parametrize("name", [*FILES, "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_is_too_large_is_refused_before_it_is_read(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 2**40)  # takes no space on the disk
    if name in FILES:
        assert "is larger than" in refusal(folder)
    else:
        assert "is larger than" in open_all(folder)[1].chat_problem


def test_an_end_token_of_the_generation_config_is_checked_too(folder: Path) -> None:
    for value, words in ((2.5, "is 2.5"), ([2, None], "[1] is null"), (300, "is 300, but it must be below")):
        edit(folder / "generation_config.json", {"eos_token_id": value})
        assert f"generation_config.json: eos_token_id{words if words[0] == '[' else ' ' + words}" in refusal(
            folder
        )


# the tokenizer


def added(id: int, **more: Any) -> Callable[[Any], Any]:
    """Return a change that adds a token to tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

    def change(found: Any) -> Any:
        found["added_tokens"].append({"id": id, "content": "<|new|>", **flags, **more})
        return found

    return change


def growing(kind: str) -> dict[str, Any]:
    """Return a normalizer or decoder that makes a text of one character one of 10**12."""
    step = {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10**4}
    return {"type": "Sequence", f"{kind}s": [step] * 3}


def in_model(**fields: Any) -> Callable[[Any], Any]:
    return lambda found: found | {"model": found["model"] | fields}


def always(id: int) -> dict[str, Any]:
    """Return a post-processor that starts every prompt with a token."""
    here = {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokens = {"<s>": {"id": "<s>", "ids": [id], "tokens": ["<s>"]}}
    pair = [first, here, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": [first, here], "pair": pair, "special_tokens": tokens}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (added(4294967290), "added_tokens[2].id is 4294967290, but it must be a whole number <= 4194303"),
        (added(-1), "added_tokens[2].id is -1"),
        (added(299.5), "added_tokens[2].id is 299.5"),
        (added(299, content=5), "added_tokens[2].content is 5"),
        ({"added_tokens": "x"}, 'added_tokens is "x"'),
        ({"model": ...}, "model is missing"),
        ({"model": []}, "model is a list"),
        (in_model(vocab={"a": 4294967290}), "model.vocab.a is 4294967290, but it must be from 0 to 4194303"),
        (in_model(vocab={"a": -1}), "model.vocab.a is -1"),
        (in_model(vocab={"a": "b"}), "model.vocab"),
        (in_model(vocab="x"), 'model.vocab is "x"'),
        (in_model(type="WordLevel", vocab={"a": 4294967290}), "model.vocab.a is 4294967290"),
        (in_model(type="Magic"), "cannot be used"),
        (in_model(merges=[["a", "not there"]]), "cannot be used"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}}, "charsmap"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "????"}}, "charsmap"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": 7}}, "precompiled_charsmap is 7"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled"}] * 2}},
            "cannot be used",
        ),
        ({"post_processor": always(4_000_000_000)}, "adds the token id 4000000000 to every prompt"),
        ({"post_processor": always(0) | {"special_tokens": {}}}, "cannot be used"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}}, "cannot be used"),
        ({"normalizer": growing("normalizer")}, "normalizer makes texts more than"),
        ({"decoder": growing("decoder")}, "decoder makes texts more than"),
        (
            {"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 2**20}},
            "the texts of its tokens have more than",
        ),
    ],
)
def test_a_wrong_tokenizer_is_refused(folder: Path, change: Any, words: str) -> None:
    """Some of these end the process when the tokenizers library reads them."""
    edit(folder / "tokenizer.json", change)
    sentence = refusal(folder)
    assert sentence.startswith(str(folder / "tokenizer.json"))
    assert words in sentence


def test_a_vocabulary_that_is_smaller_than_the_tokenizer_is_refused(folder: Path) -> None:
    write_byte_tokenizer(folder, 49152, eos=2, bos=1)
    edit(folder / "config.json", {"vocab_size": 100})
    assert refusal(folder) == (
        f"{folder / 'tokenizer.json'} has token ids up to 49151, but vocab_size in {folder / 'config.json'} "
        "is 100: the tokenizer and the model do not belong together"
    )
    write_byte_tokenizer(folder, 50272, eos=2, bos=2)
    with pytest.raises(ModelError, match="but the vocabulary of smollm2-135m is 49152"):
        TextCodec.load(folder, "smollm2-135m")
    assert TextCodec.load(folder).encode("hi"), "without a model, any vocabulary is right"


def test_a_tokenizer_may_have_fewer_tokens_or_more_added_ones_than_the_model(folder: Path) -> None:
    edit(folder / "tokenizer.json", added(300))  # such as the padding token of many fine-tuned models
    _, codec = open_all(folder)
    assert codec.encode("a<|new|>")[-1] == 300
    write_byte_tokenizer(folder, 290, eos=2, bos=1)
    assert open_all(folder)[1].encode("a")


def test_a_token_that_every_prompt_gets_must_be_in_the_vocabulary(folder: Path) -> None:
    edit(folder / "tokenizer.json", added(300))
    edit(folder / "tokenizer.json", {"post_processor": always(300)})
    assert "adds the token id 300 to every prompt, but vocab_size in" in refusal(folder)
    edit(folder / "tokenizer.json", {"post_processor": always(299)})
    assert open_all(folder)[1].encode("")[0] == 299


def test_prompts_are_neither_shortened_nor_padded(folder: Path) -> None:
    """Files of embedding models ask for both, and a padding of gigabytes ends the process."""
    padding = {"strategy": {"Fixed": 4_000_000_000}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    shortening = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", {"padding": padding, "truncation": shortening})
    assert len(open_all(folder)[1].encode("some text")) == len("some text")


def test_a_token_that_looks_like_a_byte_is_a_text(folder: Path) -> None:
    vocab = {"<0xZZ>": 0, "<0x41>": 1, "<0x+1>": 2, "A": 3, "<unk>": 4}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>", "byte_fallback": True}
    edit(folder / "tokenizer.json", {"model": model, "decoder": {"type": "ByteFallback"}})
    codec = TextCodec.load(folder)
    assert [codec.token_text(token) for token in range(3)] == ["<0xZZ>", "A", "<0x+1>"]


# chats: what is wrong disables them, and completions work


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "must hold a JSON object, not a list"),
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b'{"chat_template": "\xff"}', "is not valid JSON"),
        (b'{"chat_template": "\\ud800"}', "is not valid JSON"),
        (NESTED_DEEPLY, ""),
        (b'{"chat_template": 5}', "chat_template is 5, but it must be a text, a list or null"),
        (b'{"chat_template": {}}', "chat_template is a JSON object"),
        (b'{"chat_template": [5]}', "chat_template[0] is 5"),
        (b'{"chat_template": [{"name": "default"}]}', "chat_template[0].template is missing"),
        (b'{"chat_template": [{"name": 1, "template": ""}]}', "chat_template[0].name is 1"),
        (b'{"bos_token": {}}', "bos_token.content is missing"),
        (b'{"bos_token": {"content": null}}', "bos_token.content is null"),
        (b'{"eos_token": 2}', "eos_token is 2"),
        (b'{"pad_token": ["x"]}', "pad_token is a list"),
    ],
)
def test_a_wrong_tokenizer_config_disables_chats(folder: Path, content: bytes, words: str) -> None:
    (folder / "tokenizer_config.json").write_bytes(content)
    _, codec = open_all(folder)
    assert codec.encode("hi")
    assert f"the chat template cannot be read: {folder / 'tokenizer_config.json'}" in codec.chat_problem
    assert words in codec.chat_problem


@pytest.mark.parametrize("damage", [a_folder, a_pipe, a_link_to_nothing, a_link_to_itself])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_chat_template_that_is_no_file_disables_chats(
    folder: Path, name: str, damage: Callable[[Path], None]
) -> None:
    (folder / name).touch()
    damage(folder / name)
    _, codec = open_all(folder)
    assert codec.encode("hi")
    assert str(folder / name) in codec.chat_problem


def test_special_tokens_and_named_templates_as_real_files_have_them(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}!"}]
    token = {"__type": "AddedToken", "content": "<s>", "lstrip": False}
    huge = 1000000000000000019884624838656
    found = {"chat_template": named, "bos_token": token, "unk_token": None, "model_max_length": huge}
    (folder / "tokenizer_config.json").write_text(json.dumps(found))
    _, codec = open_all(folder)
    assert codec.decode(codec.encode_chat([])) == "<s>!"


# weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_map": ...}, "weight_map is missing"),
        ({"weight_map": []}, "weight_map is a list"),
        ({"weight_map": {}}, "weight_map is empty"),
        ({"weight_map": {"a": 5}}, "weight_map"),
        ({"weight_map": {"a": "../other/model.safetensors"}}, "weight_map.a is"),
        ({"weight_map": {"a": "/etc/passwd"}}, "weight_map.a is"),
        ({"weight_map": {"a": ".."}}, "weight_map.a is"),
        ({"weight_map": {"a": ""}}, "weight_map.a is"),
        ({"weight_map": {"a": "x\0y"}}, "weight_map.a is"),
    ],
)
def test_a_wrong_index_is_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    edit(folder / INDEX, change)
    sentence = refusal(folder)
    assert sentence.startswith(str(folder / INDEX))
    assert words in sentence


def test_a_shard_that_the_index_lists_must_be_there(folder: Path) -> None:
    (folder / SHARDS[1]).unlink()
    assert refusal(folder) == f"{folder / SHARDS[1]} is missing, and {INDEX} lists it: download it again"


def header(**tensors: Any) -> bytes:
    found = json.dumps(tensors).encode()
    return struct.pack("<Q", len(found)) + found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 10) + b"[" * 10,
        struct.pack("<Q", 100_000) + DEEP,
        header(a={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}) + bytes(8),
        header(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 2**60]}),
        header(a={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + bytes(4),
        header(a={"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
        header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
    ],
)
def test_a_damaged_shard_is_refused(folder: Path, content: bytes) -> None:
    (folder / SHARDS[0]).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / SHARDS[0]} cannot be read")


def test_a_truncated_shard_is_refused(folder: Path) -> None:
    path = folder / SHARDS[0]
    os.truncate(path, path.stat().st_size - 1)
    assert refusal(folder).startswith(f"{path} cannot be read")


def test_a_tensor_of_another_shape_or_format_is_refused(folder: Path) -> None:
    path = folder / SHARDS[0]
    tensors = load_file(path)
    name = "model.embed_tokens.weight"
    save_file(tensors | {name: torch.zeros(300, 31)}, path)
    assert refusal(folder) == (f"{path}: {name} is [300, 31], but the sizes in config.json need [300, 32]")
    for dtype in (torch.int8, torch.float8_e4m3fn, torch.bool, torch.int64):
        save_file(tensors | {name: torch.zeros(300, 32).to(dtype)}, path)
        assert f"{path}: {name} is stored as" in refusal(folder)
    save_file(tensors | {name: torch.zeros(300, 32, dtype=torch.float64)}, path)
    open_all(folder)


def test_missing_duplicate_and_unknown_tensors_are_refused(folder: Path) -> None:
    first, second = (folder / shard for shard in SHARDS)
    tensors, others = load_file(first), load_file(second)
    name, other = min(tensors), min(others)
    save_file(others | {name: tensors[name]}, second)
    assert refusal(folder) == f"{second}: {name} is in {SHARDS[0]} too: remove one of them"
    save_file({one: value for one, value in others.items() if one != other}, second)
    assert refusal(folder) == f"{folder}: 1 tensors are missing: {other}"
    save_file(others | {"a\nb\x1b[31m": torch.zeros(1)}, second)
    assert refusal(folder) == f"{folder}: 1 tensors are not this model's: a\\nb\\x1b[31m"
    save_file(others | {"model.layers.2.extra": torch.zeros(1)}, second)
    assert refusal(folder) == f"{folder}: 1 tensors are not this model's: model.layers.2.extra"


def test_nothing_is_copied_before_all_headers_were_checked(folder: Path) -> None:
    """Weights can have hundreds of gigabytes: a wrong last file must not cost reading the others."""
    (folder / SHARDS[1]).write_bytes(b"")
    read: list[str] = []
    real = torch.Tensor.copy_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", lambda self, *a: read.append("copied") or real(self, *a))
        refusal(folder)
    assert read == []


# random changes of valid files

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**32 - 6, 2**63, 2**64, 10**30, 10**4000])
    | st.floats()
    | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def places_in(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*at, name)
        yield from places_in(part, (*at, name))


@st.composite
def damaged(draw: st.DrawFn, original: Any) -> bytes:
    """Return JSON with up to three values replaced or removed, and sometimes with damaged bytes."""
    found = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places_in(found))
        if not ways:
            break
        *way, last = draw(st.sampled_from(ways))
        parent = found
        for name in way:
            parent = parent[name]
        if draw(st.integers(0, 3)) == 0:
            del parent[last]
        else:
            parent[last] = draw(VALUES)
    content = bytearray(json.dumps(found).encode())
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(content)))
        content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content)


def outcome(read: Callable[[], T]) -> tuple[T | None, str]:
    """Return what was read, or the sentence that refuses it."""
    try:
        return read(), ""
    except ModelError as error:
        return None, str(error)


MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@MANY
@given(st.data())
@pytest.mark.parametrize("config", [LLAMA, OPT], ids=["llama", "opt"])
def test_any_config_is_read_or_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_bytes(data.draw(damaged(config)))
    shape, problem = outcome(lambda: shape_of(str(folder)))
    assert "\n" not in problem
    if shape is None:
        assert "config.json" in problem
    else:
        assert 0 < shape.num_parameters <= 10**13
        assert all(0 <= token < shape.vocab_size for token in shape.eos_token_ids)


@pytest.mark.slow
@MANY
@given(st.data())
def test_any_tokenizer_config_is_read_or_disables_chats(folder: Path, data: st.DataObject) -> None:
    path = folder / "tokenizer_config.json"
    original = {
        "chat_template": [{"name": "default", "template": "{{ bos_token }}"}],
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "added_tokens_decoder": {"0": {"content": "<s>"}},
    }
    path.write_bytes(data.draw(damaged(original)))
    problem = TextCodec.load(folder, str(folder)).chat_problem
    assert problem == "" or "tokenizer_config.json" in problem


@pytest.mark.slow
@MANY
@given(st.data())
def test_any_tokenizer_is_read_or_refused_with_its_name(
    good: Path, folder: Path, data: st.DataObject
) -> None:
    original = json.loads((good / "tokenizer.json").read_bytes())
    original["model"]["vocab"] = {t: i for t, i in original["model"]["vocab"].items() if i < 20}
    original["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    original["post_processor"] = always(1)
    (folder / "tokenizer.json").write_bytes(data.draw(damaged(original)))
    codec, problem = outcome(lambda: TextCodec.load(folder, str(folder)))
    assert "\n" not in problem
    if codec is None:
        assert "tokenizer.json" in problem
    else:
        assert all(token < 2**22 for token in codec.encode("A text."))


@pytest.mark.slow
@MANY
@given(st.data())
def test_any_index_is_read_or_refused_with_a_name(good: Path, folder: Path, data: st.DataObject) -> None:
    original = json.loads((good / INDEX).read_bytes())
    original["weight_map"] = dict(list(original["weight_map"].items())[:3])
    (folder / INDEX).write_bytes(data.draw(damaged(original)))
    model, problem = outcome(lambda: load(shape_of(str(good)), folder, CPU, torch.float32))
    assert "\n" not in problem
    assert model is not None or str(folder) in problem
