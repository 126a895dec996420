import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fgbench.backends.attached import Attached
from fgbench.backends.named import backend_of
from fgbench.benchmark import execute_run
from fgbench.cli.main import app
from fgbench.exit_status import client_was_the_limit, too_many_errors
from fgbench.metrics.accounts import MachineAccount
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.results.run import find_runs, read_run
from fgbench.spec.backend import BackendSpec
from fgbench.spec.load import Load, LoadSpec
from fgbench.workload.datasets import Lengths, Synthetic
from fgbench.workload.lengths import Between
from fgengine.config import EngineConfig

SYNTHETIC = ["--dataset", "synthetic", "--input-len", "4", "--output-len", "3"]


@pytest.fixture
def _client_lag_is_ignored(monkeypatch):
    """The client and the fake server share a process, and the machine runs other tests."""
    monkeypatch.setattr("fgbench.exit_status.LAG_SECONDS", 60.0)


def fgbench(*argv):
    return CliRunner().invoke(app, ["run", *map(str, argv)])


def only_run(root):
    (path,) = find_runs(root)
    return read_run(path)


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_run_against_a_url(fake_server, tmp_path):
    result = fgbench(
        "--url", fake_server.url, *SYNTHETIC, "--rate", 50, "--num-prompts", 10, "--results", tmp_path
    )
    assert result.exit_code == 0, result.output
    run = only_run(tmp_path)
    assert run.complete
    assert len(run.records) == 10
    assert run.info["model"] == "fake"
    assert run.info["backend"]["name"] == fake_server.url.removeprefix("http://")
    assert run.info["backend"]["url"] == fake_server.url
    assert run.info["workload"]["rate"] == 50
    assert run.info["summary"]["ok"] == 10
    assert len(fake_server.bodies) == 14  # with 4 of warm-up
    assert all(128 <= t < 512 for body in fake_server.bodies for t in body["prompt"])  # as /v1/models says
    assert (run.path / "requests.parquet").is_file()
    assert "JCT" in result.output
    assert str(run.path) in result.output.replace("\n", "")


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_run_saves_and_shows_the_load_of_other_programs(fake_server, tmp_path, busy_program):
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", 20, "--num-prompts", 10, "--results", tmp_path]
    result = fgbench(*argv, "--warmup", 0)
    machine = MachineAccount.of(only_run(tmp_path).info)
    assert machine is not None
    assert machine.busy
    assert machine.programs
    assert "◆ other programs took part of the machine" in result.output.replace("\n", " ")


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_busy_machine_is_reported_before_the_load(fake_server, tmp_path, monkeypatch):
    sentence = "other programs took 0.93 cores"
    monkeypatch.setattr("fgbench.backends.server.busy_since", lambda before, url: sentence)
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", 50, "--num-prompts", 4, "--results", tmp_path]
    printed = fgbench(*argv).output.replace("\n", " ")
    assert f"the machine is busy, so the figures will be marked: {sentence}" in printed


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_without_the_servers_processes_no_machine_load_is_saved(fake_server, tmp_path, monkeypatch):
    monkeypatch.setattr("fgbench.backends.server.server_processes", lambda url: None)
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", 50, "--num-prompts", 4, "--results", tmp_path]
    assert fgbench(*argv, "--warmup", 0).exit_code == 0
    assert "machine" not in only_run(tmp_path).info


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_server_that_needs_an_api_key(fake_server, tmp_path):
    fake_server.required = {"Authorization": "Bearer s3cret", "X-Tenant": "a b"}
    fixed = ["--url", fake_server.url, *SYNTHETIC, "--rate", 100, "--num-prompts", 4]
    headers = ["--api-key", "s3cret", "--header", "X-Tenant: a b"]
    done = fgbench(*fixed, *headers, "--results", tmp_path / "with")
    assert done.exit_code == 0, done.output
    written = "".join(path.read_text(errors="replace") for path in only_run(tmp_path / "with").path.iterdir())
    assert "s3cret" not in written + done.output
    assert "X-Tenant" not in written, "headers may hold secrets too"
    began = time.monotonic()
    refused = fgbench(*fixed, *headers[:2], "--results", tmp_path / "without")
    assert refused.exit_code == 1
    assert time.monotonic() - began < 10.0  # it does not wait for a key that does not come
    assert "answers 401: give its key with --api-key" in refused.output
    for wrong in ("X-Tenant", "X: a\r\nY: b", "X Y: z", "X: \u20ac"):
        done = fgbench(*fixed, "--header", wrong, "--results", tmp_path / "wrong")
        assert done.exit_code == 2
        assert "--header takes 'Name: value'" in done.output + done.stderr
    assert fgbench("--api-key", "k", "--results", tmp_path / "wrong").exit_code == 2


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_requests_carry_their_user(fake_server, tmp_path):
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", 200, "--num-prompts", 30, "--results", tmp_path]
    assert fgbench(*argv, "--users", 2, "--warmup", 0).exit_code == 0
    run = only_run(tmp_path)
    assert run.info["workload"]["users"] == 2
    assert {record.user for record in run.records} == {"user-1", "user-2"}
    sent = sorted(body["user"] for body in fake_server.bodies)
    assert sent == sorted(record.user for record in run.records)
    fake_server.bodies.clear()
    assert fgbench(*argv, "--warmup", 0).exit_code == 0
    assert all("user" not in body for body in fake_server.bodies)


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_the_same_seed_sends_the_same_lengths_and_at_the_same_rate_the_same_prompts(fake_server, tmp_path):
    bodies = []
    for rate in (100, 100, 200):
        argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", rate, "--num-prompts", 5, "--warmup", 0]
        assert fgbench(*argv, "--seed", 3, "--results", tmp_path).exit_code == 0
        bodies.append(sorted(json.dumps(b) for b in fake_server.bodies))
        fake_server.bodies.clear()
    assert bodies[0] == bodies[1]
    again, faster = ([json.loads(body)["prompt"] for body in some] for some in bodies[1:])
    assert sorted(map(len, again)) == sorted(map(len, faster))
    assert not {tuple(prompt[:2]) for prompt in again} & {tuple(prompt[:2]) for prompt in faster}
    runs = [read_run(p) for p in find_runs(tmp_path)]
    assert runs[0].fingerprint == runs[1].fingerprint != runs[2].fingerprint
    prompts = {r.info["workload"]["prompts_fingerprint"] for r in runs}
    assert len(prompts) == 1


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_too_many_errors_exit_3_and_do_not_count_as_throughput(fake_server, tmp_path):
    fake_server.misbehave = {9: "crash"}
    table = tmp_path / "t.csv"
    table.write_text("prompt_tokens,output_tokens\n4,5\n4,9\n")
    argv = ["--url", fake_server.url, "--dataset", table, "--rate", "inf", "--num-prompts", 4, "--warmup", 2]
    result = fgbench(*argv, "--results", tmp_path / "runs")
    assert result.exit_code == 3
    assert "2 of 4 requests failed (2 x http 500)" in result.output.replace("\n", " ")
    run = only_run(tmp_path / "runs")
    assert run.complete
    assert run.info["summary"]["output_tokens"] == 10
    assert run.info["workload"]["rate"] == "inf"
    assert fgbench(*argv, "--max-error-rate", 0.5, "--results", tmp_path / "more").exit_code == 0


