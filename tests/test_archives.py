"""Packages of npm and Debian, made here with the tools of their own formats."""

import io
import tarfile
from pathlib import Path

import pytest

from llava.archives import members
from llava.errors import LlavaError

FILES = {"usr/share/tiny/a.txt": b"A" * 3000, "usr/share/tiny/deep/b.bin": b"B"}


def tarball(mode: str, prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in FILES.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def debian(data: bytes) -> bytes:
    out = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), ("data.tar.xz", data)):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) % 2)
    return out


@pytest.mark.parametrize(
    "package", [tarball("w:gz"), tarball("w:xz"), debian(tarball("w:xz", "./"))], ids=["npm", "xz", "deb"]
)
def test_regular_files_come_out_as_they_went_in_and_links_do_not(package: bytes, tmp_path: Path) -> None:
    path = tmp_path / "package"
    path.write_bytes(package)
    assert {name: source.read() for name, source in members(path)} == FILES


@pytest.mark.parametrize(
    "package",
    [tarball("w:gz")[:60], debian(tarball("w:xz")[:60]), b"!<arch>\n" + b"x" * 60, b"no package"],
    ids=["npm", "deb", "ar", "other"],
)
def test_a_damaged_package_is_one_clear_error(package: bytes, tmp_path: Path) -> None:
    path = tmp_path / "package"
    path.write_bytes(package)
    with pytest.raises(LlavaError, match="damaged package"):
        list(members(path))
