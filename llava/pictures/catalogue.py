"""The catalogue: cut-out pictures with names that mean the same across sources, split so that nothing leaks.

Built once from the sources, the same on every machine, and kept in the user's cache.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from llava.errors import LlavaError
from llava.fetch import Progress, fetch, quiet
from llava.files import atomic_folder, cache_dir
from llava.pictures.colours import colour_of
from llava.pictures.sources import EMOJI, SIZE, Candidate, candidates, check_packages
from llava.pictures.wordnet import CONCRETE, Synset, WordNet, singulars
from llava.registry import PICTURES

VERSION = 3  # of what this module makes of the sources
HELD_OUT_STYLE = EMOJI[-1]
_HELD_OUT = 0.1  # of stamps and clip art
_NEAR = 4  # bits of 64 by which near-copies may differ
_JUNK = re.compile(
    r"\b(icon|clip ?art|clipart|cartoon|simple|small|big|large|little|silhouette|architetto|remix|image|drawing|sign|"
    r"symbol|outline|bw|colou?r|plain|pixel|svg|photo|a|an|the|some|his|her|my|your|old|new|very|happy|cute|funny)\b"
)
NOT_NAMES = {"bb", "cisco", "diagram", "slice", "cone", "connector", "thing", "plant", "hanging", "head", "pin"}
_ENDS = re.compile(r"[,;:!?(.\[]| with | in | on | for | is | are | at | and | from | by | that | which | to | used ")
_PART_OF = ("slice", "piece", "bunch", "bowl", "plate", "glass", "cup", "head", "pile", "pair", "bar", "loaf", "sprig")


@dataclass(frozen=True)
class Entry:
    """A cut-out picture. also: other words for `name`. kind: what sort of thing it is."""

    file: str  # in the catalogue's folder
    source: str
    name: str
    also: tuple[str, ...]
    kind: str | None
    above: tuple[int, ...]  # WordNet's offsets of the thing and all above it; empty where WordNet lacks it
    colour: str | None
    split: str  # train, test (stamps and clip art) or style (the held-out emoji)


@dataclass(frozen=True)
class Catalogue:
    """All entries, and the folder that their files are in."""

    folder: Path
    entries: list[Entry]

    def open(self, entry: Entry) -> PIL.Image.Image:
        """The cut-out, RGBA, its longer side at most 224."""
        return PIL.Image.open(self.folder / entry.file).convert("RGBA")

    def of(self, *splits: str) -> list[Entry]:
        """The entries of these splits."""
        return [entry for entry in self.entries if entry.split in splits]


def related(one: Entry, other: Entry) -> bool:
    """Whether a picture of one may also be called the other: dog and poodle, sailboat and boat."""
    if one.name == other.name or {one.name, *one.also} & {other.name, *other.also}:
        return True
    if set(one.name.split()) & set(other.name.split()):
        return True
    return bool(one.above and other.above and (one.above[0] in other.above or other.above[0] in one.above))


def load_catalogue(progress: Progress = quiet) -> Catalogue:
    """The catalogue in the cache; at the first call the sources are fetched (400 MB) and it is built.

    Raises LlavaError.
    """
    digest = hashlib.sha256("".join(part.sha256 for part in PICTURES.values()).encode()).hexdigest()
    folder = cache_dir() / f"pictures-{VERSION}-{digest[:12]}"
    index = folder / "catalogue.json"
    if not index.exists():
        with atomic_folder(folder) as temporary:
            _build(temporary, progress)
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
        entries = [Entry(**{**row, "also": tuple(row["also"]), "above": tuple(row["above"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LlavaError(f"{index}: damaged ({error}); delete the folder and try again") from None
    return Catalogue(folder, entries)


def _build(folder: Path, progress: Progress) -> None:
    check_packages()  # before hundreds of megabytes are fetched
    wordnet = WordNet(fetch(PICTURES["wordnet"], progress))
    entries: list[Entry] = []
    hashes: list[int] = []
    found = [(candidate, known) for candidate in candidates(progress) if (known := name_of(candidate, wordnet))]
    usual = _usual_words(found)
    for index, (candidate, (written, synset)) in enumerate(found):
        name = usual.get((written, synset.offset), written) if synset else written
        progress("building the catalogue", index, len(found))
        try:
            picture = trimmed(candidate.open())
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
            continue  # a file that its own package has broken
        if picture is None:
            continue
        file = f"{candidate.source}/{len(entries):05d}.png"
        (folder / candidate.source).mkdir(exist_ok=True)
        picture.save(folder / file)
        also = tuple(word.lower() for word in synset.words if word.lower() != name) if synset else ()
        above = (synset.offset, *sorted(wordnet.above(synset) - {synset.offset})) if synset else ()
        kind = (wordnet.kind(synset) or CONCRETE.get(synset.lexicon)) if synset else None
        split = "style" if candidate.source == HELD_OUT_STYLE else "train"
        entries.append(Entry(file, candidate.source, name, also, kind, above, colour_of(picture), split))
        hashes.append(difference_hash(picture))
    entries = _split(entries, hashes)
    (folder / "catalogue.json").write_text(json.dumps([asdict(entry) for entry in entries], indent=0))


def name_of(candidate: Candidate, wordnet: WordNet) -> tuple[str, Synset | None] | None:
    """What a picture shows, in its author's words as far as WordNet knows them; None where it names no thing."""
    for place, text in enumerate(candidate.names):
        words = cleaned(text)
        if not words or words[-1] in NOT_NAMES:
            continue
        # a title ends in its noun; a file's name begins with it and goes on with the author's
        phrases = [words[start:] for start in range(len(words))] if place == 0 else [words[:2], words[:1]]
        for start, phrase in enumerate(" ".join(part) for part in phrases):
            if synset := wordnet.find(phrase, candidate.lexicon):
                if start and candidate.whole:
                    break  # an emoji's own name says more than its last word
                known = [word.lower() for word in synset.words]
                return next((form for form in singulars(phrase) if form in known), phrase), synset
        if candidate.whole or (candidate.source == "stamps" and len(words) <= 2):
            return " ".join(words), wordnet.find(words[-1], candidate.lexicon)
    return None


