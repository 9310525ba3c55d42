"""What the 1,000 classes of ImageNet (Russakovsky et al. 2015) are called, in the words of a catalogue.

`imagenet.txt` has the classes' offsets in WordNet 3.0, in the order in which classifiers have them. Source: the list
of ILSVRC 2012, as in timm's `imagenet_synsets.txt`.
"""

from collections.abc import Sequence
from pathlib import Path

from llava.pictures.catalogue import Entry
from llava.pictures.wordnet import WordNet

_MOST_LEVELS = 4  # up from a class to its name: a Shetland sheepdog is a shepherd dog, a working dog, a dog
_TOO_WIDE = {
    "animal", "bird of prey", "body", "building", "clothing", "container", "device", "food", "furniture", "instrument",
    "machine", "man", "object", "part", "person", "plant", "structure", "tool", "vehicle", "woman",
}  # fmt: skip


def class_offsets() -> list[int]:
    """The classes' offsets in WordNet's file of nouns, in the order of a classifier's scores."""
    return [int(line) for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split()]


def class_names(wordnet: WordNet, entries: Sequence[Entry], offsets: Sequence[int]) -> list[str]:
    """For each class the nearest name at or above it that an entry has, else the first of WordNet's words for it."""
    known = {
        entry.above[0]: entry.name
        for entry in entries
        if entry.above and entry.name not in _TOO_WIDE and entry.name in _words(wordnet, entry.above[0])
    }
    return [_nearest(wordnet, offset, known) for offset in offsets]


def _nearest(wordnet: WordNet, offset: int, known: dict[int, str]) -> str:
    level = [offset]
    for _ in range(_MOST_LEVELS + 1):
        for found in level:
            if found in known:
                return known[found]
        level = [up for found in level for up in wordnet.synset(found).above]
    return _words(wordnet, offset)[0]


def _words(wordnet: WordNet, offset: int) -> list[str]:
    return [word.lower() for word in wordnet.synset(offset).words]
