"""Are logits right here, tokens the same whatever the scheduler does, and KV whole after its copies?"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from fgengine.clock import WallClock
from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import Transfer
from fgengine.model.loader import Model, load
from fgengine.model.shape import ModelShape
from fgengine.ops.reference import TorchOps
from fgengine.ops.select import ops_for
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from gpu.checks import Check
from gpu.setting import Setting

SHAPES = {
    "llama, head size 64, 3 to 1": ModelShape("llama", 512, 384, 768, 4, 6, 2, 64, 1024, False),
    "llama, head size 128": ModelShape("llama", 512, 512, 768, 4, 4, 4, 128, 1024, True),
    "opt, head size 80": ModelShape("opt", 512, 320, 768, 4, 4, 4, 80, 1024, True, activation="relu"),
    "opt-350m's kind": ModelShape(
        "opt", 512, 256, 512, 3, 4, 4, 64, 1024, True, embed_dim=128, pre_norm=False, activation="relu"
    ),
}
TINY_SHAPES = ("llama, head size 64, 3 to 1", "opt, head size 80")
CPU = torch.device("cpu")
BATCH = 4
COST = CostModel(step=0.001, prefill_token=1e-5, decode_request=1e-4)
LENGTHS = (1, 15, 16, 17, 64, 200, 333)
TINY_LENGTHS = (1, 16, 17, 40)
LOGITS_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.08, torch.bfloat16: 0.6}
"""Largest difference to the logits that the plain path computes on the CPU in float32, as a share of their
root mean square. There plain torch was off by at most 0.023 in float16 and 0.17 in bfloat16 (rounding adds up
over layers), and by 1.2 to 4.6 with one key lost."""
SHARPNESS = {torch.float32: 8.0, torch.float16: 3.0, torch.bfloat16: 3.0}
"""How many times the usual weights: else every token predicts itself. More makes more of rounding too."""
TIE = 5e-4
"""Logits so near each other, as a share of their root mean square, may change places in float32 too: for
another number of rows cuBLAS adds up in another order. Of the 280 tokens of a shape one at most is decided by
so little; plain torch was off by at most 1.4e-4 from float64."""


class Way(NamedTuple):
    """How the engine serves."""

    policy: str
    offloading: Offloading = "reactive"
    chunked: bool = False
    """Whether prompts are cut."""
    overlap: bool = True
    graphs: bool = True

    def __str__(self) -> str:
        parts = [self.policy, self.offloading, "chunked" if self.chunked else ""]
        parts += ["" if self.overlap else "no overlap", "" if self.graphs else "eager"]
        return ", ".join(part for part in parts if part)


ALONE = Way("fcfs", "none", overlap=False, graphs=False)
PRESSURE = (
    Way("fcfs"),
    Way("mlfq"),
    Way("mlfq", graphs=False),
    Way("mlfq", overlap=False),
    Way("mlfq", overlap=False, graphs=False),
    Way("sj-mlfq", chunked=True),
    Way("sj-mlfq", "proactive"),
    Way("srpt"),
    Way("mlfq", "recompute", chunked=True),
)


def models(setting: Setting) -> list[str]:
    return [name for name in SHAPES if setting.on_gpu or name in TINY_SHAPES]


def checks(setting: Setting, name: str) -> Iterator[Check]:
    """Of one of ``models``."""
    torch.backends.cuda.matmul.allow_tf32 = False  # else float32 is not, and tokens hang on the batch
    torch.backends.cudnn.allow_tf32 = False
    shape = SHAPES[name]
    yield Check("KV through copies", name, torch.float32, partial(_kv_survives, setting, shape))
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if setting.on_gpu else (torch.float32,):
        yield Check("logits", name, dtype, partial(_logits_are_right, setting, shape, dtype))
    yield Check("tokens alone", name, torch.float32, partial(_tokens_differ, setting, shape))
    for way in PRESSURE:
        work = partial(_tokens_are_the_same, setting, shape, way)
        yield Check(f"tokens under {way}", name, torch.float32, work)


def _logits_are_right(setting: Setting, shape: ModelShape, dtype: torch.dtype) -> tuple[bool, str]:
    """Over a ragged step of whole prompts, and over one of decodes and chunks behind them."""
    items, taken = [], 0
    for i, prompt in enumerate(_prompts(setting)):
        blocks = list(range(taken, taken + -(-len(prompt) // 16)))
        taken += len(blocks)
        items.append(PlanItem(_request(i, prompt), 0, len(prompt), blocks, True))
    there, here = (
        _runner(setting.device, shape, taken, 0, dtype),
        _runner(CPU, shape, taken, 0, torch.float32, SHARPNESS[dtype], TorchOps()),
    )
    worst = 0.0
    for plan in (StepPlan(0, items), StepPlan(1, _tails(items))):
        wanted = here.logits(plan, everywhere=True)
        difference = (there.logits(plan, everywhere=True).cpu().float() - wanted).abs().max()
        worst = max(worst, float(difference / wanted.square().mean().sqrt()))
    there.close()
    here.close()
    tolerance = LOGITS_TOLERANCE[dtype]
    return worst <= tolerance, f"off by {worst:.2g} of {tolerance:g}"  # NaN is not right


def _tails(items: list[PlanItem]) -> list[PlanItem]:
    """Computed again: of every second request the last token, of the others the last half; decodes in front,
    as a scheduler has them."""
    tails = []
    for i, item in enumerate(items):
        new = 1 if i % 2 == 0 else max(1, item.num_tokens // 2)
        tails.append(item._replace(start=item.num_tokens - new, num_tokens=new))
    return sorted(tails, key=lambda item: item.num_tokens > 1)


@functools.cache
def _alone(setting: Setting, shape: ModelShape) -> list[list[int]]:
    """The tokens of each prompt that has the engine for itself."""
    return _serve(setting, shape, ALONE, together=False)[0]


def _tokens_differ(setting: Setting, shape: ModelShape) -> tuple[bool, str]:
    """Else that they are the same later shows nothing."""
    outputs = zip(_prompts(setting), _alone(setting, shape), strict=True)
    kinds = len({token for prompt, tokens in outputs for token in tokens[len(prompt) :]})
    return kinds > 10, f"{kinds} different tokens"


def _tokens_are_the_same(setting: Setting, shape: ModelShape, way: Way) -> tuple[bool, str]:
    """As alone, all together on too few blocks; and they were too few indeed."""
    alone = _alone(setting, shape)
    tokens, stats = _serve(setting, shape, way, together=True)
    moved = stats["offloaded_blocks"]
    pressed = stats["recomputed_tokens"] if way.offloading == "recompute" else moved
    pairs = list(zip(tokens, alone, strict=True))
    same = sum(ours == theirs for ours, theirs in pairs)
    tied = sum(_part_at_a_tie(setting, shape, *pair) for pair in pairs if pair[0] != pair[1])
    found = f"{same} of {len(alone)} equal, {stats['preemptions']} preemptions, {moved} blocks swapped out"
    found += f"; {tied} others part where two logits are all but equal" if tied else ""
    return same + tied == len(alone) and pressed > 0, found


def _part_at_a_tie(setting: Setting, shape: ModelShape, ours: list[int], theirs: list[int]) -> bool:
    """Whether the first two tokens that differ have logits as good as equal."""
    first = next(i for i, (one, other) in enumerate(zip(ours, theirs, strict=True)) if one != other)
    blocks = range(-(-first // 16))
    runner = _runner(setting.device, shape, len(blocks), 0)
    item = PlanItem(_request(0, theirs[:first]), 0, first, blocks, True)
    (logits,) = runner.logits(StepPlan(0, [item])).cpu()
    runner.close()
    apart = (logits[ours[first]] - logits[theirs[first]]).abs() / logits.square().mean().sqrt()
    return float(apart) <= TIE


def _serve(
    setting: Setting, shape: ModelShape, way: Way, *, together: bool
) -> tuple[list[list[int]], dict[str, Any]]:
    """The tokens of every prompt; ``together``: on too few blocks for all of them."""
    prompts = _prompts(setting)
    output = 40 if setting.on_gpu else 12
    needed = [-(-(len(prompt) + output) // 16) for prompt in prompts]
    blocks = max(max(needed), sum(needed) * 2 // 5) if together else max(needed)
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    host_blocks = 0 if way.offloading in ("none", "recompute") else sum(needed)
    runner = _runner(setting.device, shape, blocks, host_blocks)
    if way.graphs:
        runner.capture_graphs(BATCH, capture=None if setting.on_gpu else lambda launches: launches)
    scheduler = Scheduler(
        make_policy(way.policy, PolicyContext(COST, starvation_limit=0.02, max_batch_size=BATCH)),
        KVManager(blocks, host_blocks, 16),
        Limits(256, 1024, way.chunked, block_bytes=runner.block_bytes),
        offloading=way.offloading,
        cost=COST,
    )
    vocab_size = shape.vocab_size
    engine = Engine(scheduler, runner, runner.copies, WallClock(), vocab_size=vocab_size, overlap=way.overlap)
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    tokens = [list(request.tokens) for group in groups for request in engine.generate(group, params)]
    engine.close()
    return tokens, engine.stats()


def _kv_survives(setting: Setting, shape: ModelShape) -> tuple[bool, str]:
    """Bit for bit, there and back, onto other blocks, one transfer a request."""
    blocks = 2000 if setting.on_gpu else 60
    half, size = blocks // 2, blocks // 20
    runner = _runner(setting.device, shape, blocks, half)
    runner.pool.normal_()
    kept = runner.pool[:half].clone()
    hosts = list(reversed(range(half)))
    parts = [slice(first, first + size) for first in range(0, half, size)]
    out = [Transfer(i, str(i), "offload", range(half)[part], hosts[part]) for i, part in enumerate(parts)]
    back = [
        Transfer(i, str(i), "upload", hosts[part], range(half, blocks)[part]) for i, part in enumerate(parts)
    ]
    for transfers in (out, back):
        for transfer in transfers:
            runner.copies.submit(transfer)
        done = 0
        while done < len(transfers):
            done += len(runner.copies.wait())
    same = torch.equal(runner.pool[half:blocks], kept)
    runner.close()
    return same, f"{half} blocks in {len(parts)} transfers each way"


def _prompts(setting: Setting) -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(512) for _ in range(n)] for n in (LENGTHS if setting.on_gpu else TINY_LENGTHS)]


def _request(index: int, prompt: list[int]) -> Request:
    return Request.new(str(index), prompt, SamplingParams(max_tokens=1, temperature=0.0), 0.0)


def _runner(
    device: torch.device,
    shape: ModelShape,
    device_blocks: int,
    host_blocks: int,
    dtype: torch.dtype = torch.float32,
    sharpness: float | None = None,
    ops: TorchOps | None = None,
) -> TorchRunner:
    """``sharpness``: None: the dtype's; ``ops``: None: the fastest there are."""
    model = copy.copy(
        _model(device, shape, dtype, sharpness or SHARPNESS[dtype])
    )  # the same weights, operations of its own
    model.ops = ops or ops_for(device, dtype)
    return TorchRunner(
        model,
        block_size=16,
        num_device_blocks=device_blocks,
        num_host_blocks=host_blocks,
        max_model_len=1024,
    )


@functools.cache
def _model(device: torch.device, shape: ModelShape, dtype: torch.dtype, sharpness: float) -> Model:
    """The same weights on every device: drawn on the CPU, then copied."""
    drawn = load(shape, None, CPU, torch.float32, 3)
    for name, weights in drawn.named_parameters():
        weights.data.mul_(_times(shape, name, sharpness))
    model = load(shape, None, device, dtype, 3)
    model.load_state_dict(drawn.state_dict())
    return model


def _times(shape: ModelShape, name: str, sharpness: float) -> float:
    """How many times the usual a weight is."""
    if "norm" in name:
        return 1.0
    if shape.pre_norm:
        return 1.0 if "embedding" in name else sharpness
    # Norms behind the sums make all that is added there as large as they are. So must be what comes from the
    # token and its place, and attention sharper, or the answer would be the same to everything.
    if name in ("embedding", "positions"):
        return 50.0
    if name.endswith("bias"):
        return 1.0
    return sharpness * 2 if ".qkv." in name else sharpness
