"""A load as it is asked for: under the names of options and of keys in configuration files."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from fgbench.metrics.trimming import WHOLE, Trim
from fgbench.workload.arrivals import POISSON, Arrivals
from fgbench.workload.build import check_counts
from fgengine.settings import Setting, check

if TYPE_CHECKING:
    from fgbench.workload.datasets import Dataset
    from fgbench.workload.trace import Trace
    from fgengine.config import EngineConfig

DEFAULT_RATE = 2.5
DEFAULT_NUM_PROMPTS = 100
MAX_IN_DURATION = 10_000
"""Requests made where only --duration says when to stop, and the rate does not say that more are needed."""
PROCESS_OF = {
    "cv": "gamma",
    "burst_size": "burst",
    "rate_to": "ramp",
    "trace": "trace",
    "speedup": "trace",
    "limit": "trace",
    "concurrency": "closed",
}
"""Options that only one arrival process has; the first of a process is the one it cannot do without."""


_HEADER = re.compile(r"(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*(?P<value>[\x21-\x7e][\x20-\x7e]*)")
Endpoint = Literal["completions", "generate"]


@dataclass(frozen=True, slots=True)
class Load:
    """How a backend is loaded, as it follows from a ``LoadSpec``; the defaults are the command line's.

    Raises:
        ValueError: for a value that no load can have.
    """

    rate: float = DEFAULT_RATE
    """Requests per second; ``inf``: all at once. A closed loop has none: it is taken as ``inf``."""
    num_prompts: int = DEFAULT_NUM_PROMPTS
    seed: int = 0
    num_warmup: int = 4
    endpoint: Endpoint | None = None
    """None: the backend's own."""
    request_timeout: float = 3600.0
    """Seconds."""
    users: int = 1
    """Between whom the requests are shared out, the first sending most; 1: no user is sent."""
    arrivals: Arrivals = POISSON
    duration: float = math.inf
    """Seconds after which nothing more is sent."""
    trim: Trim = WHOLE
    """What is left out of the figures, though it is sent and kept."""

    def __post_init__(self) -> None:
        if self.endpoint not in (None, *get_args(Endpoint)):
            raise ValueError(f"--endpoint must be {' or '.join(get_args(Endpoint))}, not {self.endpoint}")
        check_counts(
            num_prompts=self.num_prompts, num_warmup=self.num_warmup, seed=self.seed, users=self.users
        )
        if self.arrivals.concurrency is not None:
            object.__setattr__(self, "rate", math.inf)
        self.arrivals.check(self.rate)
        if not 0 < self.request_timeout < math.inf:
            raise ValueError(f"the request timeout must be above 0 seconds, not {self.request_timeout}")
        if not self.duration > 0:
            raise ValueError(f"--duration must be above 0 seconds, not {self.duration}")

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that are asked for over the whole load; None: the server decides."""
        return self.arrivals.mean_rate(self.rate)


_load = functools.partial(Setting, group="Load")
_client = functools.partial(Setting, group="Client")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What is asked, when, and how the answer is judged; the names are the command line's."""

    rate: Annotated[
        float | None,
        _load(
            f"Requests per second; inf: all at once. Default: {DEFAULT_RATE}, or a trace's own.", first=True
        ),
    ] = None
    num_prompts: Annotated[
        int | None,
        _load(
            f"Requests to measure; default: {DEFAULT_NUM_PROMPTS}, or a whole trace, or --duration's.",
            first=True,
        ),
    ] = None
    duration: Annotated[
        float | None, _load("Seconds after which nothing more is sent.", unit="seconds", gt=0, finite=True)
    ] = None
    trim: Annotated[
        str | None,
        _load("Leave the requests of the first 30s or 10% and of the last out of the figures."),
    ] = None
    cool_down: Annotated[
        str | None,
        _load("Leave only the last 30s or 10% out; with --trim: how much of the last."),
    ] = None
    arrivals: Annotated[
        str | None,
        _load(
            "poisson, gamma, uniform, burst, ramp, trace or closed; default: by the options below, else "
            "poisson."
        ),
    ] = None
    cv: Annotated[
        float | None,
        _load("gamma: deviation of the gaps over their mean; 1 is poisson."),
    ] = None
    burst_size: Annotated[int | None, _load("burst: requests at one moment, such moments being Poisson.")] = (
        None
    )
    rate_to: Annotated[float | None, _load("ramp: from --rate to this, linearly, over all requests.")] = None
    trace: Annotated[
        Path | None,
        _load(
            "trace: Azure, BurstGPT or Mooncake file; its times, and its lengths unless --dataset is given."
        ),
    ] = None
    speedup: Annotated[
        float | None, _load("trace: replay so many times as fast; or say --rate.", gt=0, le=1e9)
    ] = None
    limit: Annotated[int | None, _load("trace: read its first requests only.")] = None
    concurrency: Annotated[
        int | None,
        _load("closed: so many workers, each sending when its last answer has ended."),
    ] = None
    dataset: Annotated[
        str | None,
        _load("A name of 'fgbench datasets list', or a file; default: sharegpt-lengths.", first=True),
    ] = None
    dataset_name: Annotated[str | None, _load("What a file given by --dataset holds.")] = None
    dataset_path: Annotated[Path | None, _load("Read the dataset from this file.")] = None
    input_len: Annotated[
        str | None,
        _load("Prompt tokens of synthetic: 512, 16-512, lognormal:MEDIAN:SIGMA[:MAX], zipf:EXPONENT:MAX."),
    ] = None
    output_len: Annotated[
        str | None,
        _load("Output tokens of synthetic, mmlu, and jsonl that does not say; the same."),
    ] = None
    mix: Annotated[str | None, _load("Parts of mix: NAME-OR-FILE:SHARE,NAME-OR-FILE:SHARE.")] = None
    seed: Annotated[
        int, _load("Same seed: same prompts, lengths and arrivals for every backend.", first=True)
    ] = 0
    users: Annotated[int, _load("Share the requests out between so many users, the first sends most.")] = 1
    max_error_rate: Annotated[
        float, _load("Share of failed requests above which the exit code is 3.", ge=0, le=1)
    ] = 0.01
    results: Annotated[Path, _load("Where run folders go.", first=True)] = Path("results")

    def __post_init__(self) -> None:
        check(self)

    def to_load(self, client: ClientSpec | None = None) -> Load:
        """The load, sent by ``client``.

        Raises ValueError for a value out of range, naming it, and for options that contradict each other.
        """
        from fgbench.workload.arrivals import Replay

        self.dataset_source()
        client = client or ClientSpec()
        arrivals = self._arrivals()
        rate, num_prompts = DEFAULT_RATE, DEFAULT_NUM_PROMPTS
        if isinstance(arrivals, Replay):
            rate, num_prompts = arrivals.own_rate * (self.speedup or 1.0), len(arrivals.recorded)
        rate = rate if self.rate is None else self.rate
        if self.duration is not None and not isinstance(arrivals, Replay):
            num_prompts = _most_within(self.duration, rate, arrivals)
        return Load(
            rate=rate,
            num_prompts=num_prompts if self.num_prompts is None else self.num_prompts,
            duration=math.inf if self.duration is None else self.duration,
            trim=Trim.parse(self.trim, self.trim if self.cool_down is None else self.cool_down),
            arrivals=arrivals,
            seed=self.seed,
            users=self.users,
            num_warmup=client.warmup,
            endpoint=client.endpoint,
            request_timeout=client.request_timeout,
        )

    def process(self) -> str:
        """The name of the arrival process: as said, or as the options that only one has.

        Raises ValueError where these contradict each other or one is missing.
        """
        from fgbench.workload.arrivals import PROCESSES

        said = "poisson" if self.arrivals == "possion" else self.arrivals  # as the published scripts spell it
        if said is not None and said not in PROCESSES:
            raise ValueError(f"--arrivals: there are {', '.join(PROCESSES)}, not {said!r}")
        given = {option: of for option, of in PROCESS_OF.items() if getattr(self, option) is not None}
        name = said or next(iter(given.values()), "poisson")
        for option, of in given.items():
            if of != name:
                raise ValueError(f"{_flag(option)} goes with --arrivals {of}, not {name}")
        needed = next((option for option, of in PROCESS_OF.items() if of == name), None)
        if needed is not None and needed not in given:
            raise ValueError(f"--arrivals {name} needs {_flag(needed)}")
        if self.rate is not None and name == "closed":
            raise ValueError(
                "--rate does not go with --concurrency: in a closed loop the server decides the rate"
            )
        if self.rate is not None and self.speedup is not None:
            raise ValueError("--rate and --speedup both say how fast the trace is replayed: give one")
        return name

    def dataset_source(self) -> tuple[str | None, Path | None]:
        """Name and file, None for what is not said. ``--dataset FILE --dataset-name NAME`` is the published
        client's spelling."""
        dataset, name, path = self.dataset, self.dataset_name, self.dataset_path
        if dataset is not None and _is_path(dataset):
            if path is not None:
                raise ValueError("--dataset names a file already; leave out --dataset-path")
            return name, Path(dataset)
        if dataset is not None and name is not None and dataset != name:
            raise ValueError(f"--dataset {dataset} and --dataset-name {name} contradict each other")
        return dataset or name, path

    def to_dataset(self, server: EngineConfig, report: Callable[[str], None]) -> Dataset:
        """The dataset, its tokens counted by the server's model's tokenizer where it is texts. A trace that
        is replayed is its own dataset where no other is named.

        ``report`` is told what takes long and what is left out. Raises ValueError for a dataset or file that
        will not do.
        """
        from fgbench.workload.reading import load_dataset
        from fgengine.model.store import tokenizer_of

        name, path = self.dataset_source()
        made_by = (self.input_len, self.output_len, self.mix)
        if self.process() == "trace":
            trace = self._trace()
            for note in trace.notes:
                report(note)
            if (name, path, *made_by) == (None,) * 5:
                return trace.dataset
        return load_dataset(
            name,
            path=path,
            tokenizer=lambda: tokenizer_of(server),
            input_len=self.input_len,
            output_len=self.output_len,
            mix=self.mix,
            report=report,
        )

    def _arrivals(self) -> Arrivals:
        from fgbench.workload import arrivals

        name = self.process()
        if name == "gamma" and self.cv is not None:
            return arrivals.Gamma(self.cv)
        if name == "burst" and self.burst_size is not None:
            return arrivals.Burst(self.burst_size)
        if name == "ramp" and self.rate_to is not None:
            return arrivals.Ramp(self.rate_to)
        if name == "closed" and self.concurrency is not None:
            return arrivals.ClosedLoop(self.concurrency)
        if name == "trace":
            trace = self._trace()
            return arrivals.Replay(trace.name, trace.times)
        return arrivals.Uniform() if name == "uniform" else arrivals.Poisson()

    def _trace(self) -> Trace:
        if self.trace is None or not self.trace.is_file():
            raise ValueError(f"--trace: there is no file {self.trace}")
        return _read_trace(self.trace, self.limit)


