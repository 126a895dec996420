"""Scoring texts as lm-eval does, on a real engine: the requests it sends, and the program itself."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
PROMPTS = [[5, 9, 200, 31], [7, 7, 8], [100, 4, 3, 2, 1, 90]]


def scored(prompts: list[list[int]], **more: Any) -> dict[str, Any]:
    """Return the body that lm-eval's local-completions posts for log-likelihoods."""
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    return {**body, **more}


def likelihood(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """Return the log-likelihood of what follows the context, and whether it is greedy, as lm-eval does."""
    values = choice["logprobs"]["token_logprobs"][context:-1]
    tops = choice["logprobs"]["top_logprobs"][context:-1]
    return sum(values), all(value == max(top.values()) for value, top in zip(values, tops, strict=True))


async def test_texts_have_the_log_probability_with_which_they_are_generated(serving: Any) -> None:
    async with serving(policy="fcfs", max_batch_size=4) as (url, session):

        async def post(body: dict[str, Any]) -> list[dict[str, Any]]:
            async with session.post(url + "/v1/completions", json=body) as response:
                answer = await response.json()
                assert response.status == 200, answer
                return list(answer["choices"])

        generated = await post(
            {
                "prompt": PROMPTS,
                "temperature": 0,
                "max_tokens": 6,
                "ignore_eos": True,
                "logprobs": 0,
                "return_tokens_as_token_ids": True,
            }
        )
        texts, likelihoods = [], []
        for prompt, choice in zip(PROMPTS, generated, strict=True):
            names = choice["logprobs"]["tokens"]
            texts.append(prompt + [int(name.removeprefix("token_id:")) for name in names])
            likelihoods.append(sum(choice["logprobs"]["token_logprobs"]))
        together = await post(scored(texts))
        alone = [(await post(scored([text])))[0] for text in texts]
        for choices in (together, alone):
            for choice, prompt, expected in zip(choices, PROMPTS, likelihoods, strict=True):
                value, greedy = likelihood(choice, len(prompt))
                assert math.isclose(value, expected, abs_tol=1e-3)
                assert greedy
        changed = [[*text[:-1], (text[-1] + 1) % 256] for text in texts]
        for choice, prompt, expected in zip(await post(scored(changed)), PROMPTS, likelihoods, strict=True):
            value, greedy = likelihood(choice, len(prompt))
            assert value < expected
            assert not greedy
        only_scored = await post(scored(texts, max_tokens=0))
        for choice, with_output in zip(only_scored, together, strict=True):
            assert choice["logprobs"]["token_logprobs"] == with_output["logprobs"]["token_logprobs"][:-1]


async def test_a_prompt_that_fills_the_context_is_scored_as_by_transformers(
    serving: Any, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=128, **sizes)).eval()
    for value in theirs.parameters():
        value.data.normal_(0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    prompt = torch.randint(0, 256, (128,)).tolist()
    with torch.inference_mode():
        logprobs = theirs(torch.tensor([prompt])).logits[0].log_softmax(-1)
    wanted = logprobs[torch.arange(127), torch.tensor(prompt[1:])].tolist()
    settings = {"model": str(tmp_path), "use_dummy_weights": False, "policy": "fcfs"}
    async with serving(**settings) as (url, session):
        for max_tokens, status in ((1, 400), (0, 200)):
            body = scored([prompt], max_tokens=max_tokens)
            async with session.post(url + "/v1/completions", json=body) as response:
                answer = await response.json()
                assert response.status == status, answer
    (choice,) = answer["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, *(pytest.approx(one, abs=1e-4) for one in wanted)]
    greedy = [max(top.values()) for top in choice["logprobs"]["top_logprobs"][1:]]
    assert greedy == pytest.approx(logprobs[:-1].amax(-1).tolist(), abs=1e-4)


TASK = """
task: choose
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""


@pytest.mark.parametrize("batch_size", [1, 3])
async def test_lm_eval_itself(
    serving: Any, tmp_path: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "lm-eval is large and no part of our development tools: pip install 'lm-eval[api]'"
    lm_eval = pytest.importorskip("lm_eval", reason=reason)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": text, "choices": ["one", "two", "three"], "answer": 0} for text in ("a b", "c", "d?")
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "choose.yaml").write_text(TASK.format(data=tmp_path / "data.jsonl"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    async with serving(policy="fcfs", max_batch_size=4) as (url, _):
        arguments = {
            "base_url": f"{url}/v1/completions",
            "tokenizer": str(tmp_path),
            "max_length": 200,
            "eos_string": "x",
        }

        def evaluate() -> Any:
            return lm_eval.simple_evaluate(
                "local-completions",
                model_args=arguments,
                tasks=["choose"],
                batch_size=batch_size,
                task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
                bootstrap_iters=0,
            )

        found = await asyncio.to_thread(evaluate)
    samples = found["samples"]["choose"]
    assert len(samples) == 3
    values = [float(value) for sample in samples for (value, _) in sample["filtered_resps"]]
    assert len(values) == 9
    assert all(-200 < value < 0 for value in values)
