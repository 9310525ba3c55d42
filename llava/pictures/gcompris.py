"""Photographs and drawings with names from GCompris, a collection of games for children.

They lie in Qt's resource files: a header, a tree of folders and files, their names in UTF-16, and the files' bytes.
Source: the format that Qt's `rcc` writes, versions 1 to 3 (qtbase src/corelib/io/qresource.cpp).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from llava.errors import LlavaError

_MOST_BYTES = 50_000_000  # of one file
_RESOURCES = {  # the resource file: the folder of pictures in it
    "lang": "lang/resource/words_sample",
    "explore_farm_animals": "explore_farm_animals/resource/animals",
    "explore_world_animals": "explore_world_animals/resource/animals",
    "categorization": "categorization/resource/images",
}
_NOT_FOLDERS = ("alphabets", "numbers", "monuments")
_NOT_NAMED = (  # numbers, colours, kin, parts of the body that an arrow points at, and pictures of several things
    "(black|blue|brown|color|gray|green|mauve|orange-color|pink|red|white|yellow|zero|one|two|three|four|five|six|seven|"
    "eight|nine|ten|eleven|twelve|sixteen|animal|arm|back|boy|brother|child|dad|ear|eyes|face|family|finger|friend|"
    "fruit|grandmother|hair|head|knee|leg|man|mother|neck|nose|reptile|sister|skin|son|thumb|tongue|woman|knife|"
    "nailCutter|geothermal|dragon)"
)
_NAMES = {
    "cuttingTool": "pliers", "plier": "pliers", "sideCutter": "pliers", "measuringTape": "tape measure",
    "spray": "spray bottle", "tweezer": "tweezers", "screwDriver": "screwdriver", "buffetset": "cup",
    "blackslate": "blackboard", "erasers": "eraser", "weighingMachine": "scale", "bulb": "light bulb",
    "spoons": "spoon", "flies": "fly", "polar_bear": "polar bear", "scarlet_macaw": "parrot", "solar": "solar panel",
}  # fmt: skip


def pictures(root: Path) -> Iterator[tuple[str, str, bytes]]:
    """(path, name, bytes) of each picture that has a name, in a fixed order. Raises LlavaError for a damaged file."""
    for resource, folder in _RESOURCES.items():
        for path, content in sorted(read_resources(root / f"{resource}.rcc")):
            _, separator, inside = path.partition(f"{folder}/")
            stem = re.sub(r"\d*\.webp$", "", inside)
            within, _, stem = stem.rpartition("/")
            if (
                separator
                and inside.endswith(".webp")
                and within not in _NOT_FOLDERS
                and not re.fullmatch(_NOT_NAMED, stem)
            ):
                yield path, _NAMES.get(stem, stem), content


def read_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the files in a Qt resource file; those compressed by zstd are left out. Raises LlavaError."""
    try:
        content = path.read_bytes()
        magic, version, tree, data, names = struct.unpack_from(">4sIIII", content)
        if magic != b"qres":
            raise LlavaError(f"{path}: not a Qt resource file")
        yield from _walk(content, 14 if version < 2 else 22, tree, data, names, 0, "")
    except (OSError, struct.error, zlib.error, UnicodeDecodeError, RecursionError) as error:
        raise LlavaError(f"{path}: damaged ({error}); delete the folder and try again") from None


def _walk(
    content: bytes, size: int, tree: int, data: int, names: int, node: int, folder: str
) -> Iterator[tuple[str, bytes]]:
    at = tree + node * size
    name_at, flags = struct.unpack_from(">IH", content, at)
    (length,) = struct.unpack_from(">H", content, names + name_at)
    name = content[names + name_at + 6 :][: 2 * length].decode("utf-16-be") if node else ""
    if flags & 2:  # a folder
        count, first = struct.unpack_from(">II", content, at + 6)
        for child in range(first, first + count):
            yield from _walk(content, size, tree, data, names, child, f"{folder}{name}/" if node else "")
        return
    (data_at,) = struct.unpack_from(">I", content, at + 10)
    (length,) = struct.unpack_from(">I", content, data + data_at)
    found = content[data + data_at + 4 :][:length]
    if flags & 1:  # zlib, after the length that it unpacks to
        found = zlib.decompressobj().decompress(found[4:], _MOST_BYTES)
    if not flags & 4:
        yield folder + name, found
