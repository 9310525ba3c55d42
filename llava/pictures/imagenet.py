"""What the 1,000 classes of ImageNet (Russakovsky et al. 2015) are called, in the words of a catalogue.

`imagenet.txt` has the classes' offsets in WordNet 3.0, in the order in which classifiers have them. Source: the list
of ILSVRC 2012, as in timm's `imagenet_synsets.txt`.
"""

from collections.abc import Sequence
from pathlib import Path

from llava.pictures.catalogue import Entry
from llava.pictures.wordnet import WordNet

_MOST_LEVELS = 6  # up from a class to its name: a Shetland sheepdog is a shepherd dog, a working dog, a dog
_TOO_WIDE = {
    "animal", "bird of prey", "body", "building", "clothing", "connector", "container", "device", "food", "fruit",
    "furniture", "instrument", "machine", "man", "object", "part", "person", "plant", "structure", "tool", "upright",
    "vehicle", "vino", "woman",
}  # fmt: skip


def class_offsets() -> list[int]:
    """The classes' offsets in WordNet's file of nouns, in the order of a classifier's scores."""
    return [int(line) for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split()]


def class_names(wordnet: WordNet, entries: Sequence[Entry], offsets: Sequence[int]) -> list[str]:
    """For each class its own first word where an entry has it as its name, else the nearest name above it that an entry
    has, else that first word.
    """
    names = {entry.name for entry in entries}
    known = {
        entry.above[0]: entry.name
        for entry in entries
        if entry.above and entry.name not in _TOO_WIDE and entry.name in _words(wordnet, entry.above[0])
    }
    words = [_words(wordnet, offset)[0] for offset in offsets]
    return [
        word if word in names else _nearest(wordnet, offset, known) or word
        for word, offset in zip(words, offsets, strict=True)
    ]


def _nearest(wordnet: WordNet, offset: int, known: dict[int, str]) -> str | None:
    level = [offset]
    for _ in range(_MOST_LEVELS + 1):
        for found in level:
            if found in known:
                return known[found]
        level = [up for found in level for up in wordnet.synset(found).above]
    return None


def _words(wordnet: WordNet, offset: int) -> list[str]:
    return [word.lower() for word in wordnet.synset(offset).words]
