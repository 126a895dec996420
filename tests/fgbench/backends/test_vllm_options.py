import pytest

from fgbench.backends.vllm_install import find_python, parse_help
from fgbench.backends.vllm_options import (
    TRANSLATED,
    choose,
    in_effect,
    parse_passed,
    refuse_others,
    written,
)
from fgengine.config import EngineConfig
from fgengine.settings import described

NEW = {
    **dict.fromkeys(
        ["--max-num-seqs", "--max-num-batched-tokens", "--block-size", "--load-format", "--seed", "--model"],
        "N",
    ),
    **dict.fromkeys(["--max-model-len", "--gpu-memory-utilization", "--num-gpu-blocks-override"], "N"),
    **dict.fromkeys(["--enforce-eager", "--no-enforce-eager"], ""),
    **dict.fromkeys(["--enable-chunked-prefill", "--no-enable-chunked-prefill"], ""),
    **dict.fromkeys(["--enable-prefix-caching", "--no-enable-prefix-caching"], ""),
    **dict.fromkeys(["--enable-log-requests", "--no-enable-log-requests"], ""),
}
OLD = {
    **{name: NEW[name] for name in NEW if not name.startswith(("--no-", "--enable-log"))},
    **dict.fromkeys(["--disable-log-requests", "--disable-custom-all-reduce"], ""),
    **dict.fromkeys(["--swap-space", "--device", "--num-scheduler-steps"], "N"),
    "--enable-chunked-prefill": "[ENABLE_CHUNKED_PREFILL]",
}


def chosen(preset="tuned", server=None, *, chunked=False, given=(), passed=(), build="CPU", **more):
    return choose(
        preset,
        server or EngineConfig(),
        chunked=chunked,
        given=given,
        passed=parse_passed(passed),
        build=build,
        cores=(0, 1),
        **{"max_position": 8192, "block_bytes": 2**20, "environ": {}, **more},
    )


def arguments(wanted, known):
    return written(wanted, known, "vLLM X")[0]


def test_the_artifact_preset_in_an_old_and_a_new_version():
    server = EngineConfig(max_batch_size=16, max_tokens_per_batch=2048)
    wanted = chosen("artifact", server, build="CUDA")
    shared = {
        "load_format": "dummy",
        "block_size": 16,
        "gpu_memory_utilization": 0.9,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "max_model_len": 2048,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "dtype": "float16",
    }
    assert shared.items() <= wanted.options.items()
    old, old_notes = written(wanted, OLD | {"--dtype": "X"}, "vLLM 0.5.0")
    assert " ".join(old) == (
        "--disable-log-requests --load-format dummy --block-size 16 --gpu-memory-utilization 0.9 "
        "--max-num-seqs 16 --max-num-batched-tokens 2048 --max-model-len 2048 --swap-space 4 --enforce-eager "
        "--num-scheduler-steps 1 --disable-custom-all-reduce --dtype float16 --enable-chunked-prefill=False"
    )
    assert old_notes == []
    new, new_notes = written(wanted, NEW | {"--dtype": "X"}, "vLLM 0.32.0")
    assert " ".join(new) == (
        "--no-enable-log-requests --no-enable-prefix-caching --load-format dummy --block-size 16 "
        "--gpu-memory-utilization 0.9 --max-num-seqs 16 --max-num-batched-tokens 2048 --max-model-len 2048 "
        "--enforce-eager --dtype float16 --no-enable-chunked-prefill"
    )
    assert new_notes == [
        "vLLM 0.32.0 has no --swap-space: it has no host memory for preempted requests, and recomputes them"
    ]


def test_cpu_builds_get_blocks_of_32_tokens_in_the_artifact_preset():
    wanted = chosen("artifact", build="CPU")
    assert wanted.options["block_size"] == 32
    assert written(wanted, NEW, "vLLM X")[1][0] == (
        "vLLM's CPU build has KV blocks of 32 tokens instead of 16"
    )
    assert chosen("artifact", EngineConfig(block_size=64)).options["block_size"] == 64
    assert chosen("artifact", EngineConfig(block_size=64)).notes == ()
    own = chosen("artifact", given={"block_size"})
    assert (own.options["block_size"], own.notes) == (16, ())
    assert chosen("artifact", passed=["--block-size", "8"]).options["block_size"] == 8


def test_the_artifact_preset_is_no_longer_than_the_model():
    assert chosen("artifact", max_position=1024).options["max_model_len"] == 1024
    assert chosen("artifact", max_position=None).options["max_model_len"] == 2048


def test_the_tuned_preset_uses_all_cores_and_our_pool_and_changes_no_batch_limit():
    wanted = chosen("tuned")
    assert wanted.environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert wanted.environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert wanted.options["enable_prefix_caching"] is False
    assert "max_num_seqs" not in wanted.options
    assert "VLLM_CPU_OMP_THREADS_BIND" not in chosen("tuned", build="CUDA").environment


