"""smol-suite: can a tiny model name what it is shown, choose, say yes or no, count, and tell where things are?

All pictures are held out from training: stamps and clip art of the catalogue's test split, and the emoji style that is
not trained on. They are composed by a fixed seed, once, in the user's cache. Absent things are asked for as often as
present ones, and drawn from the same names (as POPE does: Li et al. 2023).
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import PIL.Image

from llava.errors import LlavaError
from llava.eval.benchmarks.easy_vqa import Question, choose, load_questions
from llava.fetch import Progress, quiet
from llava.files import atomic_folder
from llava.pictures.catalogue import Catalogue, Entry, load_catalogue, related
from llava.pictures.scenes import scene, single, where

VERSION = 1
NUMBERS = ("zero", "one", "two", "three", "four", "five")
_STYLE, _EACH, _SHAPES = 300, 300, 200  # emoji to name; questions of each other kind; questions of easy-VQA
_SIDES = {"left": "To the left", "right": "To the right", "above": "Above", "below": "Below"}


def load_suite(progress: Progress = quiet) -> list[Question]:
    """All questions; their pictures are made at the first call, for which 350 MB are fetched. Raises LlavaError."""
    catalogue = load_catalogue(progress)
    folder = catalogue.folder.with_name(f"{catalogue.folder.name}-suite-{VERSION}")
    index = folder / "questions.json"
    if not index.exists():
        with atomic_folder(folder) as temporary:
            questions = make_questions(catalogue, temporary, progress=progress)
            index_text = json.dumps([{**asdict(q), "image": q.image.name} for q in questions], indent=0)
            (temporary / index.name).write_text(index_text, encoding="utf-8")
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
        made = [Question(**{**row, "image": folder / row["image"], "accepted": tuple(row["accepted"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LlavaError(f"{index}: damaged ({error}); delete the folder and try again") from None
    shapes = [question for _, question in choose(load_questions("test", progress), _SHAPES)]
    return made + [Question(q.text, q.answer, "easy-VQA", q.image) for q in shapes]


def named(entry: Entry) -> tuple[str, ...]:
    """What counts as its name: the name or one of WordNet's synonyms, with or without an article."""
    return tuple(before + word for word in (entry.name, *entry.also) for before in ("", "a ", "an ", "the "))


def make_questions(
    catalogue: Catalogue, folder: Path, each: int = _EACH, emoji: int = _STYLE, progress: Progress = quiet
) -> list[Question]:
    """The questions about the catalogue's held-out pictures; the same for the same catalogue. Pictures go to `folder`.

    each: questions of each kind but naming. emoji: how many of the unseen style are to be named.
    """
    return _Maker(catalogue, folder, each, emoji, progress).all()


class _Maker:
    def __init__(self, catalogue: Catalogue, folder: Path, each: int, emoji: int, progress: Progress) -> None:
        self.each, self.emoji = each, emoji
        self.catalogue, self.folder, self.progress = catalogue, folder, progress
        self.rng = random.Random(2026)
        self.test, self.style = catalogue.of("test"), catalogue.of("style")
        self.known = {entry.name for entry in catalogue.of("train")}
        self.pool = [*[entry for entry in self.test if entry.name in self.known], *self.style]
        self.questions: list[Question] = []

    def all(self) -> list[Question]:
        for entry in self.test:
            known = entry.name in self.known or self.known & set(entry.also)
            kind = "naming, stamps and clip art" if known else "naming, name not in training"
            picture = single(self.catalogue, entry, self.rng, vary=False)
            self._add(picture, "What is this?", entry.name, kind, named(entry))
        for entry in self.rng.sample(self.style, self.emoji):
            picture = single(self.catalogue, entry, self.rng, vary=False)
            self._add(picture, "What is this?", entry.name, "naming, unseen emoji style", named(entry))
        for make in (self._choice, self._present, self._count, self._where):
            self._repeat(make)
        return self.questions

    def _repeat(self, make: Callable[[int], bool]) -> None:
        done = 0
        while done < self.each:
            done += make(done)

    def _add(self, picture: PIL.Image.Image, text: str, answer: str, kind: str, accepted: tuple[str, ...] = ()) -> None:
        file = self.folder / f"{len(self.questions):05d}.png"
        picture.save(file)
        self.questions.append(Question(text, answer, kind, file, accepted))
        self.progress("making the suite's pictures", len(self.questions), len(self.test) + self.emoji + 4 * self.each)

    def _others(self, shown: list[Entry], number: int) -> list[Entry]:
        found: list[Entry] = []
        while len(found) < number:
            entry = self.rng.choice(self.pool)
            if not any(related(entry, one) for one in [*shown, *found]):
                found.append(entry)
        return found

    def _choice(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        names = [entry.name, *(other.name for other in self._others([entry], 3))]
        self.rng.shuffle(names)
        listed = " ".join(f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True))
        picture = single(self.catalogue, entry, self.rng, vary=False)
        answer = "ABCD"[names.index(entry.name)]
        self._add(picture, f"What is this? {listed} Answer with the letter.", answer, "four-way choice", (entry.name,))
        return True

    def _present(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        asked = entry if done % 2 == 0 else self._others([entry], 1)[0]
        article = "an" if asked.name[0] in "aeiou" else "a"
        picture = single(self.catalogue, entry, self.rng, vary=False)
        self._add(picture, f"Is there {article} {asked.name} in the image?", "no" if done % 2 else "yes", "yes/no")
        return True

    def _count(self, done: int) -> bool:
        entry, number = self.rng.choice(self.pool), done % 5 + 1
        picture, _ = scene(self.catalogue, [entry] * number, self.rng)
        text = "How many things are in the picture?"
        self._add(picture, text, NUMBERS[number], "counting to five", (str(number),))
        return True

    def _where(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        picture, placed = scene(self.catalogue, [entry, *self._others([entry], 1)], self.rng)
        side = where(*placed)
        if side is None:
            return False
        one, other = (thing.entry.name for thing in placed)
        text = f"Where is the {one}, seen from the {other}?"
        self._add(picture, text, _SIDES[side], "position", (side,))
        return True
