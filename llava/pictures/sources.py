"""Pictures with names from package registries: clip art, stamps, children's games, and emoji in eight styles.

Each source yields candidates: a picture, and what its author calls it. The catalogue decides which names are kept.
"""

import gzip
import html
import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image

from llava.errors import LlavaError
from llava.fetch import Progress, fetch
from llava.pictures import gcompris
from llava.registry import PICTURES

SIZE = 224  # of the longer side, in pixels
EMOJI = (  # the last style is held out
    "openmoji", "noto", "fluent-flat", "fluent-3d", "noto-v1", "emojione", "emojione-v1", "twemoji",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A picture that may be named. path: tells it from all others; lexicon: what WordNet's file its folder suggests."""

    source: str
    path: str
    names: tuple[str, ...]  # in order of trust
    lexicon: int | None
    open: Callable[[], PIL.Image.Image]
    whole: bool = False  # the name is one of a fixed list (emoji): it is kept though WordNet lacks it


def candidates(progress: Progress) -> Iterator[Candidate]:
    """All candidates, in a fixed order. Fetches the sources at the first call. Raises LlavaError."""
    yield from _stamps(fetch(PICTURES["stamps"], progress))
    yield from _clipart(fetch(PICTURES["clipart"], progress), fetch(PICTURES["clipart-titles"], progress))
    table = _emoji_names(fetch(PICTURES["openmoji"], progress) / "data" / "openmoji.json")
    for style in EMOJI:
        yield from _emoji(style, fetch(PICTURES[style], progress), table)
    for path, name, content in gcompris.pictures(fetch(PICTURES["gcompris"], progress)):
        yield Candidate("gcompris", path, (name,), None, partial(_from_bytes, content), whole=True)


_STAMP_FOLDERS = {
    "animals": 5, "food": 13, "plants": 20, "household": 6, "clothes": 6, "town": 6, "military": 6, "hobbies": 6,
    "space": 17, "medical": 6, "seasonal": 6, "vehicles": 6, "sports": 6, "people": 18, "naturalforces": 17,
}  # fmt: skip
_NOT_STAMPS = ("flags", "roadsigns", "symbols")


def _stamps(root: Path) -> Iterator[Candidate]:
    for text in sorted(root.rglob("*.txt")):
        folders = text.relative_to(root).parts[:-1]
        if not folders or any(name in folders for name in _NOT_STAMPS):
            continue
        picture = next((p for ext in (".png", ".svg") if (p := text.with_suffix(ext)).exists()), None)
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        if picture is None or not lines:
            continue
        path = picture.relative_to(root).as_posix()
        yield Candidate("stamps", path, (lines[0],), _STAMP_FOLDERS.get(folders[0]), partial(open_picture, picture))


_CLIPART_FOLDERS = {
    "animals": 5, "food": 13, "plants": 20, "people": 18, "geography": 17, "buildings": 6, "computer": 6,
    "containers": 6, "electronics": 6, "office": 6, "tools": 6, "transportation": 6, "recreation": 6, "education": 6,
}  # fmt: skip
_NOT_CLIPART = re.compile(
    r"(?:logos|buttons|special|decorations|shapes|computer/icons|computer/buttons|computer/diagrams|unsorted/duplicates|"
    r"recreation/games/cards|signs_and_symbols|transportation/(?:roadsigns|aiga-symbols)|geography)/"
)


def _clipart(root: Path, titles: Path) -> Iterator[Candidate]:
    for picture in sorted(root.rglob("*.png")):
        path = picture.relative_to(root).as_posix()
        if _NOT_CLIPART.match(path):
            continue
        title = _title(titles / path[:-4])
        stem = re.sub(r"[_\d]+", " ", picture.stem)
        names = tuple(name for name in (title, stem.split(" - ")[0]) if name)
        lexicon = _CLIPART_FOLDERS.get(path.split("/")[0])
        yield Candidate("clipart", path, names, lexicon, partial(open_picture, picture))


def _title(stem: Path) -> str:
    for ending, opener in ((".svg", open), (".svgz", gzip.open)):
        file = stem.with_name(stem.name + ending)
        if file.exists():
            with opener(file, "rb") as stream:
                text = stream.read(200_000).decode("utf-8", "replace")
            found = re.search(r"<dc:title>\s*(.*?)\s*</dc:title>", text, re.DOTALL)
            title = html.unescape(found[1]) if found else ""
            return "" if re.match(r"(Clipart by|Etiquette|Part of|Lemon|SVG |gramastar)", title) else title
    return ""


_EMOJI_GROUPS = {"animals-nature": 5, "food-drink": 13, "travel-places": 6, "activities": 6, "objects": 6}
_EMOJI_SUBGROUPS = {
    "plant-flower": 20, "plant-other": 20, "food-fruit": 20, "sky-weather": 17, "place-geographic": 17,
    "person": 18, "person-role": 18, "person-fantasy": 18, "body-parts": 8,
}  # fmt: skip
_NOT_SUBGROUPS = ("time", "country-flag", "other-object", "place-map", "geometric", "sound")
_FACES = {
    "face-smiling": "smiling face", "face-affection": "smiling face", "face-concerned": "sad face",
    "face-negative": "angry face", "heart": "heart",
}  # fmt: skip
_NO_FACES = {  # of these subgroups
    "skull": "skull", "skull and crossbones": "skull", "smiling face with horns": "devil",
    "angry face with horns": "devil",
}  # fmt: skip


@dataclass(frozen=True)
class _Emoji:
    name: str
    lexicon: int | None
    slug: str  # of its whole Unicode name, as icon sets call it


def _emoji_names(file: Path) -> dict[str, _Emoji]:
    """By code points in lower case: the emoji of things, without skin tones, flags and variants by gender."""
    table: dict[str, _Emoji] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        group, subgroup, name = entry["group"], entry["subgroups"], entry["annotation"].lower()
        code, slug = entry["hexcode"].lower(), re.sub(r"[^a-z0-9]+", "-", name).strip("-")
        if entry["skintone"] or subgroup in _NOT_SUBGROUPS:
            continue
        if subgroup in _FACES:
            table[code] = _Emoji(_NO_FACES.get(name, _FACES[subgroup]), None, slug)
        elif group in _EMOJI_GROUPS or subgroup in _EMOJI_SUBGROUPS:
            if re.match(r"(man|woman|mr\.?|mrs\.?) |(man|woman):|.*(person|people|beard|hair)", name):
                continue
            name = re.sub(r"^\d\w* ", "", name.removesuffix(" face"))
            table[code] = _Emoji(name, _EMOJI_SUBGROUPS.get(subgroup, _EMOJI_GROUPS.get(group)), slug)
    return table


def _emoji(style: str, root: Path, table: dict[str, _Emoji]) -> Iterator[Candidate]:
    slugs = {emoji.slug: code for code, emoji in table.items()}
    for code, opener in _emoji_pictures(style, root, slugs):
        emoji = table.get(code) or table.get(code.replace("-fe0f", "")) or table.get(f"{code}-fe0f")
        if emoji is not None:
            yield Candidate(style, code, (emoji.name,), emoji.lexicon, opener, whole=True)


def _emoji_pictures(
    style: str, root: Path, slugs: dict[str, str]
) -> Iterator[tuple[str, Callable[[], PIL.Image.Image]]]:
    if style == "openmoji":
        for file in sorted((root / "color" / "svg").glob("*.svg")):
            yield file.stem.lower(), partial(open_picture, file)
    elif style == "fluent-3d":
        for file in sorted((root / "assets").glob("*.webp")):
            yield file.stem, partial(open_picture, file)
    else:
        icons = json.loads((root / "icons.json").read_text(encoding="utf-8"))
        seen = set()
        codes = json.loads((root / "chars.json").read_text(encoding="utf-8"))
        codes = codes or {slugs[name]: name for name in icons["icons"] if name in slugs}  # older sets have names only
        for code, name in sorted(codes.items()):
            if name in icons["icons"] and name not in seen:
                seen.add(name)
                icon = {"width": icons["width"], "height": icons["height"], **icons["icons"][name]}
                yield code, partial(_render, _svg(icon).encode())


def _svg(icon: dict[str, object]) -> str:
    size = f'width="{icon["width"]}" height="{icon["height"]}"'
    box = f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {icon["width"]} {icon["height"]}"'
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {names} {size} {box}>{icon['body']}</svg>"


def _from_bytes(content: bytes) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(content))


def check_packages() -> None:
    """Raise LlavaError where the package that renders SVG is not there."""
    if importlib.util.find_spec("resvg_py") is None:
        raise LlavaError("rendering SVG needs the package resvg-py: pip install 'llava[pictures]'")


def _render(svg: bytes) -> PIL.Image.Image:
    import resvg_py

    text = svg.decode("utf-8", "replace")
    return PIL.Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text, width=2 * SIZE))))


def open_picture(path: Path) -> PIL.Image.Image:
    """A picture file of a source, or an SVG rendered."""
    return _render(path.read_bytes()) if path.suffix == ".svg" else PIL.Image.open(path)
