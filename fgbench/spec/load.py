"""The options of a load, and the ``Load`` that they describe."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from fgbench.metrics.trimming import WHOLE, Trim
from fgbench.spec.client import ClientSpec, Endpoint
from fgbench.workload.arrivals import MAX_CONCURRENCY, POISSON, Arrivals, TimeUnit
from fgbench.workload.build import check_counts
from fgengine.settings import Setting, changed, check

if TYPE_CHECKING:
    from fgbench.workload.datasets import Dataset
    from fgbench.workload.trace import Trace
    from fgengine.config import EngineConfig

DEFAULT_RATE = 2.5
DEFAULT_NUM_PROMPTS = 100
MAX_IN_DURATION = 10_000
"""Number of requests made for --duration, unless the rate needs more."""
PROCESS_OF = {
    "cv": "gamma",
    "burst_size": "burst",
    "rate_to": "ramp",
    "stages": "stages",
    "trace": "trace",
    "speedup": "trace",
    "skip": "trace",
    "limit": "trace",
    "time_unit": "trace",
    "columns": "trace",
    "concurrency": "closed",
}
"""Option -> the only arrival process that has it. The first option of each process is required."""


@dataclass(frozen=True, slots=True)
class Load:
    """The load that a backend gets, made from a ``LoadSpec``. Its defaults are those of the command line.

    Raises:
        ValueError: a value is out of range.
    """

    rate: float = DEFAULT_RATE
    """Requests per second; ``inf``: all at once. ``inf`` for a closed loop, which has no rate."""
    num_prompts: int = DEFAULT_NUM_PROMPTS
    seed: int = 0
    num_warmup: int = 4
    endpoint: Endpoint | None = None
    """None: the backend's default."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are added to the body of each request."""
    max_concurrency: int | None = None
    """Most requests in flight in an open loop; None: any number."""
    think_time: float = 0.0
    """Mean seconds between an answer and the next turn of its conversation."""
    natural_lengths: bool = False
    """Whether the model ends its answers. Then the requested output tokens are only upper bounds."""
    words: tuple[str, ...] = field(default=(), repr=False)
    """Words of one token each, of which prompts of given lengths are made. Empty: they are token ids."""
    tokenizer: str = ""
    """Folder of the tokenizer that counts the tokens of answers without usage; empty: none is known."""
    request_timeout: float = 3600.0
    """Seconds after which an unfinished answer counts as an error."""
    users: int = 1
    """Number of users that send the requests; the first sends most. 1: requests have no user."""
    arrivals: Arrivals = POISSON
    duration: float = math.inf
    """Seconds after which no more requests are sent."""
    trim: Trim = WHOLE
    """The requests that are left out of the figures. They are sent and saved all the same."""

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
        """Mean requests per second over the complete load; None: a closed loop, the server decides."""
        return self.arrivals.mean_rate(self.rate)


