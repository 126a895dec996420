"""Chooses vLLM's options: from a preset, from our options that mean the same, and from the user. Pure.

Options are chosen under the names of new versions, then written as the installed version's help lists them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgbench.spec.cores import cores_text
from fgbench.spec.start import VllmPreset
from fgengine.config import EngineConfig
from fgengine.kv.sizing import CPU_POOL_LIMIT_BYTES, GIB
from fgengine.settings import described

SAME = {
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "max_batch_size": "max_num_seqs",
    "max_tokens_per_batch": "max_num_batched_tokens",
    "block_size": "block_size",
    "num_device_blocks": "num_gpu_blocks_override",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "swap_space": "swap_space",
    "engine_seed": "seed",
    "eager": "enforce_eager",
}
"""Our option -> vLLM's option of the same meaning and unit. ``use_dummy_weights`` is ``load_format``."""
TRANSLATED = (*SAME, "use_dummy_weights", "model", "tokenizer")
"""Our options that also mean something for vLLM."""
RESERVED = ("host", "port", "uds", "api_key", "model", "config")
"""vLLM's options that fgbench sets itself, or that would hide the server from it."""
REMOVED = {
    "swap_space": "it has no host memory for preempted requests, and recomputes them",
    "num_scheduler_steps": "",
    "disable_custom_all_reduce": "",
    "enable_log_requests": "",
    "device": "",
}
"""Options that some versions lack -> what that means; empty: the same as the value we give."""
ARTIFACT_MAX_LEN = 2048
ARTIFACT_SWAP_GIB = 4
CPU_BLOCK_SIZE = 32
"""The number of tokens of which blocks must have a multiple in new CPU builds; old ones have it too."""
PRELOAD = "LD_PRELOAD"
BIND, KV_SPACE = "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE"
_NUMBER = re.compile(r"(?:0|[1-9]\d{0,17})(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Settings of a vLLM server, before its version is asked how they are written."""

    options: dict[str, Any]
    """Option -> value, such as ``max_num_seqs: 16`` or ``enable_prefix_caching: False``."""
    environment: dict[str, str]
    """Environment variables."""
    preload: tuple[str, ...] = ()
    """Libraries to preload: paths, or names for the loader."""
    dispensable: frozenset[str] = field(default_factory=frozenset)
    """Options of the preset, and those that the user gave for all backends; a version may lack those in
    ``REMOVED``."""
    notes: tuple[str, ...] = ()
    """Sentences about what this build cannot do."""


def refuse_others(names: Collection[str], backend: str) -> None:
    """Raise ValueError for the first of our options ``names`` that means nothing for vLLM."""
    for one in described(EngineConfig):
        if one.name in names and one.name not in TRANSLATED:
            advice = "leave it out"
            if one.name == "chunked_prefill":
                advice = "use --backend vllm-chunked"
            raise ValueError(f"{one.flag} means nothing for --backend {backend}: {advice}")


def parse_passed(words: Sequence[str]) -> dict[str, Any]:
    """Return vLLM's options in ``words``, by name: ``--no-enable-x`` gives ``enable_x: False``.

    Raises ValueError if a word is no option, or if fgbench sets the option itself.
    """
    found: dict[str, Any] = {}
    values: list[Any] = []
    name = ""
    for word in words:
        if not word.startswith("-") or re.fullmatch(r"-\d+(\.\d+)?", word):
            if not name:
                raise ValueError(f"{word!r} is no option of vLLM: write options like --max-num-seqs 256")
            values.append(_typed(word))
            found[name] = values[0] if len(values) == 1 else list(values)
            continue
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or len(flag) < 3:
            raise ValueError(
                f"{word!r} is a short option of vLLM: write the long one, such as --max-num-seqs"
            )
        name, values = flag[2:].replace("-", "_"), []
        if name in RESERVED:
            raise ValueError(f"{flag} cannot be passed to vLLM, because fgbench sets it: leave it out")
        positive, negated = _positive(name)
        if equals:
            values.append(_typed(value))
            found[name] = values[0]
        else:
            found[positive] = not negated
            name = positive
    return found


def _positive(name: str) -> tuple[str, bool]:
    """Return the option without a negation, and whether it was negated."""
    if name == "disable_log_requests":
        return "enable_log_requests", True
    return (name[3:], True) if name.startswith("no_") else (name, False)


def _typed(text: str) -> Any:
    if not _NUMBER.fullmatch(text):
        return text
    return float(text) if "." in text else int(text)


def choose(
    preset: VllmPreset,
    server: EngineConfig,
    *,
    chunked: bool,
    given: Collection[str],
    passed: Mapping[str, Any],
    build: str,
    cores: Sequence[int],
    max_position: int | None,
    block_bytes: int | None,
    environ: Mapping[str, str],
    libraries: Sequence[str] = (),
    own: Collection[str] = (),
) -> Wanted:
    """Return the settings of a vLLM server.

    Args:
        preset: See ``StartSpec.vllm_preset``.
        server: Our settings.
        chunked: Whether prefill is chunked. Without it, the preset ``default`` leaves that to vLLM.
        given: Our options that the user gave.
        passed: vLLM's own options that the user gave; they override all others.
        build: ``CPU``, ``CUDA`` or ``ROCm``.
        cores: Numbers of the cores that the server may use.
        max_position: Longest context of the model, in tokens; None: not known.
        block_bytes: Bytes of one KV block; None: not known.
        environ: The user's environment variables; those that vLLM reads are not changed.
        libraries: Libraries on this machine that a CPU build is faster with.
        own: Those of ``given`` that are for this backend alone.

    Raises ValueError if ``passed`` contradicts ``chunked``.
    """
    of_preset = _preset(preset, server, build, max_position)
    of_user: dict[str, Any] = {
        theirs: getattr(server, ours) for ours, theirs in SAME.items() if ours in given
    }
    if "use_dummy_weights" in given:
        of_user["load_format"] = "dummy" if server.use_dummy_weights else "auto"
    of_user |= passed
    if chunked or preset != "default":
        wish = passed.get("enable_chunked_prefill", chunked)
        if wish is not chunked:
            name, other = ("vllm-chunked", "vllm") if chunked else ("vllm", "vllm-chunked")
            raise ValueError(f"--backend {name} contradicts its option for chunked prefill: use {other}")
        of_preset["enable_chunked_prefill"] = chunked
    notes: tuple[str, ...] = ()
    size = of_preset.get("block_size", CPU_BLOCK_SIZE)
    if build == "CPU" and size % CPU_BLOCK_SIZE and "block_size" not in of_user:
        of_preset["block_size"] = rounded = math.ceil(size / CPU_BLOCK_SIZE) * CPU_BLOCK_SIZE
        notes = (f"vLLM's CPU build has KV blocks of {rounded} tokens instead of {size}",)
    options = of_preset | {name: value for name, value in of_user.items() if value is not None}
    environment: dict[str, str] = {}
    if build == "CPU":
        environment[BIND] = cores_text(cores)  # by default, vLLM computes on all of them except one
        if preset != "default":
            environment[KV_SPACE] = str(_kv_gib(server, given, block_bytes))
        environment |= {name: environ[name] for name in (BIND, KV_SPACE) if name in environ}
    preload = tuple(libraries) if build == "CPU" and preset != "default" and PRELOAD not in environ else ()
    needed = {theirs for ours, theirs in SAME.items() if ours in own} | set(passed)
    return Wanted(options, environment, preload, frozenset(options) - needed, notes)


def _preset(preset: VllmPreset, server: EngineConfig, build: str, max_position: int | None) -> dict[str, Any]:
    options: dict[str, Any] = {"enable_log_requests": False}
    if build == "CPU":
        options["device"] = "cpu"
    if preset == "default":
        return options
    options["enable_prefix_caching"] = False
    if preset == "artifact":
        options |= {
            "load_format": "dummy",
            "block_size": server.block_size,
            "gpu_memory_utilization": server.gpu_memory_utilization,
            "max_num_seqs": server.max_batch_size,
            "max_num_batched_tokens": server.max_tokens_per_batch,
            "max_model_len": min(ARTIFACT_MAX_LEN, max_position or ARTIFACT_MAX_LEN),
            "swap_space": ARTIFACT_SWAP_GIB,
            "enforce_eager": True,
            "num_scheduler_steps": 1,
            "disable_custom_all_reduce": True,
        }
        if build != "CPU":
            options["dtype"] = "float16"
    return options


def _kv_gib(server: EngineConfig, given: Collection[str], block_bytes: int | None) -> int:
    """Return the KV cache in GiB: that of the blocks that the user gave, else our device pool's limit."""
    blocks = server.num_device_blocks
    if "num_device_blocks" in given and blocks is not None and block_bytes is not None:
        return max(1, math.ceil(blocks * block_bytes / GIB))
    return CPU_POOL_LIMIT_BYTES // GIB


def written(wanted: Wanted, known: Mapping[str, str], version: str) -> tuple[list[str], list[str]]:
    """Return the command-line arguments for a version, and sentences about what it cannot do.

    Args:
        wanted: The settings.
        known: The version's options: flag -> placeholder, as ``parse_help`` returns them.
        version: Such as ``vLLM 0.32.0``, for messages.

    Raises ValueError if the version lacks an option that it needs.
    """
    arguments: list[str] = []
    notes = list(wanted.notes)
    for name, value in wanted.options.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            arguments += _off(flag, known)
            if name == "enable_chunked_prefill" and flag not in known:
                notes.append(f"{version} cannot switch chunked prefill off: it may chunk prompts")
        elif flag.partition(".")[0] in known:
            arguments += (
                [flag]
                if value is True
                else [flag, *map(_text, value if isinstance(value, list) else [value])]
            )
        elif name == "enable_log_requests":
            pass  # old versions log requests unless an option forbids it
        elif name == "enable_chunked_prefill":
            notes.append(f"{version} has no option for chunked prefill: it decides itself")
        elif name in REMOVED and name in wanted.dispensable:
            if REMOVED[name]:
                notes.append(f"{version} has no {flag}: {REMOVED[name]}")
        else:
            near = difflib.get_close_matches(flag, known, 1)
            hint = f": did you mean {near[0]}?" if near else ": leave it out"
            raise ValueError(f"{version} has no option {flag}{hint}")
    return arguments, notes


def _off(flag: str, known: Mapping[str, str]) -> list[str]:
    """Return the arguments that switch an option off; none if it is off unless it is given."""
    name = flag.removeprefix("--")
    for opposite in (f"--no-{name}", f"--disable-{name.removeprefix('enable-')}"):
        if opposite in known:
            return [opposite]
    if known.get(flag, "").startswith("["):  # an optional value
        return [f"{flag}=False"]
    return []


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_CHUNKED = re.compile(r"(?:enable_chunked_prefill|chunked_prefill_enabled)=(True|False)")
_PREFIX = re.compile(r"(?:enable_prefix_caching|prefix_caching_enabled)=(True|False)")
_THREADS = re.compile(r"(?:OMP tid: \d+, core (\d+))|(?:local_rank=\d+, core ids=\[([\d, ]*)\])")
_NOT_PRELOADED = re.compile(r"(lib\w+) is not found in LD_PRELOAD")
_KV_TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
_UNSUPPORTED = "does not officially support disabling chunked prefill"


def in_effect(log: str, wanted: Wanted, version: str) -> tuple[dict[str, Any], list[str]]:
    """Return what a started server reports in its log, and sentences about what differs from ``wanted``.

    The keys are ``chunked_prefill``, ``prefix_caching`` (booleans), ``compute_cores`` (the cores to which its
    OpenMP threads are bound, CPU build only) and ``kv_cache_tokens``. A key is missing if the log does not
    tell.
    """
    found: dict[str, Any] = {}
    for key, pattern in (("chunked_prefill", _CHUNKED), ("prefix_caching", _PREFIX)):
        if values := pattern.findall(log):
            found[key] = values[-1] == "True"
    cores: set[int] = set()
    for match in _THREADS.finditer(log):
        cores.update(int(core) for core in (match[1] or match[2] or "").replace(",", " ").split())
    if cores:
        found["compute_cores"] = cores_text(cores)
    if sizes := _KV_TOKENS.findall(log):
        found["kv_cache_tokens"] = int(sizes[-1].replace(",", ""))
    notes = []
    for key in ("chunked_prefill", "prefix_caching"):
        wish = wanted.options.get(f"enable_{key}")
        actual = found.get(key)
        if wish is not None and actual is not None and wish is not actual:
            words = key.replace("_", " ")
            notes.append(f"{version} has {words} {_on(actual)}, although {words} {_on(wish)} was asked for")
    if wanted.options.get("enable_chunked_prefill") is False and _UNSUPPORTED in log:
        notes.append(f"{version} warns that it does not officially support disabling chunked prefill")
    if libraries := " and ".join(sorted(set(_NOT_PRELOADED.findall(log)))):
        notes.append(
            f"{version} recommends {libraries} in LD_PRELOAD for its best speed, and does not find it there"
        )
    return found, notes


def _on(value: bool) -> str:
    return "on" if value else "off"