@pytest.mark.slow
def test_a_server_that_refuses_every_warmup_request_is_not_measured(fake_server, tmp_path):
    fake_server.misbehave = {3: "refuse"}
    result = fgbench("--url", fake_server.url, *SYNTHETIC, "--results", tmp_path)
    assert result.exit_code == 1
    assert "no warm-up request was answered; the first failed with http 400: too long" in result.output
    assert only_run(tmp_path).status == "failed"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rate", "0"], "the rate must be above 0"),
        (["--rate", "nan"], "the rate must be above 0"),
        (["--num-prompts", "0"], "number of prompts"),
        (["--warmup", "-1"], "warm-up prompts"),
        (["--seed", "-1"], "seed must be"),
        (["--dataset", "nope"], "there is no dataset or file 'nope'"),
        (["--port", "65536"], "Invalid value for '--port'"),
        (["--policy", "lifo"], "there is no policy 'lifo'"),
        (["--backend", "fastgen-lifo"], "there is no policy 'lifo'"),
        (["--model", "gpt-9"], 'model "gpt-9" is neither'),
        (["--starvation-limit", "inf"], "--starvation-limit must be finite"),
        (
            ["--url", "http://h", "--name", "fastgen"],
            "fastgen is a name of our own engine, and the server at",
        ),
        (["--backend", "nope"], "there is no backend 'nope'"),
        (["--endpoint", "chats"], "'chats' is not one of"),
        (["--process-name", "gamma"], "--arrivals gamma needs --cv"),
        (["--arrivals", "sometimes"], "there are no arrivals 'sometimes': --arrivals must be poisson, gamma"),
        (
            ["--arrivals", "uniform", "--cv", "2"],
            "--cv does not work with uniform arrivals: leave it out, or use --arrivals gamma",
        ),
        (["--cv", "2", "--concurrency", "4"], "--concurrency does not work with gamma arrivals"),
        (["--cv", "0"], "--cv must be between"),
        (["--burst-size", "0"], "--burst-size must be between"),
        (["--rate-to", "5", "--rate", "inf"], "a ramp needs a finite --rate"),
        (["--concurrency", "0"], "--concurrency must be between"),
        (["--concurrency", "4", "--rate", "2"], "--rate does not work with --concurrency"),
        (["--trace", "/no/such/file"], "--trace: there is no file"),
        (["--speedup", "2"], "--arrivals trace needs --trace"),
        (["--trace", "x", "--rate", "2", "--speedup", "2"], "--rate and --speedup both set the speed"),
        (["--trace", "x", "--speedup", "0"], "--speedup must be above 0"),
        (["--dataset", "alpaca", "--input-len", "5"], "--input-len does not work with the dataset alpaca"),
        (["--output-len", "5"], "use --dataset synthetic, mmlu, longbench or jsonl"),
        (["--dataset", "synthetic", "--input-len", "zipf:2"], "'zipf:2' is not a length: write 512 (fixed)"),
        (["--dataset", "jsonl"], "is your own file"),
        (["--mix", "sharegpt:1"], "--mix does not work with the dataset sharegpt-lengths"),
        (["--dataset", "mix", "--mix", "sharegpt"], "is not a list of datasets and shares"),
        (["--max-error-rate", "2"], "--max-error-rate"),
        (["--request-timeout", "-1"], "--request-timeout must be above 0"),
        (["--duration", "0"], "--duration must be"),
        (["--duration", "inf"], "--duration must be"),
        (["--trim", "5 minutes"], "--trim takes seconds or a share"),
        (["--trim", "60%"], "leave nothing"),
        (["--cool-down", "-3"], "--cool-down takes"),
        (
            ["--url", "http://h:1", "--max-batch-size", "8"],
            "--max-batch-size is for a server that is started",
        ),
        (["--url", "http://h:1", "--port", "8"], "--port does not work with --url"),
        (["--url", "::"], "is not a URL of a server"),
        (["--backend", "fastgen-fcfs", "--policy", "srpt"], "contradict"),
        (["--backend", "fastgen-fcfs", "--policy", "sj-mlfq"], "contradict"),  # the default, given explicitly
        (["--backend", "fastserve"], "--backend fastserve needs a running server"),
        (["--dataset", "synthetic", "--dataset-name", "sharegpt"], "contradict"),
    ],
)
@pytest.mark.slow
def test_wrong_usage_is_reported_before_anything_starts(tmp_path, argv, message, capfd):
    weights = [] if "--url" in argv else ["--use-dummy-weights"]  # --url does not allow it
    result = fgbench(*weights, *argv, "--results", tmp_path)
    assert result.exit_code == 2
    assert message in result.output + capfd.readouterr().err
    assert find_runs(tmp_path) == []


