"""The options of a load, declared once for the verbs that send one: ``run``, ``sweep``, ``simulate``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgbench.cli.options import ServerOptions

if TYPE_CHECKING:
    from fgbench.benchmark import Load
    from fgbench.workload.datasets import Dataset


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


load_option = functools.partial(_option, "Load")
_client = functools.partial(_option, "Client")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What is asked, when, and how the answer is judged; the names are the command line's."""

    rate: Annotated[
        float, load_option("Requests per second; inf: all at once.", "--rate", "--request-rate")
    ] = 2.5
    num_prompts: Annotated[int, load_option("Requests to measure.", "--num-prompts")] = 100
    dataset: Annotated[
        str | None,
        load_option("sharegpt-lengths (default), sharegpt, synthetic; or a file.", "--dataset"),
    ] = None
    dataset_name: Annotated[
        str | None, load_option("What a file given by --dataset holds.", "--dataset-name")
    ] = None
    dataset_path: Annotated[
        Path | None, load_option("Read the dataset from this file.", "--dataset-path")
    ] = None
    input_len: Annotated[str, load_option("Prompt tokens of synthetic: 512, or 16-512.", "--input-len")] = (
        "512"
    )
    output_len: Annotated[str, load_option("Output tokens of synthetic.", "--output-len")] = "128"
    process_name: Annotated[str, load_option("Arrivals: poisson.", "--process-name")] = "poisson"
    seed: Annotated[
        int, load_option("Same seed: same prompts, lengths and arrivals for every backend.", "--seed")
    ] = 0
    users: Annotated[
        int, load_option("Share the requests out between so many users, the first sends most.", "--users")
    ] = 1
    max_error_rate: Annotated[
        float, load_option("Share of failed requests above which the exit code is 3.", "--max-error-rate")
    ] = 0.01
    results: Annotated[Path, load_option("Where run folders go.", "--results")] = Path("results")

    def to_load(self, client: ClientOptions | None = None, endpoint: str = "completions") -> Load:
        """The load, sent by ``client`` to ``endpoint`` unless that names one.

        Raises ValueError for a value out of range, naming it, and for options that contradict each other.
        """
        from fgbench.benchmark import Load

        if self.process_name not in (
            "poisson",
            "possion",
        ):  # the second is how the published scripts spell it
            raise ValueError(f"--process-name: arrivals are poisson, not {self.process_name!r}")
        if not 0.0 <= self.max_error_rate <= 1.0:
            raise ValueError(f"--max-error-rate is a share between 0 and 1, not {self.max_error_rate}")
        self.dataset_source()
        client = client or ClientOptions()
        return Load(
            rate=self.rate,
            num_prompts=self.num_prompts,
            seed=self.seed,
            users=self.users,
            num_warmup=client.warmup,
            endpoint=client.endpoint or endpoint,
            request_timeout=client.request_timeout,
        )

    def dataset_source(self) -> tuple[str, Path | None]:
        """Name and file. ``--dataset FILE --dataset-name NAME`` is the published client's spelling."""
        dataset, name, path = self.dataset, self.dataset_name, self.dataset_path
        if dataset is not None and Path(dataset).is_file():
            if path is not None:
                raise ValueError("--dataset names a file already; leave out --dataset-path")
            path, dataset = Path(dataset), None
            if name is None:
                name = "sharegpt-lengths" if ".csv" in path.suffixes else "sharegpt"
        if dataset is not None and name is not None and dataset != name:
            raise ValueError(f"--dataset {dataset} and --dataset-name {name} contradict each other")
        return dataset or name or "sharegpt-lengths", path

    def to_dataset(self, server: ServerOptions, report: Callable[[str], None]) -> Dataset:
        """The dataset, its tokens counted by the server's model's tokenizer where it is texts.

        ``report`` is told what takes long. Raises ValueError for a dataset or file that will not do.
        """
        from fgbench.workload.load import load_dataset

        name, path = self.dataset_source()
        return load_dataset(
            name,
            path=path,
            tokenizer=lambda: _tokenizer_folder(server),
            input_len=self.input_len,
            output_len=self.output_len,
            report=report,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """How a real server is spoken to; a simulation has none of this."""

    endpoint: Annotated[
        str | None,
        _client("completions (OpenAI's) or generate (FastServe's); default: completions.", "--endpoint"),
    ] = None
    warmup: Annotated[int, _client("Unmeasured requests sent before.", "--warmup")] = 4
    request_timeout: Annotated[
        float, _client("Seconds until an unfinished answer is an error.", "--request-timeout")
    ] = 3600.0


def _tokenizer_folder(server: ServerOptions) -> Path:
    from fgengine.model.store import tokenizer_folder

    if server.tokenizer is not None:
        return tokenizer_folder(server.tokenizer, False)
    return tokenizer_folder(server.model, server.use_dummy_weights)
