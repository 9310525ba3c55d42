"""Files that are written whole or not at all, and where the cache is."""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from llava.errors import LlavaError


def cache_dir() -> Path:
    """The user's cache folder for llava: `$LLAVA_CACHE`, or the platform's place. It need not exist yet."""
    if chosen := os.environ.get("LLAVA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "llava"


def data_dir() -> Path:
    """The user's folder for what must not be lost: `$LLAVA_DATA`, or the platform's place. It need not exist yet."""
    if chosen := os.environ.get("LLAVA_DATA"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("APPDATA") or "~/AppData/Roaming"
    elif sys.platform == "darwin":
        base = "~/Library/Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "llava"


@contextlib.contextmanager
def os_errors(action: str) -> Iterator[None]:
    """Turn an OSError (no room, no rights, not a folder, ...) into a LlavaError that names the action."""
    try:
        yield
    except OSError as error:
        raise LlavaError(f"cannot {action}: {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name `path` only if the block succeeds.

    Raises LlavaError when the folder has no room or no rights. Nothing half-written is left behind.
    """
    with os_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private
            _sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` only if the block succeeds; an old `path` is replaced."""
    with os_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
                try:  # the new one stands in its place before any of the old one is deleted
                    path.replace(aside / path.name)
                    try:
                        temporary.replace(path)
                    except BaseException:
                        (aside / path.name).replace(path)
                        raise
                finally:
                    if path.exists():
                        shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def home_of(name: str) -> Path:
    """The path, with ~ for a home folder. Raises LlavaError where there is no such."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise LlavaError(f"{name}: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The file's SHA-256 in hexadecimal; `on_bytes` hears of each block's size as it is read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    with path.open("r+b") as file:  # Windows syncs no file that is open for reading alone
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
