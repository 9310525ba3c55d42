"""Qt's resource files, read from one that is written here by the format's own rules."""

import struct
import zlib
from pathlib import Path

import pytest

from llava.errors import LlavaError
from llava.pictures.gcompris import pictures, read_resources

DIRECTORY, COMPRESSED = 2, 1


def resource_file(path: Path, files: dict[str, bytes], compress: bool = False) -> Path:
    """Write a resource file of version 3 with these files, all in one folder `lang/resource/words_sample`."""
    folders = ["", "lang", "resource", "words_sample"]
    names, data = b"", b""
    places = []
    for name in (*folders[1:], *files):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = [struct.pack(">IHIIQ", 0, DIRECTORY, 1, 1, 0)]
    for i, place in enumerate(places[: len(folders) - 1]):
        children = len(files) if i == len(folders) - 2 else 1
        nodes.append(struct.pack(">IHIIQ", place, DIRECTORY, children, i + 2, 0))
    for place, content in zip(places[len(folders) - 1 :], files.values(), strict=True):
        nodes.append(struct.pack(">IHHHIQ", place, COMPRESSED if compress else 0, 0, 0, len(data), 0))
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
        data += struct.pack(">I", len(packed)) + packed
    tree = 24
    after = tree + len(nodes) * 22
    header = struct.pack(">4sIIIII", b"qres", 3, tree, after, after + len(data), 0)
    path.write_bytes(header + b"".join(nodes) + data + names)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_files_come_with_their_paths(tmp_path: Path, compress: bool) -> None:
    files = {"cat.webp": b"a picture of a cat", "grün.txt": b""}
    found = dict(read_resources(resource_file(tmp_path / "a.rcc", files, compress)))
    assert found == {f"lang/resource/words_sample/{name}": content for name, content in files.items()}


def test_pictures_have_the_names_of_their_files_but_not_those_that_mislead(tmp_path: Path) -> None:
    names = ("cat.webp", "hammer12.webp", "flies.webp", "arm.webp", "notes.txt")
    resource_file(tmp_path / "lang.rcc", {name: name.encode() for name in names})
    for other in ("explore_farm_animals", "explore_world_animals", "categorization"):
        resource_file(tmp_path / f"{other}.rcc", {"dog.webp": b""})  # not in the folder that has the pictures
    found = [(name, content) for _, name, content in pictures(tmp_path)]
    assert found == [("cat", b"cat.webp"), ("fly", b"flies.webp"), ("hammer", b"hammer12.webp")]


@pytest.mark.parametrize("damage", ["cut", "magic", "missing"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, damage: str) -> None:
    path = resource_file(tmp_path / "a.rcc", {"cat.webp": b"cat"}, compress=True)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:40], "magic": b"x" + content, "missing": b""}[damage])
    with pytest.raises(LlavaError, match=r"a\.rcc"):
        list(read_resources(path))
