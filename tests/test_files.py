import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from llava import LlavaError
from llava.files import atomic_folder, atomic_path, cache_dir, sha256, write_text

FULL = Path("/dev/full")


@pytest.fixture(params=[0o022, 0o077], ids=["umask022", "umask077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == target.parent  # a rename across file systems would not be atomic
    assert target.read_text() == "whole"
    assert names(target.parent) == ["a.txt"]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old and longer")
    write_text(target, "né")
    assert target.read_bytes() == "né".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, LlavaError])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("ha")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_as_readable_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "a.txt", "x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask
    assert os.umask(umask) == umask  # unchanged


def test_a_folder_appears_only_once_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "a.txt").write_text("whole")
        assert not target.exists()
    assert (target / "deep" / "a.txt").read_text() == "whole"
    assert names(target.parent) == ["folder"]


def test_an_old_folder_is_replaced_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").touch()
    with atomic_folder(target) as temporary:
        (temporary / "new.txt").touch()
    assert names(target) == ["new.txt"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, LlavaError])
def test_an_interrupted_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old.txt").touch()
    with pytest.raises(error), atomic_folder(target) as temporary:
        (temporary / "new.txt").touch()
        raise error
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_as_readable_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a.txt").touch()
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE((tmp_path / "folder" / "a.txt").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("atomic", [atomic_path, atomic_folder])
def test_a_file_where_a_folder_should_be_is_told(
    tmp_path: Path, atomic: Callable[[Path], AbstractContextManager[Path]]
) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "a"
    with pytest.raises(LlavaError, match=r"cannot write .*a: (Not a directory|File exists)"), atomic(target):
        pytest.fail("the block must not run")


def test_a_folder_where_a_file_should_be_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(LlavaError, match=r"cannot write .*a: Is a directory"):
        write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match=r"cannot write .*a: No space left"), atomic_path(tmp_path / "a") as temporary:
        temporary.unlink()
        temporary.symlink_to(FULL)
        temporary.write_bytes(b"x")
    assert names(tmp_path) == []


def test_sha256_is_that_of_hashlib_and_every_byte_is_reported(tmp_path: Path) -> None:
    path, seen = tmp_path / "a", list[int]()
    for size in (0, 1, (1 << 20) + 7):
        data = bytes(range(251)) * (size // 251) + bytes(size % 251)
        path.write_bytes(data)
        seen.clear()
        assert sha256(path, seen.append) == hashlib.sha256(data).hexdigest()
        assert sum(seen) == size


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLAVA_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="the XDG folders are Linux's")
def test_the_cache_is_by_default_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LLAVA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "llava"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "llava"