def test_names_and_urls_select_the_backend():
    def backend(name=None, url=None, **options):
        name = name or ("" if url else "fastgen")
        return backend_of(BackendSpec(name=name, url=url, server=EngineConfig(**options)))

    assert backend().name == "fastgen"
    assert backend("fastgen-fcfs").settings["policy"] == "fcfs"
    assert backend(policy="srpt").name == "fastgen-srpt"
    assert backend("fastgen-srpt", policy="srpt").name == "fastgen-srpt"
    attached = backend("fastserve", "http://127.0.0.1:10000")
    assert (attached.name, attached.url, attached.endpoint) == (
        "fastserve",
        "http://127.0.0.1:10000",
        "generate",
    )
    attached = backend("vllm", "h:1")
    assert (attached.name, attached.model, attached.endpoint) == ("vllm", None, "completions")
    assert backend(url="h:1").name == "h:1"
    assert backend(url="h:1", model="opt-125m").model == "opt-125m"


def test_options_select_the_dataset(tmp_path):
    texts, table = tmp_path / "d.json", tmp_path / "t.csv.gz"
    texts.touch()
    table.touch()

    def source(dataset=None, name=None, path=None):
        return LoadSpec(dataset=dataset, dataset_name=name, dataset_path=path).dataset_source()

    assert source() == (None, None)
    assert source("sharegpt", None, texts) == ("sharegpt", texts)
    assert source(str(texts), "sharegpt") == ("sharegpt", texts)  # as the published client is called
    assert source(str(texts)) == (None, texts)  # recognized by its content
    assert source(str(table)) == (None, table)
    assert source(None, "synthetic") == ("synthetic", None)


