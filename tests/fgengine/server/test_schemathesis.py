"""schemathesis asks the server for all that its OpenAPI document promises."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ST = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""All checks that apply but ``positive_data_acceptance``: a request with valid types can still be refused for
its values, such as token ids that the model does not have."""

SETTINGS = """
[checks]
negative_data_rejection.expected-statuses = [400, 404, 413, 415]
"""
"""A text that is longer than its limit may make the whole body too large, which is a 413."""


@pytest.mark.slow
async def test_the_server_keeps_what_its_document_promises(served: Any, tmp_path: Path) -> None:
    served.engine.step_seconds = 0.0
    served.limit_length(96)  # a chat without a limit of its own generates as much as fits
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ST, "run", f"{served.url}/openapi.json"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--seed", "1", "--max-examples", "40", "--request-timeout", "20", "--workers", "1"),
        *("--continue-on-failure", "--suppress-health-check", "all", "--no-color"),
        cwd=tmp_path,  # it writes its examples there
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    report = out.decode(errors="replace")
    assert process.returncode == 0, report
    tested = re.search(r"(\d+) generated", report)
    assert tested is not None, report
    assert int(tested[1]) > 500, report
    assert served.service.engine.state == "ready"
    assert not served.engine.requests
