"""Complete models with TritonOps: the same logits as with plain torch, and no needless kernel launches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fgengine.model.loader import Model, load
from fgengine.model.shape import ModelShape
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from fgengine.ops.triton import activations, decode_attention, norms, rope_kv
from fgengine.ops.triton.ops import TritonOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-4, torch.float16: 2e-2}
BLOCK = 16
SHAPES = {
    "llama, 3 to 1": ModelShape("llama", 160, 96, 80, 2, 3, 1, 64, 128, True),
    "qwen2": ModelShape("llama", 160, 64, 96, 2, 4, 2, 16, 128, False, qkv_bias=True),
    "opt": ModelShape("opt", 160, 160, 96, 2, 2, 2, 80, 128, True, activation="relu"),
    "opt, post-norm": ModelShape(
        "opt", 160, 64, 96, 2, 4, 4, 16, 128, True, embed_dim=32, pre_norm=False, activation="relu"
    ),
}
STEPS = [
    [(0, 5), (0, 17), (0, 1)],  # prompts
    [(5, 1), (17, 3), (1, 1), (0, 4)],  # decodes with a chunk between them, and a prompt
    [(6, 1), (20, 1), (2, 1), (4, 1)],  # decodes alone
]
"""(start, new tokens) of each request; a request has the same index in all steps."""


def model_of(shape: ModelShape, dtype: torch.dtype) -> Model:
    """Return a model with biases other than 0, norms other than 1 and very different logits."""
    model = load(shape, None, DEVICE, dtype)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name, value in model.named_parameters():
        mean = 1.0 if "norm" in name and not name.endswith("bias") else 0.0
        value.data.normal_(mean, 0.1, generator=generator)
    return model


def logits_of(model: Model, ops: TorchOps) -> list[Tensor]:
    """Return the logits of each step, in a pool full of NaN.

    The second step has logits for each request's last token only, the others for all tokens.
    """
    model.ops = ops
    shape, dtype = model.shape, model.embedding.dtype
    sizes = (40, shape.num_layers, 2, shape.num_kv_heads, BLOCK, shape.head_dim)
    pool = torch.full(sizes, float("nan"), dtype=dtype, device=DEVICE)
    source = random.Random(1)
    free = source.sample(range(40), 40)
    tables = [[free.pop() for _ in range(6)] for _ in range(4)]
    found = []
    for step in STEPS:
        everywhere = step is not STEPS[1]
        items = [(start, new, tables[r]) for r, (start, new) in enumerate(step)]
        batch = RaggedBatch.build(items, BLOCK, DEVICE)
        count = sum(batch.query_lens)
        tokens = torch.tensor([source.randrange(shape.vocab_size) for _ in range(count)], device=DEVICE)
        rows = None if everywhere else batch.query_starts[1:].long() - 1
        with torch.inference_mode():
            found.append(model(tokens, batch, pool, rows))
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama, 3 to 1", torch.float16),
        ("qwen2", torch.float32),
        ("opt", torch.float16),
        ("opt, post-norm", torch.float32),
    ],
)
@pytest.mark.slow
def test_logits_equal_those_of_plain_torch(name: str, dtype: torch.dtype) -> None:
    model = model_of(SHAPES[name], dtype)
    want = logits_of(model, TorchOps())
    for ours, theirs in zip(logits_of(model, TritonOps()), want, strict=True):
        assert ours.isfinite().all()
        near = TOLERANCE[dtype] * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, atol=near, rtol=0.0)


class Launches(TorchDispatchMode):
    """Counts kernel launches: torch's operators that compute or copy, and our own kernels."""

    FREE = frozenset({"empty", "new_empty"})

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.in_kernel = False
        for module in (activations, norms, rope_kv, decode_attention):
            for name, kernel in list(vars(module).items()):
                if type(kernel).__name__ in ("InterpretedFunction", "JITFunction"):
                    patch.setattr(module, name, Launched(name, kernel, self))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not self.in_kernel and not func.is_view and name not in self.FREE:
            self.counts[name] += 1
        return func(*args, **kwargs or {})


class Launched:
    """A kernel whose launches are counted."""

    def __init__(self, name: str, kernel: Any, launches: Launches) -> None:
        self.name, self.kernel, self.launches = name, kernel, launches

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.counts[self.name] += 1
            self.launches.in_kernel = True  # the interpreter makes copies that a GPU would not make
            self.kernel[grid](*args, **kwargs)
            self.launches.in_kernel = False

        return launch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the kernel from another kernel, which is no launch."""
        return self.kernel(*args, **kwargs)


@pytest.mark.parametrize(("name", "activation"), [("llama, 3 to 1", "_silu_mul"), ("opt", "_bias_relu")])
def test_a_layer_launches_only_the_needed_kernels(
    name: str, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only four matrices, two norms, the KV write, attention and the activation: no copies or casts."""
    counts = []
    for layers in (1, 2):
        model = model_of(replace(SHAPES[name], num_layers=layers), torch.float32)
        model.ops = TritonOps()
        batch = RaggedBatch.build([(20, 1, [0, 1]), (5, 1, [2])], BLOCK, DEVICE)
        kv = (2, model.shape.num_kv_heads, BLOCK, model.shape.head_dim)
        pool = torch.zeros(3, layers, *kv, device=DEVICE)
        tokens = torch.zeros(2, dtype=torch.int64, device=DEVICE)
        with torch.inference_mode(), monkeypatch.context() as patch, Launches(patch) as launches:
            model(tokens, batch, pool)
        counts.append(launches.counts)
    layer = {"linear": 4, "_norm": 2, "_rope_kv": 1, "_decode": 1, activation: 1}
    assert counts[1] - counts[0] == layer
    others = {"embedding": 1} if model.shape.family == "llama" else {"embedding": 2, "add_": 1}
    assert counts[0] - Counter(layer) == {"linear": 1, "_norm": 1, **others}
