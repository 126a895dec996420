"""Reads the files of a model's folder. Every problem is a ModelError that names the file and the field."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fgengine.json_problems import UNKNOWN, json_problem, quoted

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ModelError(ValueError):
    """A model cannot be used, or there is none of that name. The message is one sentence, on one line."""

    def __init__(self, message: str) -> None:
        # A name in a file can contain line breaks, and control characters of terminals.
        super().__init__(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], message))


def read_file(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a file; None if there is no such file.

    Raises ModelError if it is larger than ``max_bytes``, is no regular file, or cannot be read.
    """
    try:
        if not exists(path):
            return None
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(content) > max_bytes:
        raise ModelError(f"{path} is larger than {max_bytes} bytes, so it is not such a file of a model")
    return content


def exists(path: Path) -> bool:
    """Whether there is a file at ``path``.

    Raises ModelError for something else than a file: a folder, a pipe that would block the reader, or a link
    to nothing, as an interrupted download leaves it.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelError(f"{path} is a link to a file that is not there: download it again") from None
        return False
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        raise ModelError(f"{path} is not a file")
    return True


def read_json(path: Path, kind: type[T], max_bytes: int) -> T | None:
    """Return the JSON of a file as a value of the type ``kind``; None if there is no such file.

    Raises ModelError if the file cannot be read, is not JSON, or has a field of another type or out of
    bounds.

        class Settings(msgspec.Struct):
            layers: Annotated[int, msgspec.Meta(ge=1)]

        read_json(folder / "config.json", Settings, 1024**2)
        # ModelError: /models/x/config.json: layers is 0, but it must be a whole number >= 1
    """
    content = read_file(path, max_bytes)
    return None if content is None else parse_json(content, kind, path)


def parse_json(content: bytes, kind: type[T], path: Path) -> T:
    """Return JSON as a value of the type ``kind``. Raises ModelError, as ``read_json`` does for ``path``."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        problem = str(error)
    except RecursionError:
        raise ModelError(f"{path} is nested too deeply") from None
    except ValueError as error:  # of msgspec, or UnicodeDecodeError
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    raise ModelError(_sentence(problem, _parsed(content), path))


def converted(value: Any, kind: type[T], path: Path) -> T:
    """Return a parsed JSON value as a value of the type ``kind``. Raises ModelError, as ``read_json``."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ModelError(_sentence(str(error), value, path)) from None
    except RecursionError:
        raise ModelError(f"{path} is nested too deeply") from None


def wrong(path: Path, field: str, value: object, must: str) -> ModelError:
    """Return the error for a wrong value of a field.

    >>> str(wrong(Path("config.json"), "head_dim", 7, "be even"))
    'config.json: head_dim is 7, but it must be even'
    """
    return ModelError(f"{path}: {field} is {quoted(value)}, but it must {must}")


def one_line(error: BaseException) -> str:
    """Return the message of another library's error on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _parsed(content: bytes) -> Any:
    """Return the parsed JSON, to quote a wrong value; ``UNKNOWN`` if even that fails."""
    try:
        return msgspec.json.decode(content)
    except (ValueError, RecursionError):
        return UNKNOWN


def _sentence(problem: str, value: Any, path: Path) -> str:
    """Make a sentence of msgspec's message, such as "Expected `int` >= 1 - at `$.rope_scaling.factor`"."""
    found = json_problem(problem, value)
    return f"{path}: {found}" if found.field else f"{path} {found.text}"


def is_plain_name(name: str) -> bool:
    """Whether ``name`` names a file of the folder itself, not of another one.

    >>> is_plain_name("../model.safetensors")
    False
    """
    return name == Path(name).name and name not in ("", "..") and "\0" not in name