def test_the_kv_cache_follows_the_given_blocks():
    server = EngineConfig(num_device_blocks=5000)
    wanted = chosen("tuned", server, given={"num_device_blocks"})
    assert wanted.environment["VLLM_CPU_KVCACHE_SPACE"] == "5"  # 5,000 blocks of 1 MiB
    assert wanted.options["num_gpu_blocks_override"] == 5000


def test_the_default_preset_leaves_vllm_as_it_is():
    wanted = chosen("default")
    assert arguments(wanted, NEW) == ["--no-enable-log-requests"]
    assert arguments(wanted, OLD) == ["--disable-log-requests", "--device", "cpu"]
    assert wanted.environment == {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}  # the cores of all other backends
    assert chosen("default", build="CUDA").environment == {}
    assert arguments(chosen("default", chunked=True), NEW)[-1] == "--enable-chunked-prefill"


def test_variables_that_the_user_set_for_vllm_are_not_changed():
    user = {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_KVCACHE_SPACE": "8", "HOME": "/"}
    expected = {"VLLM_CPU_OMP_THREADS_BIND": "auto", "VLLM_CPU_KVCACHE_SPACE": "8"}
    for preset in ("tuned", "default", "artifact"):
        assert chosen(preset, environ=user).environment == expected
    assert chosen(build="CUDA", environ=user).environment == {}


def test_the_recommended_libraries_are_preloaded_by_a_strong_baseline():
    libraries = ("/env/lib/libtcmalloc_minimal.so.4", "libiomp5.so")
    assert chosen(libraries=libraries).preload == libraries
    assert chosen("artifact", libraries=libraries).preload == libraries
    assert chosen("default", libraries=libraries).preload == ()
    assert chosen(build="CUDA", libraries=libraries).preload == ()
    assert chosen(libraries=libraries, environ={"LD_PRELOAD": "libmine.so"}).preload == ()


def test_only_given_options_of_ours_are_translated():
    server = EngineConfig(
        max_batch_size=16, block_size=32, use_dummy_weights=True, dtype="bfloat16", eager=True, engine_seed=3
    )
    given = {"max_batch_size", "use_dummy_weights", "dtype", "eager", "engine_seed"}
    options = chosen("default", server, given=given).options
    assert options["max_num_seqs"] == 16  # the default value, but given
    assert "block_size" not in options
    assert options["load_format"] == "dummy"
    assert (options["dtype"], options["enforce_eager"], options["seed"]) == ("bfloat16", True, 3)


def test_chunked_prefill_is_the_name_of_the_backend():
    assert arguments(chosen(chunked=True), NEW)[-1] == "--enable-chunked-prefill"
    assert arguments(chosen(chunked=False), NEW)[-1] == "--no-enable-chunked-prefill"
    with pytest.raises(ValueError, match=r"--backend vllm contradicts .*: use vllm-chunked"):
        chosen(passed=["--enable-chunked-prefill"])
    with pytest.raises(ValueError, match=r"--backend vllm-chunked contradicts .*: use vllm"):
        chosen(chunked=True, passed=["--no-enable-chunked-prefill"])


def test_a_version_without_the_option_for_chunked_prefill_is_reported():
    known = {flag: text for flag, text in NEW.items() if "chunked" not in flag}
    assert written(chosen(), known, "vLLM 0.9")[1] == [
        "vLLM 0.9 cannot switch chunked prefill off: it may chunk prompts"
    ]
    assert written(chosen(chunked=True), known, "vLLM 0.9")[1] == [
        "vLLM 0.9 has no option for chunked prefill: it decides itself"
    ]


def test_passed_options_override_the_preset_and_ours():
    server = EngineConfig(max_batch_size=8)
    passed = ["--max-num-seqs", "256", "--enable-prefix-caching"]
    wanted = chosen("artifact", server, given={"max_batch_size"}, passed=passed)
    assert wanted.options["max_num_seqs"] == 256
    assert wanted.options["enable_prefix_caching"] is True
    assert "--enable-prefix-caching" in arguments(wanted, NEW)


def test_passed_options_are_read_by_name():
    words = ["--a_b", "1", "--c=x", "--flag", "--no-off", "--many", "1", "two", "--neg", "-1", "--x.y", "0.5"]
    assert parse_passed(words) == {
        "a_b": 1,
        "c": "x",
        "flag": True,
        "off": False,
        "many": [1, "two"],
        "neg": "-1",
        "x.y": 0.5,
    }
    assert parse_passed(["--disable-log-requests"]) == {"enable_log_requests": False}
    assert parse_passed(['--json={"a": 1}']) == {"json": '{"a": 1}'}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["256"], "'256' is no option of vLLM"),
        (["-tp", "2"], "'-tp' is a short option of vLLM"),
        (["--port", "8000"], "--port cannot be passed to vLLM, because fgbench sets it"),
        (["--api-key=x"], "--api-key cannot be passed"),
    ],
)
def test_wrong_passed_options_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_passed(words)


