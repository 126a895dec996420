"""Files with a hash that shows whether they are complete."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from fgengine import cache
from fgengine.cache import is_whole, keep, write_durably


def test_a_file_written_by_keep_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a/b/kernel.so"
    keep(path, b"code")
    assert path.read_bytes() == b"code"
    assert is_whole(path)
    hashed = path.with_name("kernel.so.sha256").read_text()
    assert hashed == f"{hashlib.sha256(b'code').hexdigest()}  kernel.so\n"
    keep(path, b"other code")
    assert is_whole(path)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["kernel.so", "kernel.so.sha256"]


def test_sha256sum_can_check_the_hash(tmp_path: Path) -> None:
    keep(tmp_path / "kernel.so", b"code")
    subprocess.run(
        ["sha256sum", "--check", "kernel.so.sha256"], cwd=tmp_path, check=True, capture_output=True
    )


@pytest.mark.parametrize("content", [b"", b"cod", b"codE", b"code\0"])
def test_a_damaged_file_is_not_complete(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kernel.so"
    keep(path, b"code")
    path.write_bytes(content)
    assert not is_whole(path)


@pytest.mark.parametrize("hashed", [None, "", "\xff\xfe", "0" * 64 + "  kernel.so\n"])
def test_a_file_with_no_hash_or_a_wrong_one_is_not_complete(tmp_path: Path, hashed: str | None) -> None:
    path = tmp_path / "kernel.so"
    keep(path, b"code")
    hash_file = path.with_name("kernel.so.sha256")
    hash_file.unlink() if hashed is None else hash_file.write_text(hashed, encoding="latin-1")
    assert not is_whole(path)
    assert not is_whole(tmp_path / "missing")
    assert not is_whole(tmp_path)


def test_a_full_disk_does_not_change_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.json"
    keep(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert is_whole(path)
    assert len(os.listdir(tmp_path)) == 2
