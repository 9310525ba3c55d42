"""Names, colours and the split, on pictures and a dictionary made here."""

import random
from functools import partial
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest

from llava.errors import LlavaError
from llava.pictures.catalogue import (
    Entry,
    _split,
    cleaned,
    difference_hash,
    name_of,
    near_groups,
    trimmed,
)
from llava.pictures.imagenet import class_names, class_offsets
from llava.pictures.sources import Candidate
from llava.pictures.wordnet import WordNet

# offset, lexicographer file, words, hypernym
SYNSETS = (
    ("mammal", 5, ("mammal",), None),
    ("dog", 5, ("dog", "domestic_dog"), "mammal"),
    ("poodle", 5, ("poodle", "poodle_dog"), "dog"),
    ("potato", 13, ("potato", "spud"), None),
    ("idea", 9, ("idea",), None),
)


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    """A dictionary in the format of wndb(5WN)."""
    offsets, lines, index = {}, "", "  1 a licence\n"
    for key, lexicon, words, above in SYNSETS:
        offsets[key] = len(lines)
        listed = " ".join(f"{word} 0" for word in words)
        pointers = f"001 @ {offsets[above]:08d} n 0000" if above else "000"
        lines += f"{len(lines):08d} {lexicon:02d} n {len(words):02x} {listed} {pointers} | a thing\n"
        index += "".join(f"{word} n 1 1 @ 1 1 {offsets[key]:08d}  \n" for word in words)
    (tmp_path / "data.noun").write_text(lines)
    (tmp_path / "index.noun").write_text(index)
    return WordNet(tmp_path)


def candidate(*names: str, whole: bool = False, source: str = "clipart") -> Candidate:
    return Candidate(source, "x", names, None, partial(PIL.Image.new, "RGBA", (1, 1)), whole)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("A brown potato.",), "potato"),
        (("Three Poodles with a ball",), "poodle"),
        (("a slice of potato",), "potato"),
        (("xyzzy", "dog jarno "), "dog"),  # the file's name begins with the thing
        (("xyzzy", "jarno dog "), None),  # and goes on with its author
        (("a good idea",), None),  # nothing that one can draw
    ],
)
def test_a_title_gives_the_name_of_what_it_shows(
    names: tuple[str, ...], expected: str | None, wordnet: WordNet
) -> None:
    found = name_of(candidate(*names), wordnet)
    assert (found and found[0]) == expected


def test_an_emoji_keeps_its_whole_name_and_has_the_synset_of_its_last_word(wordnet: WordNet) -> None:
    found = name_of(candidate("guide dog", whole=True), wordnet)
    assert found is not None and found[0] == "guide dog"
    assert found[1] is not None and found[1].words[0] == "dog"


def test_kinds_and_what_stands_above(wordnet: WordNet) -> None:
    poodle, dog = wordnet.find("poodle"), wordnet.find("dogs")
    assert poodle and dog
    assert (wordnet.kind(poodle), wordnet.kind(dog)) == ("dog", "mammal")
    assert dog.offset in wordnet.above(poodle) and poodle.offset not in wordnet.above(dog)


def test_a_class_is_called_by_the_nearest_name_that_pictures_have(wordnet: WordNet) -> None:
    offsets = {key: wordnet.find(key) for key in ("mammal", "dog", "poodle", "potato")}
    found = {key: synset.offset for key, synset in offsets.items() if synset}
    names = [("dog", "dog"), ("guide dog", "dog"), ("animal", "mammal")]  # an emoji, and a name that says too little
    entries = [Entry("", "s", name, (), None, (found[key],), None, "train") for name, key in names]
    asked = [found["poodle"], found["potato"], found["mammal"]]
    assert class_names(wordnet, entries, asked) == ["dog", "potato", "mammal"]


def test_there_are_a_thousand_classes() -> None:
    offsets = class_offsets()
    assert len(offsets) == len(set(offsets)) == 1000
    assert offsets[0] == 1440764 and offsets[285] == 2124075  # tench, Egyptian cat


def test_a_missing_dictionary_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match="WordNet cannot be read"):
        WordNet(tmp_path / "none")


def test_words_of_a_title() -> None:
    assert cleaned("A small RedApple icon_01, by someone") == ["red", "apple"]


def disc(colour: str, shift: int = 0) -> PIL.Image.Image:
    picture = PIL.Image.new("RGBA", (200, 120))
    PIL.ImageDraw.Draw(picture).ellipse((60 + shift, 20, 160 + shift, 110), fill=colour)
    return picture


def test_the_border_is_cut_off_and_an_empty_picture_is_none() -> None:
    cut = trimmed(disc("red"))
    assert cut is not None and cut.size == (101, 91)
    assert trimmed(PIL.Image.new("RGBA", (50, 50))) is None


def test_near_copies_are_one_group_and_others_are_not() -> None:
    bars = [PIL.Image.linear_gradient("L").rotate(turn).convert("RGBA") for turn in (0, 90, 180)]
    noisy = bars[1].copy()
    noisy.putpixel((5, 5), (255, 255, 255, 255))
    groups = near_groups([difference_hash(picture) for picture in (*bars, noisy)])
    assert groups[1] == groups[3]
    assert groups[1] not in (groups[0], groups[2])
    assert near_groups([0, 0b1111, 0b11111111]) == [0, 0, 0]  # connected through the one between them
    assert near_groups([0, 0b11111]) == [0, 1]


def test_near_copies_are_held_out_together_and_only_of_stamps_and_clip_art() -> None:
    def entry(source: str, place: int, split: str) -> Entry:
        return Entry(f"{source}/{place:05d}.png", source, "cat", (), None, (), None, split)

    sources = [("stamps", "clipart", "openmoji", "twemoji")[i % 4] for i in range(800)]
    entries = [entry(source, i, "style" if source == "twemoji" else "train") for i, source in enumerate(sources)]
    code = random.Random(0)
    hashes = [code.getrandbits(64) for _ in entries]
    for i in range(0, 400, 40):
        hashes[i + 1] = hashes[i] ^ 1  # a stamp and a drawing
        hashes[i + 6] = hashes[i + 4]  # a stamp and an emoji
    split = [one.split for one in _split(entries, hashes)]
    assert {source for source, part in zip(sources, split, strict=True) if part == "test"} == {"stamps", "clipart"}
    assert all(part == "style" for source, part in zip(sources, split, strict=True) if source == "twemoji")
    assert 20 <= split.count("test") <= 60  # a tenth of 400
    pairs = [(split[i], split[i + 1]) for i in range(0, 400, 40)]
    assert all(one == other for one, other in pairs)
    assert all(split[i + 4] == "train" == split[i + 6] for i in range(0, 400, 40))
