"""The files of a package, whichever of its formats it has: a wheel, a tarball of npm, a package of Debian."""

import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import IO

from llava.errors import LlavaError

_AR = b"!<arch>\n"


def members(path: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    """Name and content of every regular file; a content can be read until the next one is asked for.

    Raises LlavaError for a damaged file. Links are left out, and names are as in the package: the caller checks them.
    """
    try:
        if zipfile.is_zipfile(path):
            yield from _zip_members(path)
        else:
            with path.open("rb") as file:
                debian = file.read(len(_AR)) == _AR
                file.seek(0)
                yield from _tar_members(_data_of(file) if debian else file)
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise LlavaError(f"{path}: damaged package ({error})") from None


def _zip_members(path: Path) -> Generator[tuple[str, IO[bytes]], None, None]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                with archive.open(name) as source:
                    yield name, source


def _tar_members(file: IO[bytes]) -> Generator[tuple[str, IO[bytes]], None, None]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            source = archive.extractfile(member) if member.isreg() else None
            if source is not None:
                yield member.name.removeprefix("./"), source


def _data_of(file: IO[bytes]) -> IO[bytes]:
    """The tarball of files inside a package of Debian, which is an `ar` archive (deb(5))."""
    file.seek(len(_AR))
    while len(header := file.read(60)) == 60:
        try:
            name, size = header[:16].decode().strip(), int(header[48:58])
        except ValueError:
            raise tarfile.TarError("an ar header cannot be read") from None
        if name.startswith("data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.TarError("no data.tar in it")