def start(fake_server, tmp_path, *argv):
    command = [sys.executable, "-m", "fgbench", "run", "--url", fake_server.url, "--warmup", "0"]
    process = subprocess.Popen(
        [*command, *map(str, argv), "--results", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 30
    while len(fake_server.bodies) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return process


@pytest.mark.slow
def test_kill_9_loses_no_finished_request(fake_server, tmp_path):
    process = start(fake_server, tmp_path, *SYNTHETIC, "--rate", 50, "--num-prompts", 1000)
    process.kill()
    process.communicate(timeout=10)
    run = only_run(tmp_path)
    assert run.status == "incomplete"
    assert 19 <= len(run.records) + 1 <= len(fake_server.bodies) + 1
    assert all(r.ok for r in run.records)
    assert summarize(run.records, offered_rate=50).ok == len(run.records)


@pytest.mark.slow
def test_ctrl_c_exits_130_and_prints_figures(fake_server, tmp_path):
    process = start(fake_server, tmp_path, *SYNTHETIC, "--rate", 50, "--num-prompts", 1000)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    run = only_run(tmp_path)
    assert run.status == "interrupted"
    assert len(run.records) >= 15
    assert run.info["summary"]["requests"] == len(run.records)
    assert f"Interrupted: {len(run.records)} of 1000 requests had ended and are saved" in output


@pytest.mark.slow
def test_a_server_that_dies_during_the_load_fails_the_run(fake_server, tmp_path):
    fake_server.misbehave = {3: "hang"}

    class Mortal(Attached):
        stopped = 0

        def alive(self):
            return len(fake_server.bodies) < 3

        def log_tail(self):
            return "out of memory"

        def stop(self):
            self.stopped += 1

    backend = Mortal(fake_server.url)
    load = Load(rate=math.inf, num_prompts=3, num_warmup=0)
    run = execute_run(backend, Synthetic(Between(4, 4), Between(3, 3)), load, results=tmp_path)
    assert run.status == "failed"
    assert run.info["error"] == "the server died: out of memory"
    assert backend.stopped == 1


def test_the_server_is_stopped_if_starting_it_fails(fake_server, tmp_path):
    class Broken(Attached):
        stopped = 0

        def start(self, log, report):
            raise ZeroDivisionError

        def stop(self):
            self.stopped += 1

    backend = Broken(fake_server.url)
    with pytest.raises(ZeroDivisionError):
        execute_run(backend, Lengths("t", ((4, 4),)), Load(), results=tmp_path)
    assert backend.stopped == 1
    assert only_run(tmp_path).status == "failed"


def late(lag, ttft, count=100):
    return [
        RequestRecord(i, float(i), i + lag, 4, 2, 2, i + ttft, i + ttft + 0.1, (), i + ttft + 0.1)
        for i in range(count)
    ]


def test_a_late_client_is_reported_as_the_limit():
    def verdict(lag, ttft):
        return client_was_the_limit({}, summarize(late(lag, ttft), offered_rate=1.0))

    assert "100 ms or more after their time (mean TTFT 500 ms)" in verdict(0.1, 0.5)
    assert verdict(0.04, 0.05) is None  # below 50 ms the operating system's scheduler is the cause
    assert verdict(0.1, 5.0) is None  # only 2 % of the TTFT
    assert client_was_the_limit({}, summarize([], offered_rate=1.0)) is None


def test_more_failed_requests_than_allowed_are_an_error():
    bad = RequestRecord(99, 99.0, 99.0, 4, 2, finished=100.0, error="timeout: x")
    records = [*late(0.0, 0.5, 99), bad]
    summary = summarize(records, offered_rate=1.0)
    assert too_many_errors(summary, 0.01) is None
    assert "1 of 100 requests failed (1 x timeout)" in too_many_errors(summary, 0.0)


@pytest.mark.slow
def test_help_imports_no_heavy_modules():
    code = (
        "import sys; from fgbench.cli.main import app\n"
        "try: app(['run', '--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'aiohttp', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "--num-prompts" in done.stdout


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_run_reports_broken_records_of_its_dataset(fake_server, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("prompt_tokens,output_tokens\n4,3\n5,x\n")
    argv = ["--url", fake_server.url, "--dataset", table, "--rate", 50, "--num-prompts", 3]
    result = fgbench(*argv, "--results", tmp_path / "runs", "--burst-size", 3)
    assert result.exit_code == 0, result.output
    assert "1 record is broken or cut off and left out" in result.output
    run = only_run(tmp_path / "runs")
    assert run.info["workload"]["arrival_process"] == {"name": "burst", "size": 3}
    assert {record.scheduled for record in run.records} == {0.0}


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_closed_loop_against_a_url(fake_server, tmp_path):
    argv = ["--url", fake_server.url, *SYNTHETIC, "--concurrency", 3, "--num-prompts", 9, "--warmup", 0]
    result = fgbench(*argv, "--results", tmp_path)
    assert result.exit_code == 0, result.output
    assert "closed loop of 3" in result.output
    run = only_run(tmp_path)
    assert sorted(r.scheduled > 0 for r in run.records) == [False] * 3 + [True] * 6
    assert run.info["summary"]["offered_rate"] is None
    assert not run.info["summary"]["overloaded"]


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_a_duration_stops_the_sending_and_the_plan_is_saved(fake_server, tmp_path):
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", 40, "--warmup", 0, "--duration", 0.5]
    result = fgbench(
        *argv, "--num-prompts", 200, "--trim", "0.1s", "--cool-down", "20%", "--results", tmp_path
    )
    assert result.exit_code == 0, result.output
    run = only_run(tmp_path)
    assert run.complete
    assert 5 < len(run.records) < 50
    assert max(r.scheduled for r in run.records) < 0.5
    assert run.info["workload"]["num_prompts"] == 200
    assert run.info["duration_limit_s"] == 0.5
    assert run.info["trim"] == {"start": "0.1s", "end": "20%"}
    summary = run.info["summary"]
    assert summary["requests"] + summary["trimmed"] == len(run.records)
    assert summary["trimmed"] > 0
    assert f"{summary['trimmed']} requests scheduled before 100 ms or after" in result.output
    other = fgbench(*argv, "--num-prompts", 200, "--duration", 0.4, "--results", tmp_path / "other")
    assert other.exit_code == 0
    assert only_run(tmp_path / "other").fingerprint != run.fingerprint


def test_a_duration_decides_the_number_of_prompts():
    def planned(**options):
        return LoadSpec(**options).to_load().num_prompts

    assert planned() == 100
    assert (
        planned(duration=60.0) == planned(duration=60.0, rate=9.0) == 10_000
    )  # the same prompts at any rate
    assert planned(duration=600.0, rate=100.0) == 90_000
    assert planned(duration=60.0, num_prompts=7) == 7
    assert planned(duration=60.0, rate=1.0, rate_to=3.0) == 120
    assert planned(duration=60.0, concurrency=4) == 10_000


@pytest.mark.usefixtures("_client_lag_is_ignored")
@pytest.mark.slow
def test_warm_up_sends_other_prompts_and_is_not_counted(fake_server, tmp_path):
    argv = ["--url", fake_server.url, *SYNTHETIC, "--rate", "inf", "--num-prompts", 6, "--warmup", 3]
    assert fgbench(*argv, "--results", tmp_path).exit_code == 0
    run = only_run(tmp_path)
    assert (run.info["warmup"], run.info["summary"]["requests"]) == (3, 6)
    prompts = [tuple(body["prompt"]) for body in fake_server.bodies]
    assert len(prompts) == 9
    assert not set(prompts[:3]) & set(prompts[3:])


def test_a_missed_rate_is_reported():
    from fgbench.report.run_tables import summary_table

    def shown(sent_rate):
        records = [
            RequestRecord(i, i / 100, i / sent_rate, 4, 2, 2, i / 50 + 0.1, i / 50 + 0.2, (), i / 50 + 0.2)
            for i in range(100)
        ]
        out = io.StringIO()
        Console(file=out, width=120).print(summary_table("t", summarize(records, offered_rate=100.0)))
        return out.getvalue()

    assert "The client sent 90/s instead of the scheduled 100/s (-10.0%)" in shown(90.0)
    assert "The client sent" not in shown(99.0)