def _most_within(duration: float, rate: float, arrivals: Arrivals) -> int:
    """Enough requests to send for ``duration`` seconds, the same number at all usual rates; a ramp, whose
    slope is spread over all of them, takes the very number."""
    mean = arrivals.mean_rate(rate)
    if mean is None or math.isinf(mean):
        return MAX_IN_DURATION
    if arrivals.name == "ramp":
        return max(2, round(mean * duration))
    return max(MAX_IN_DURATION, math.ceil(1.5 * mean * duration))


@functools.lru_cache(maxsize=1)
def _read_trace(path: Path, limit: int | None) -> Trace:
    """Read once for its times and its lengths."""
    from fgbench.workload.trace import read_trace

    return read_trace(path, limit)


def _is_path(dataset: str) -> bool:
    """A file goes before a dataset's name, a folder after it."""
    from fgbench.workload.reading import DATASETS

    return Path(dataset).is_file() or (dataset not in DATASETS and Path(dataset).is_dir())


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """How a real server is spoken to; a simulation has none of this."""

    endpoint: Annotated[
        Endpoint | None,
        _client("completions (OpenAI's) or generate (FastServe's); default: completions."),
    ] = None
    warmup: Annotated[int, _client("Unmeasured requests sent before.")] = 4
    request_timeout: Annotated[
        float, _client("Seconds until an unfinished answer is an error.", unit="seconds", gt=0, finite=True)
    ] = 3600.0
    header: Annotated[
        tuple[str, ...],
        _client("With --url: 'Name: value', sent with every request. Once for each header.", secret=True),
    ] = ()
    api_key: Annotated[
        str | None, _client("With --url: sent as 'Authorization: Bearer KEY'.", secret=True)
    ] = None

    def __post_init__(self) -> None:
        check(self)
        _ = self.headers

    @property
    def headers(self) -> dict[str, str]:
        """By name. Raises ValueError for text that is no header; it is not repeated, for it may be secret."""
        key = () if self.api_key is None else (f"Authorization: Bearer {self.api_key}",)
        found: dict[str, str] = {}
        for text in (*self.header, *key):
            if (match := _HEADER.fullmatch(text)) is None:
                raise ValueError("--header takes 'Name: value', and --api-key a key of printable characters")
            found[match["name"]] = match["value"]
        return found