def test_an_option_that_the_version_lacks_is_refused_with_a_similar_one():
    with pytest.raises(ValueError, match="vLLM X has no option --max-num-seq: did you mean --max-num-seqs"):
        arguments(chosen(passed=["--max-num-seq", "4"]), NEW)
    given = chosen("default", EngineConfig(swap_space=4.0), given={"swap_space"}, own={"swap_space"})
    with pytest.raises(ValueError, match="has no option --swap-space"):
        arguments(given, NEW)
    assert "--swap-space" in arguments(given, OLD)


def test_an_option_for_all_backends_that_the_version_lacks_is_said():
    """The experiment files of ``reproduce`` give --swap-space to FastGen and to vLLM."""
    given = chosen("default", EngineConfig(swap_space=4.0), given={"swap_space"})
    words, notes = written(given, NEW, "vLLM X")
    assert "--swap-space" not in words
    assert notes == [
        "vLLM X has no --swap-space: it has no host memory for preempted requests, and recomputes them"
    ]
    assert "--swap-space" in arguments(given, OLD)


def test_options_that_mean_nothing_for_vllm_are_refused_by_name():
    refuse_others({"max_batch_size", "model"}, "vllm")
    with pytest.raises(ValueError, match="--offloading means nothing for --backend vllm: leave it out"):
        refuse_others({"max_batch_size", "offloading"}, "vllm")
    with pytest.raises(ValueError, match=r"--chunked-prefill .*: use --backend vllm-chunked"):
        refuse_others({"chunked_prefill"}, "vllm")


def test_every_translated_option_exists():
    assert set(TRANSLATED) <= {one.name for one in described(EngineConfig)}


def test_the_log_says_what_is_in_effect():
    log = (
        "INFO ... config: enable_prefix_caching=False, enable_chunked_prefill=True, x\n"
        "CPU KV cache size: 93,184 tokens, Maximum concurrency for 8,192 tokens per request: 11.38x\n"
        "OpenMP thread binding info:\n\tlocal_rank=0, core ids=[0, 1]\n"
        "WARNING libiomp is not found in LD_PRELOAD. libiomp is not found in LD_PRELOAD.\n"
    )
    found, notes = in_effect(log, chosen(), "vLLM X")
    assert found == {
        "chunked_prefill": True,
        "prefix_caching": False,
        "compute_cores": "0-1",
        "kv_cache_tokens": 93_184,
    }
    assert notes == [
        "vLLM X has chunked prefill on, although chunked prefill off was asked for",
        "vLLM X recommends libiomp in LD_PRELOAD for its best speed, and does not find it there",
    ]
    old = "chunked_prefill_enabled=False\nOMP tid: 12, core 0\nOMP tid: 13, core 3\n"
    assert in_effect(old, chosen(), "vLLM X") == ({"chunked_prefill": False, "compute_cores": "0,3"}, [])
    assert in_effect("", chosen(), "vLLM X") == ({}, [])


HELP = """usage: api_server.py [-h] [--unlisted UNLISTED]

options:
  -h, --help            show this help message and exit
  --max-num-seqs MAX_NUM_SEQS
                        Replaces --gone.
  --dtype {auto,half}   Type, unlike --other.
  --enable-x, --no-enable-x
  -tp N, --tensor-parallel-size N
                        Replicas.
  --chunked [CHUNKED]   On or off.
  --eager               Flag.
"""


def test_help_is_read_without_what_its_descriptions_mention():
    assert parse_help(HELP) == {
        "--help": "",
        "--max-num-seqs": "MAX_NUM_SEQS",
        "--dtype": "{auto,half}",
        "--enable-x": "",
        "--no-enable-x": "",
        "--tensor-parallel-size": "N",
        "--chunked": "[CHUNKED]",
        "--eager": "",
    }


def test_the_python_is_the_given_one_then_the_variables(tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    assert find_python(str(one), {"FGBENCH_VLLM_PYTHON": str(two)}) == str(one)
    assert find_python(None, {"FGBENCH_VLLM_PYTHON": str(two)}) == str(two)
    with pytest.raises(ValueError, match=f"--vllm-python: {tmp_path} is a folder: give the Python in it"):
        find_python(str(tmp_path), {})
    with pytest.raises(ValueError, match="FGBENCH_VLLM_PYTHON: there is no program /no/such"):
        find_python(None, {"FGBENCH_VLLM_PYTHON": "/no/such"})


def test_a_folder_called_vllm_in_the_working_folder_is_not_vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"vLLM is not installed .*: install vLLM into an environment"):
        find_python(None, {})