def _usual_words(found: list[tuple[Candidate, tuple[str, Synset | None]]]) -> dict[tuple[str, int], str]:
    """For each (name, synset) the word that most pictures of the synset have."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for _, (name, synset) in found:
        if synset and name in [word.lower() for word in synset.words]:
            counts[synset.offset][name] += 1
    return {(name, offset): counter.most_common(1)[0][0] for offset, counter in counts.items() for name in counter}


def cleaned(text: str) -> list[str]:
    """The words of a title that name what it shows: "A brown potato." gives brown potato."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()
    text = re.sub(r"^(an?|the|this is an?) ", "", text.strip())
    text = re.sub(r"[_\d#/\"“”'’-]+", " ", text) if "t-shirt" not in text else text
    text = _ENDS.split(text.strip() + " ")[0]
    if " of " in text:
        head, _, rest = text.partition(" of ")
        text = rest if head.split() and head.split()[-1].rstrip("s") in _PART_OF else head
    words = _JUNK.sub(" ", re.sub(r"[^a-z -]", " ", text)).split()
    return [word for word in words if len(word) > 1]


def trimmed(picture: PIL.Image.Image) -> PIL.Image.Image | None:
    """RGBA without its transparent border, the longer side at most SIZE; None where next to nothing is left."""
    if picture.format == "PNG" and max(picture.size) > 6000:
        return None  # a few posters, slow to read
    picture.thumbnail((4 * SIZE, 4 * SIZE))
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 if a > 16 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    picture.thumbnail((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    return picture if min(picture.size) >= 16 and max(picture.size) >= 40 else None


def difference_hash(picture: PIL.Image.Image) -> int:
    """64 bits: whether each of 8 x 8 grey points is lighter than its right neighbour (Krawetz 2013, dHash)."""
    white = PIL.Image.new("RGBA", picture.size, "white")
    small = PIL.Image.alpha_composite(white, picture).convert("L").resize((9, 8), PIL.Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    return int("".join("1" if bit else "0" for bit in (grey[:, 1:] > grey[:, :-1]).flatten()), 2)


def _split(entries: Sequence[Entry], hashes: Sequence[int]) -> list[Entry]:
    """Hold out a tenth of stamps and clip art, near-copies together; a near-copy of an emoji stays in training."""
    groups = near_groups(hashes)
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    out = []
    for entry, group in zip(entries, groups, strict=True):
        plain = all(entries[i].source in ("stamps", "clipart") for i in members[group])
        first = entries[members[group][0]].file
        chance = int(hashlib.sha256(f"held out {first}".encode()).hexdigest()[:8], 16) / 2**32
        test = entry.split == "train" and plain and chance < _HELD_OUT
        out.append(Entry(**{**asdict(entry), "split": "test"}) if test else entry)
    return out


def near_groups(hashes: Iterable[int]) -> list[int]:
    """For each hash the first index of its group: pictures that near-copies connect."""
    values = np.array([list(value.to_bytes(8, "big")) for value in hashes], dtype=np.uint8)  # (N, 8)
    ones = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)
    parent = list(range(len(values)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i in range(len(values) - 1):
        for j in np.nonzero(ones[values[i + 1 :] ^ values[i]].sum(1) <= _NEAR)[0]:
            a, b = root(i), root(i + 1 + int(j))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(values))]
