"""The figures of the FastServe paper (NSDI'26) that can be reproduced, and what each of them needs.

A figure has panels. A panel is drawn from the runs of one experiment: a configuration file of ``fgbench
sweep`` in ``experiments/SCALE/``. Several figures can use the runs of one experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Scale = Literal["simulated", "laptop", "gpu"]
SCALES: dict[Scale, str] = {
    "simulated": "the paper's models on the analytic profile of a GPU: minutes, no GPU",
    "laptop": "SmolLM2-135M with the real engine and the real vLLM, on this machine's processor: hours",
    "gpu": "the paper's own setting: OPT-13B and Llama-3-8B on a GPU: days",
}
"""Scale -> description."""
STAND_IN = "-stand-in"
"""Ending of the label of a backend that stands in for another server."""
STAND_INS: dict[str, str] = {
    "vllm-stand-in": "our engine with fcfs and recomputed KV, instead of vLLM",
    "vllm-chunked-stand-in": "our engine with --chunked-prefill, instead of vLLM with chunked prefill; it "
    "mixes prefill and decodes without that option too, so short prompts give equal figures",
    "fastertransformer-stand-in": "our engine with static batches, instead of FasterTransformer",
}
"""Label -> description."""


@dataclass(frozen=True, slots=True)
class PublishedPanel:
    """A panel with published curves: latency per output token against the request rate."""

    name: str
    """Key in published.json, and file name of the picture."""
    title: str
    experiment: str
    """File name in ``experiments/SCALE/``, without ``.toml``."""
    statistic: Literal["mean", "p95"] = "mean"
    limit: float = 0.3
    """Seconds per output token at which systems are compared."""


@dataclass(frozen=True, slots=True)
class AttainmentPanel:
    """A panel of SLO attainment, for which the artifact contains no curves."""

    name: str
    title: str
    experiment: str
    slos: tuple[str, ...]
    """SLOs that a request has to meet."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the paper."""

    title: str
    panels: tuple[PublishedPanel | AttainmentPanel, ...]
    remarks: tuple[str, ...] = ()
    """Sentences about parts that are missing or cannot be compared."""


_SLOS = (
    "ttft<1.55,normalized_latency<0.15",
    "ttft<3.1,normalized_latency<0.3",
    "ttft<6.2,normalized_latency<0.6",
)

FIGURES: dict[str, Figure] = {
    "fig11": Figure(
        "Mean latency, OPT-13B",
        (
            PublishedPanel("fig11-sharegpt", "OPT-13B, ShareGPT", "sharegpt"),
            PublishedPanel("fig11-alpaca", "OPT-13B, Alpaca", "alpaca"),
        ),
        ("The panels of larger models on several GPUs are missing: the artifact does not have them.",),
    ),
    "fig12": Figure(
        "95th percentile of latency, OPT-13B",
        (PublishedPanel("fig12-sharegpt", "OPT-13B, ShareGPT", "sharegpt", "p95"),),
        ("The panel of Alpaca is missing: the artifact has no percentiles for it.",),
    ),
    "fig13": Figure(
        "SLO attainment, OPT-13B",
        (
            AttainmentPanel("fig13-sharegpt", "OPT-13B, ShareGPT", "sharegpt", _SLOS),
            AttainmentPanel("fig13-alpaca", "OPT-13B, Alpaca", "alpaca", _SLOS),
        ),
        ("The published curves are missing: the artifact has the SLOs, but no values.",),
    ),
    "fig14": Figure(
        "Large batches, OPT-13B, ShareGPT",
        (
            PublishedPanel("fig14-batch-64", "OPT-13B, ShareGPT, batches of 64", "batch-64"),
            PublishedPanel("fig14-batch-128", "OPT-13B, ShareGPT, batches of 128", "batch-128"),
        ),
    ),
    "fig15": Figure(
        "Grouped-query attention, Llama-3-8B",
        (
            PublishedPanel("fig15-sharegpt", "Llama-3-8B, ShareGPT", "llama-sharegpt"),
            PublishedPanel("fig15-alpaca", "Llama-3-8B, Alpaca", "llama-alpaca"),
        ),
    ),
    "fig17": Figure(
        "KV offloading, OPT-13B, ShareGPT",
        (PublishedPanel("fig17", "offloading, OPT-13B, ShareGPT", "offloading"),),
    ),
    "fig18": Figure(
        "Chunked prefill, OPT-13B",
        (
            PublishedPanel(
                "fig18-sharegpt", "chunked prefill, OPT-13B, ShareGPT", "chunked-sharegpt", limit=0.1
            ),
            PublishedPanel("fig18-alpaca", "chunked prefill, OPT-13B, Alpaca", "chunked-alpaca", limit=0.1),
        ),
        (
            "The paper measured this on a faster device than figure 11: 15 ms per token is less than an A100 "
            "40GB needs to read the weights.",
        ),
    ),
}
"""Figures by name. Figure 16 (fairness) is not in the artifact."""


def experiment_file(experiment: str, scale: Scale) -> Path | None:
    """Return the configuration file of an experiment at this scale; None if there is none."""
    path = Path(__file__).parent / "experiments" / scale / f"{experiment}.toml"
    return path if path.is_file() else None


def experiments_of(names: list[str]) -> list[str]:
    """Return the experiments that these figures need, each once, in the order of the figures."""
    return list(dict.fromkeys(panel.experiment for name in names for panel in FIGURES[name].panels))


def published_name(label: str) -> str:
    """Return the published system that a backend of an experiment is compared with."""
    return label.removesuffix(STAND_IN)
