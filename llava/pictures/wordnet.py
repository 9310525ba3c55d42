"""Nouns of WordNet 3.0 (Fellbaum 1998): which words name the same thing, and what kind of thing it is.

Read from the database files `index.noun` and `data.noun` (their format: wndb(5WN)).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava.errors import LlavaError

# lexicographer files (lexnames(5WN)) of things that one can draw
CONCRETE = {5: "animal", 6: "object", 8: "part of the body", 13: "food", 17: "object", 18: "person", 20: "plant"}
_ANIMAL, _PERSON = 5, 18
_DRAWN_TOO = {
    "snowflake",
    "rainbow",
    "lightning",
    "cloud",
    "fire",
    "flame",
    "heart",
    "star",
    "circle",
    "triangle",
}  # stand elsewhere
# What a thing may be called when its kind is asked for: the nearest of these words above it
KINDS = (
    "bird", "fish", "insect", "reptile", "amphibian", "dinosaur", "spider", "crustacean", "dog", "cat", "horse",
    "monkey", "mammal", "animal", "flower", "tree", "mushroom", "vegetable", "fruit", "plant", "dessert", "drink",
    "beverage", "bread", "meat", "food", "car", "truck", "boat", "ship", "aircraft", "train", "bicycle", "vehicle",
    "building", "furniture", "hat", "shoe", "clothing", "instrument", "tool", "weapon", "toy", "ball", "computer",
    "container", "kitchenware", "lamp", "clock", "electronic_equipment", "musical_instrument", "jewelry", "machine",
    "device", "person", "body_part", "structure", "planet", "star",
)  # fmt: skip
_KIND_NAMES = {"beverage": "drink", "dinosaur": "dinosaur", "body_part": "part of the body"}


@dataclass(frozen=True)
class Synset:
    """Words for one thing, the usual one first, the lexicographer file it stands in, and the things above it."""

    offset: int
    words: tuple[str, ...]
    lexicon: int
    above: tuple[int, ...]


class WordNet:
    """The nouns. Raises LlavaError when the files are missing or damaged."""

    def __init__(self, folder: Path) -> None:
        try:
            index = (folder / "index.noun").read_text(encoding="utf-8").splitlines()
            self._data = (folder / "data.noun").read_bytes()
        except OSError as error:
            raise LlavaError(
                f"{folder}: WordNet cannot be read ({error.strerror}); delete the folder and try again"
            ) from None
        self._offsets: dict[str, list[int]] = {}
        for line in index:
            if line.startswith(" "):  # the licence
                continue
            fields = line.split()
            self._offsets[fields[0]] = [int(offset) for offset in fields[-int(fields[2]) :]]
        self._synsets: dict[int, Synset] = {}

    def synset(self, offset: int) -> Synset:
        """The synset at a byte offset of `data.noun`."""
        if offset not in self._synsets:
            line = self._data[offset : self._data.index(b"\n", offset)].decode()
            fields = line.split(" | ")[0].split()
            count = int(fields[3], 16)
            words = tuple(fields[4 + 2 * i].replace("_", " ") for i in range(count))
            rest = fields[5 + 2 * count :]
            above = tuple(int(rest[i + 1]) for i in range(0, len(rest) - 3, 4) if rest[i] == "@")
            self._synsets[offset] = Synset(offset, words, int(fields[1]), above)
        return self._synsets[offset]

    def find(self, phrase: str, prefer: int | None = None) -> Synset | None:
        """What a word or phrase, also in the plural, names, if it is a thing that one can draw.

        prefer: a lexicographer file; a common sense that stands in it is taken before a more common one.
        """
        for word in singulars(phrase.lower().replace(" ", "_")):
            senses = [self.synset(offset) for offset in self._offsets.get(word, [])[:5]]
            likely = senses if prefer == _ANIMAL else senses[:3]
            if prefer is not None and (found := [s for s in likely if s.lexicon == prefer]):
                return found[0]
            wanted = [lexicon for lexicon in CONCRETE if lexicon != _PERSON or prefer in (None, _PERSON)]
            if found := [s for s in senses[:2] if s.lexicon in wanted or word in _DRAWN_TOO]:
                return found[0]
        return None

    def above(self, synset: Synset) -> set[int]:
        """The offsets of everything that the synset is a kind of, itself included."""
        seen, left = set(), [synset.offset]
        while left:
            offset = left.pop()
            if offset not in seen:
                seen.add(offset)
                left += self.synset(offset).above
        return seen

    @cached_property
    def _kinds(self) -> dict[int, str]:
        first = {word: self._offsets[word] for word in KINDS if word in self._offsets}
        concrete = {w: [o for o in found if self.synset(o).lexicon in CONCRETE][:1] for w, found in first.items()}
        return {found[0]: word for word, found in concrete.items() if found}

    def kind(self, synset: Synset) -> str | None:
        """The nearest of KINDS above the synset, itself excluded: a collie is a dog, a dog a mammal."""
        level, seen = list(synset.above), {synset.offset}
        while level:
            for offset in level:
                if offset in self._kinds:
                    word = self._kinds[offset]
                    return _KIND_NAMES.get(word, word.replace("_", " "))
            seen.update(level)
            level = [up for offset in level for up in self.synset(offset).above if up not in seen]
        return None


def singulars(word: str) -> list[str]:
    """The word, and what it may be the plural of."""
    forms = [word]
    for ending, replacement in (("ies", "y"), ("ves", "f"), ("es", ""), ("s", "")):
        if word.endswith(ending) and not word.endswith("ss"):
            forms.append(re.sub(f"{ending}$", replacement, word))
    return forms