_load = functools.partial(Setting, group="Load")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """Options of a load, under their names on the command line."""

    rate: Annotated[
        float | None,
        _load(
            f"Requests per second; inf: all at once. Default: {DEFAULT_RATE}, or the trace's own rate.",
            first=True,
        ),
    ] = None
    num_prompts: Annotated[
        int | None,
        _load(
            f"Number of requests to measure. Default: {DEFAULT_NUM_PROMPTS}, or the complete trace, or "
            "enough for --duration.",
            first=True,
        ),
    ] = None
    duration: Annotated[
        float | None,
        _load("Seconds after which no more requests are sent.", unit="seconds", gt=0, finite=True),
    ] = None
    trim: Annotated[
        str | None,
        _load("Leave the first and the last requests out of the figures: 30s or 10%."),
    ] = None
    cool_down: Annotated[
        str | None,
        _load("Leave only the last requests out: 30s or 10%. With --trim: how much at the end."),
    ] = None
    arrivals: Annotated[
        str | None,
        _load(
            "Arrival process: poisson, gamma, uniform, burst, ramp, stages, trace or closed. Default: that "
            "of the options below, else poisson."
        ),
    ] = None
    cv: Annotated[
        float | None,
        _load("gamma: standard deviation of the gaps divided by their mean; 1 is poisson."),
    ] = None
    burst_size: Annotated[int | None, _load("burst: requests per burst; the bursts are Poisson.")] = None
    rate_to: Annotated[
        float | None,
        _load("ramp: final requests per second; the rate changes linearly from --rate to this."),
    ] = None
    stages: Annotated[
        str | None,
        _load(
            "stages: RATE:SECONDS of each stage, such as 1:60,4:60,1:60. With --rate, the same pattern at "
            "another mean rate."
        ),
    ] = None
    trace: Annotated[
        Path | None,
        _load(
            "trace: Azure, BurstGPT, Vidur, Splitwise or Mooncake file with arrival times; also gives the "
            "lengths, unless --dataset does. With fewer requests than it has, each seed replays another "
            "window of it."
        ),
    ] = None
    time_unit: Annotated[
        TimeUnit | None,
        _load("trace: unit of its times. Default: the format's, or what the values show."),
    ] = None
    columns: Annotated[
        str | None,
        _load("trace: names of its columns, if it has no known format: time=at,prompt=in,output=out."),
    ] = None
    speedup: Annotated[
        float | None, _load("trace: replay it this many times as fast; or give --rate.", gt=0, le=1e9)
    ] = None
    skip: Annotated[int | None, _load("trace: leave out this number of records at its beginning.", ge=0)] = (
        None
    )
    limit: Annotated[int | None, _load("trace: read only this number of requests.")] = None
    concurrency: Annotated[
        int | None,
        _load("closed: number of workers; each sends a request when its last answer has ended."),
    ] = None
    max_concurrency: Annotated[
        int | None,
        _load(
            "Most requests in flight in an open loop. A request that is due waits in the client, and the "
            "wait counts as latency.",
            ge=1,
            le=MAX_CONCURRENCY,
        ),
    ] = None
    dataset: Annotated[
        str | None,
        _load("A name from 'fgbench datasets list', or a file. Default: sharegpt-lengths.", first=True),
    ] = None
    dataset_name: Annotated[
        str | None, _load("Name of the dataset in the file that --dataset gives, such as sharegpt.")
    ] = None
    dataset_path: Annotated[Path | None, _load("File to read the dataset from.")] = None
    input_len: Annotated[
        str | None,
        _load("Prompt tokens of synthetic: 512, 16-512, lognormal:MEDIAN:SIGMA[:MAX] or zipf:EXPONENT:MAX."),
    ] = None
    output_len: Annotated[
        str | None,
        _load("Output tokens of synthetic, mmlu, and jsonl without lengths; written like --input-len."),
    ] = None
    max_total_len: Annotated[
        int | None,
        _load("Leave out requests with more prompt and output tokens together.", unit="tokens", ge=2),
    ] = None
    clip: Annotated[
        bool,
        _load(
            "With --max-total-len: shorten these requests instead of leaving them out. The output is "
            "shortened first, then a prompt of token ids. A trace needs this, because its times belong to "
            "its requests."
        ),
    ] = False
    natural_lengths: Annotated[
        bool,
        _load(
            "Let the model end its answers. The output lengths above are then upper bounds, and the actual "
            "lengths are compared as results. Default: all answers have the requested length."
        ),
    ] = False
    prefix_share: Annotated[
        float | None,
        _load(
            "Share of each prompt (0 to 1) that comes from one common text, as a system prompt does; for "
            "datasets of lengths.",
            gt=0,
            le=1,
        ),
    ] = None
    multi_turn: Annotated[
        bool,
        _load(
            "Send all turns of each conversation of a dataset of conversations, such as sharegpt, or of a "
            "trace with chat ids. A turn "
            "holds the earlier ones, and is sent when the answer before it has ended."
        ),
    ] = False
    turns: Annotated[str | None, _load("Turns per conversation of synthetic; written like --input-len.")] = (
        None
    )
    think_time: Annotated[
        float,
        _load(
            "Mean seconds between an answer and the next turn of its conversation (exponential).",
            unit="seconds",
            ge=0,
            finite=True,
        ),
    ] = 0.0
    mix: Annotated[str | None, _load("Parts of mix: NAME-OR-FILE:SHARE,NAME-OR-FILE:SHARE.")] = None
    seed: Annotated[
        int,
        _load("Random seed; the same seed gives every backend the same requests and arrivals.", first=True),
    ] = 0
    users: Annotated[int, _load("Number of users that send the requests; the first sends most.")] = 1
    max_error_rate: Annotated[
        float, _load("Share of failed requests (0 to 1) above which the exit code is 3.", ge=0, le=1)
    ] = 0.01
    results: Annotated[Path, _load("Folder for the run folders.", first=True)] = Path("results")

    def __post_init__(self) -> None:
        check(self)

    def to_load(self, client: ClientSpec | None = None, server: EngineConfig | None = None) -> Load:
        """Return the load that the options describe, sent by ``client``.

        ``server``: Its tokenizer makes prompts as text, and counts the tokens of answers without usage.

        Raises ValueError if a value is out of range, or if options contradict each other.
        """
        from fgbench.workload.arrivals import Replay, Stages

        self.dataset_source()
        if self.think_time and not (self.multi_turn or self.turns):
            raise ValueError("--think-time needs --multi-turn or --turns")
        if self.clip and self.max_total_len is None:
            raise ValueError("--clip needs --max-total-len")
        if self.max_concurrency is not None and self.concurrency is not None:
            raise ValueError(
                "--max-concurrency is for an open loop, and --concurrency is a closed one: give one"
            )
        client = client or ClientSpec()
        arrivals = self._arrivals()
        rate, num_prompts = DEFAULT_RATE, DEFAULT_NUM_PROMPTS
        if isinstance(arrivals, Replay):
            num_prompts = len(arrivals.recorded)
            window = arrivals.part(self.num_prompts or num_prompts, self.seed)
            rate = window.own_rate * (self.speedup or 1.0)
        if isinstance(arrivals, Stages):
            rate, num_prompts = arrivals.own_rate, arrivals.requests
        rate = rate if self.rate is None else self.rate
        if self.duration is not None and not isinstance(arrivals, Replay):
            num_prompts = _prompts_within(self.duration, rate, arrivals)
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
            extra_body=client.extra_fields,
            max_concurrency=self.max_concurrency,
            think_time=self.think_time,
            natural_lengths=self.natural_lengths,
            words=_words(server) if client.send_text else (),
            tokenizer=_known_tokenizer(server) if self.natural_lengths else "",
        )

    def check_simulated(self) -> None:
        """Raise ValueError for an option that a simulation does not have."""
        for option, is_given in (
            ("--natural-lengths", self.natural_lengths),
            ("--max-concurrency", self.max_concurrency is not None),
            ("--multi-turn", self.multi_turn),
            ("--turns", self.turns is not None),
        ):
            if is_given:
                raise ValueError(f"{option} needs a real server, and this is a simulation: leave it out")

    def process(self) -> str:
        """Return the name of the arrival process: ``arrivals``, else the process of the given options.

        Raises ValueError if options contradict each other, or if one is missing.
        """
        from fgbench.workload.arrivals import PROCESSES

        # The published scripts misspell poisson.
        chosen = "poisson" if self.arrivals == "possion" else self.arrivals
        if chosen is not None and chosen not in PROCESSES:
            raise ValueError(f"there are no arrivals {chosen!r}: --arrivals must be {', '.join(PROCESSES)}")
        given = {
            option: process for option, process in PROCESS_OF.items() if getattr(self, option) is not None
        }
        name = chosen or next(iter(given.values()), "poisson")
        for option, process in given.items():
            if process != name:
                raise ValueError(
                    f"{_flag(option)} does not work with {name} arrivals: leave it out, or use --arrivals "
                    f"{process}"
                )
        needed = next((option for option, process in PROCESS_OF.items() if process == name), None)
        if needed is not None and needed not in given:
            raise ValueError(f"--arrivals {name} needs {_flag(needed)}")
        if self.rate is not None and name == "closed":
            raise ValueError(
                "--rate does not work with --concurrency, because in a closed loop the server decides the "
                "rate: leave one out"
            )
        if self.rate is not None and self.speedup is not None:
            raise ValueError("--rate and --speedup both set the speed of the trace: give only one")
        return name

    def dataset_source(self) -> tuple[str | None, Path | None]:
        """Return the dataset's name and file, each None if it is not given.

        The published client gives them as ``--dataset FILE --dataset-name NAME``.
        """
        dataset, name, path = self.dataset, self.dataset_name, self.dataset_path
        if dataset is not None and _is_path(dataset):
            if path is not None:
                raise ValueError("--dataset already names a file: leave out --dataset-path")
            return name, Path(dataset)
        if dataset is not None and name is not None and dataset != name:
            raise ValueError(
                f"--dataset {dataset} and --dataset-name {name} contradict each other: give only one"
            )
        return dataset or name, path

    def to_dataset(self, server: EngineConfig, report: Callable[[str], None]) -> Dataset:
        """Return the dataset after ``--prefix-share``, ``--max-total-len`` and ``--clip``.

        Its arguments and errors are those of ``_complete_dataset``.
        """
        from fgbench.workload.derived import Bounded, SharedPrefix

        dataset = self._complete_dataset(server, report)
        if self.prefix_share is not None:
            dataset = SharedPrefix(dataset, self.prefix_share)
        return dataset if self.max_total_len is None else Bounded(dataset, self.max_total_len, self.clip)

    def _complete_dataset(self, server: EngineConfig, report: Callable[[str], None]) -> Dataset:
        """Return the dataset. A replayed trace is the dataset if no other is given.

        Args:
            server: Its tokenizer counts the tokens of texts.
            report: Receives lines about slow steps and left-out records.

        Raises:
            ValueError: there is no such dataset or file, or it cannot be used.
        """
        from fgbench.workload.reading import load_dataset
        from fgengine.model.store import tokenizer_of

        name, path = self.dataset_source()
        lengths = (self.input_len, self.output_len, self.mix, self.turns)
        if self.process() == "trace":
            trace = self._trace()
            for note in trace.notes:
                report(note)
            if (name, path, *lengths) == (None,) * 6:
                return trace.conversations if self.multi_turn else trace.dataset
        return load_dataset(
            name,
            path=path,
            tokenizer=lambda: tokenizer_of(server),
            input_len=self.input_len,
            output_len=self.output_len,
            mix=self.mix,
            multi_turn=self.multi_turn,
            turns=self.turns,
            report=report,
        )

    def _arrivals(self) -> Arrivals:
        from fgbench.workload import arrivals

        name = self.process()
        if name == "gamma" and self.cv is not None:
            return arrivals.Gamma(self.cv)
        if name == "burst" and self.burst_size is not None:
            return arrivals.Burst(self.burst_size)
        if name == "stages" and self.stages is not None:
            return arrivals.Stages.parse(self.stages)
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
            raise ValueError(f"--trace: there is no file {self.trace}: give the path of a trace")
        return _read_trace(self.trace, self.skip or 0, self.limit, self.time_unit, self.columns)


def _words(server: EngineConfig | None) -> tuple[str, ...]:
    """Return the words of which prompts are made. Raises ValueError if there is no usable tokenizer."""
    from fgbench.workload.words import single_token_words
    from fgengine.config import EngineConfig
    from fgengine.model.store import tokenizer_of

    return single_token_words(tokenizer_of(server or EngineConfig()))


def _known_tokenizer(server: EngineConfig | None) -> str:
    """Return the folder of the tokenizer that --tokenizer or --model names; empty if neither is given."""
    from fgengine.model.store import tokenizer_of

    if server is None or {"model", "tokenizer"}.isdisjoint(changed(server)):
        return ""
    if server.tokenizer is not None:
        return str(tokenizer_of(server))
    try:
        return str(tokenizer_of(server))
    except ValueError:  # a model that is not here: its server may count the tokens
        return ""


def _prompts_within(duration: float, rate: float, arrivals: Arrivals) -> int:
    """Return a number of requests that lasts for ``duration`` seconds.

    It is the same for all usual rates. For a ramp it is exact, because the ramp's slope depends on it.
    """
    mean = arrivals.mean_rate(rate)
    if mean is None or math.isinf(mean):
        return MAX_IN_DURATION
    if arrivals.name == "ramp":
        return max(2, round(mean * duration))
    return max(MAX_IN_DURATION, math.ceil(1.5 * mean * duration))


@functools.lru_cache(maxsize=1)
def _read_trace(
    path: Path, skip: int, limit: int | None, time_unit: TimeUnit | None, columns: str | None
) -> Trace:
    """Read a trace. Cached, because both the arrival times and the lengths need it."""
    from fgbench.workload.trace import parse_columns, read_trace

    named = None if columns is None else parse_columns(columns)
    return read_trace(path, limit, skip=skip, time_unit=time_unit, columns=named)


def _is_path(dataset: str) -> bool:
    """Whether the text is a path: a file with this name wins over a dataset, a dataset over a folder."""
    from fgbench.workload.reading import DATASETS

    return Path(dataset).is_file() or (dataset not in DATASETS and Path(dataset).is_dir())


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
