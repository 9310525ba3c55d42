"""smol-suite: can a tiny model name what it is shown, choose, say yes or no, count, tell places, sizes and colours?

All pictures are held out from training: stamps and clip art of the catalogue's test split, the emoji style that is not
trained on, and photographs. They are composed by a fixed seed, once, in the user's cache. Absent things are asked for
as often as present ones, and drawn from the same names (as POPE does: Li et al. 2023). Questions without a picture show
what tuning has cost the LLM.
"""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import PIL.Image

from llava.errors import LlavaError
from llava.eval.benchmarks.easy_vqa import load_questions
from llava.eval.benchmarks.smol_names import EMOJI, rightly_named
from llava.eval.question import Question, by_image
from llava.fetch import Progress, fetch, quiet
from llava.files import atomic_folder
from llava.pictures.catalogue import Catalogue, Entry, load_catalogue, related
from llava.pictures.colours import has_colour_word
from llava.pictures.english import article
from llava.pictures.scenes import larger, scene, single, where
from llava.registry import MORE_PHOTOGRAPHS, PHOTOGRAPHS

VERSION = 5
NUMBERS = ("zero", "one", "two", "three", "four", "five")
_STYLE, _EACH, _SHAPES = 300, 300, 200  # emoji to name; questions of each other kind; questions of easy-VQA
TEXT = "without a picture"
SIDES = {"left": "To the left", "right": "To the right", "above": "Above", "below": "Below"}

_PHOTOGRAPHS = {  # of scikit-image
    "astronaut.png": ("astronaut", "spaceman", "cosmonaut", "woman", "woman astronaut"),
    "camera.png": ("cameraman", "photographer", "camera", "movie camera", "man", "man with a camera"),
    "chelsea.png": ("cat", "cat face", "kitten", "tabby", "tabby cat", "kitty", "domestic cat"),
    "clock_motion.png": ("clock", "alarm clock", "wall clock", "watch"),
    "coffee.png": ("cup of coffee", "coffee", "cup", "coffee cup", "hot beverage", "espresso"),
    "coins.png": ("coin", "coins", "money"),
    "horse.png": ("horse",),
    "moon.png": ("moon", "full moon", "moon surface", "crater"),
    "motorcycle_left.png": ("motorcycle", "motorbike", "bike", "motor scooter"),
    "rocket.jpg": ("rocket", "spaceship", "missile", "projectile"),
}
# Of OpenCV's examples: every one that shows one thing, one kind of thing or one place, except the second of a pair. The
# names were written from the pictures alone, before any model was asked.
_MORE_PHOTOGRAPHS = {
    "alphamat/input_images/plant.jpg": ("plant", "potted plant", "pot plant", "houseplant", "flowerpot", "grass"),
    "data/aloeL.jpg": ("aloe", "aloe vera", "plant", "potted plant", "pot plant", "houseplant", "succulent"),
    "data/apple.jpg": ("apple", "red apple", "fruit"),
    "data/baboon.jpg": ("baboon", "mandrill", "monkey"),
    "data/board.jpg": ("circuit board", "circuit", "motherboard", "computer board", "electronics", "chip"),
    "data/box.png": ("box", "package", "carton", "packet"),
    "data/building.jpg": ("building", "hotel", "apartment building", "office building", "office", "hospital"),
    "data/butterfly.jpg": ("butterfly", "insect"),
    "data/chicky_512.png": ("dog", "dog face", "puppy", "lapdog", "pekinese", "tibetan spaniel"),
    "data/ela_original.jpg": ("notebook", "book", "notepad", "diary", "binder"),
    "data/fruits.jpg": ("fruit", "fruits", "orange", "oranges", "citrus", "citrus fruit", "lemon"),
    "data/home.jpg": ("building", "palace", "church", "temple", "tower", "house", "cathedral", "dome"),
    "data/leuvenA.jpg": ("street", "houses", "house", "building", "buildings", "town", "village", "alley", "square"),
    "data/licenseplate_motion.jpg": ("car", "automobile", "auto", "car rear", "vehicle"),
    "data/messi5.jpg": ("soccer player", "football player", "footballer", "football", "soccer", "player", "man"),
    "data/orange.jpg": ("orange", "fruit", "tangerine", "mandarin"),
    "data/smarties.png": ("candy", "candies", "sweet", "sweets", "chocolate", "smarties"),
    "data/squirrel_cls.jpg": ("squirrel", "chipmunk"),
    "data/sudoku.png": ("sudoku", "puzzle", "crossword puzzle", "crossword", "newspaper"),
    "dnn_superres/butterfly.png": ("butterfly", "monarch butterfly", "wing", "insect"),
    "hfs/data/000.jpg": ("bird", "robin", "songbird"),
    "hfs/data/001.jpg": ("lake", "river", "water", "lakeside"),
    "hfs/data/002.jpg": ("tree",),
}
_KNOWLEDGE: list[tuple[str, tuple[str, ...]]] = [
    ("What is the capital of France?", ("Paris",)),
    ("What is the capital of Japan?", ("Tokyo",)),
    ("What is the capital of Italy?", ("Rome",)),
    ("What is the capital of Germany?", ("Berlin",)),
    ("What is the capital of Spain?", ("Madrid",)),
    ("What is the capital of Russia?", ("Moscow",)),
    ("What is the capital of China?", ("Beijing",)),
    ("What is the capital of Egypt?", ("Cairo",)),
    ("What is the capital of Greece?", ("Athens",)),
    ("What is the capital of England?", ("London",)),
    ("Which planet do we live on?", ("Earth",)),
    ("Which planet is the largest of the solar system?", ("Jupiter",)),
    ("Which planet is called the red planet?", ("Mars",)),
    ("What do bees make?", ("honey",)),
    ("What do cows give us to drink?", ("milk",)),
    ("What is frozen water called?", ("ice",)),
    ("What is the chemical formula of water?", ("H2O", "H₂O")),
    ("What is the chemical symbol of gold?", ("Au",)),
    ("Which gas do we breathe in to live?", ("oxygen",)),
    ("Which gas do plants take from the air?", ("carbon dioxide", "CO2")),
    ("How many days are in a week?", ("seven", "7")),
    ("How many months are in a year?", ("twelve", "12")),
    ("How many hours are in a day?", ("twenty-four", "24")),
    ("How many minutes are in an hour?", ("sixty", "60")),
    ("How many legs does a spider have?", ("eight", "8")),
    ("How many legs does a dog have?", ("four", "4")),
    ("How many wheels does a bicycle have?", ("two", "2")),
    ("How many sides does a triangle have?", ("three", "3")),
    ("How many continents are there?", ("seven", "7")),
    ("Which month comes after January?", ("February",)),
    ("Which day comes after Monday?", ("Tuesday",)),
    ("Which season comes after winter?", ("spring",)),
    ("What is the opposite of hot?", ("cold",)),
    ("What is the opposite of up?", ("down",)),
    ("What is the opposite of big?", ("small", "little")),
    ("What is the opposite of day?", ("night",)),
    ("What is the opposite of black?", ("white",)),
    ("What is the opposite of happy?", ("sad", "unhappy")),
    ("What color is the sky on a clear day?", ("blue",)),
    ("What color is grass?", ("green",)),
    ("What color is a ripe banana?", ("yellow",)),
    ("What color is snow?", ("white",)),
    ("What color is blood?", ("red",)),
    ("What is the young of a cat called?", ("kitten", "kittens")),
    ("What is the young of a dog called?", ("puppy", "pup", "puppies")),
    ("Which animal says moo?", ("cow", "cows")),
    ("Which animal barks?", ("dog", "dogs")),
    ("Which is the largest animal in the sea?", ("whale", "blue whale")),
    ("Which animal is the king of the jungle?", ("lion",)),
    ("Who wrote Romeo and Juliet?", ("Shakespeare",)),
    ("Who painted the Mona Lisa?", ("Leonardo", "da Vinci")),
    ("Who was the first president of the United States?", ("Washington",)),
    ("Who discovered gravity when an apple fell?", ("Newton",)),
    ("Who developed the theory of relativity?", ("Einstein",)),
    ("In which country is the Eiffel Tower?", ("France",)),
    ("In which country are the pyramids of Giza?", ("Egypt",)),
    ("On which continent is Brazil?", ("South America",)),
    ("On which continent is Kenya?", ("Africa",)),
    ("Which ocean is the largest?", ("Pacific",)),
    ("Which mountain is the highest on Earth?", ("Everest",)),
    ("Which language is spoken in Brazil?", ("Portuguese",)),
    ("Which language is spoken in Mexico?", ("Spanish",)),
    ("Which organ pumps blood through the body?", ("heart",)),
    ("Which organ do we think with?", ("brain",)),
    ("What do we use to hear?", ("ears", "ear")),
    ("What do we call a person who teaches?", ("teacher",)),
    ("What do we call a person who flies a plane?", ("pilot",)),
    ("What do we call the place where books are lent?", ("library",)),
    ("What do we call the star that gives us light by day?", ("sun",)),
    ("At how many degrees Celsius does water boil?", ("100",)),
    ("What is the last letter of the English alphabet?", ("Z",)),
    ("What is the plural of mouse?", ("mice",)),
    ("What is the plural of child?", ("children",)),
    ("What is the past tense of go?", ("went",)),
    ("What is the French word for hello?", ("bonjour", "salut")),
    ("Which fruit is cider made of?", ("apple", "apples")),
    ("What is bread made of?", ("flour",)),
    ("What is cheese made of?", ("milk",)),
    ("Which metal is attracted by a magnet?", ("iron", "steel", "nickel")),
]  # fmt: skip
_SUMS = ((2, 3), (1, 1), (2, 2), (1, 3), (1, 4))


def load_suite(progress: Progress = quiet) -> list[Question]:
    """All questions; their pictures are made at the first call, for which 500 MB are fetched. Raises LlavaError."""
    catalogue = load_catalogue(progress)
    folder = catalogue.folder.with_name(f"{catalogue.folder.name}-suite-{VERSION}")
    index = folder / "questions.json"
    if not index.exists():
        with atomic_folder(folder) as temporary:
            questions = make_questions(catalogue, temporary, progress=progress)
            rows = [{**asdict(q), "image": q.image and q.image.name} for q in questions]
            index_text = json.dumps(rows, indent=0)
            (temporary / index.name).write_text(index_text, encoding="utf-8")
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))
        made = [Question(**{**row, "image": folder / row["image"], "accepted": tuple(row["accepted"])}) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LlavaError(f"{index}: damaged ({error}); delete the folder and try again") from None
    made += one_of_each(load_questions("test", progress))
    made += photographs(fetch(PHOTOGRAPHS, progress))
    return made + more_photographs(fetch(MORE_PHOTOGRAPHS, progress)) + without_picture()


def one_of_each(questions: list[Question], number: int = _SHAPES) -> list[Question]:
    """Of so many pictures one question each: those of one picture are not independent of each other."""
    rng, about = random.Random(2026), by_image(questions)
    chosen = [rng.choice(about[image]) for image in rng.sample(sorted(about), number)]
    return [Question(q.text, q.answer, "easy-VQA", q.image) for q in chosen]


def photographs(folder: Path) -> list[Question]:
    """Ten photographs that come with scikit-image."""
    return _what_is_this(folder, _PHOTOGRAPHS, "photographs of scikit-image")


def more_photographs(folder: Path) -> list[Question]:
    """Photographs that come with OpenCV's examples."""
    return _what_is_this(folder, _MORE_PHOTOGRAPHS, "photographs of OpenCV")


def _what_is_this(folder: Path, names: dict[str, tuple[str, ...]], kind: str) -> list[Question]:
    return [
        Question("What is this?", right[0], kind, folder / file, _with_article(right)) for file, right in names.items()
    ]


def without_picture() -> list[Question]:
    """Questions that a small LLM can know."""
    asked = _KNOWLEDGE + [(f"What is {a} plus {b}?", (str(a + b), NUMBERS[a + b])) for a, b in _SUMS]
    return [Question(text, right[0], TEXT, None, right, free=True) for text, right in asked]


def named(entry: Entry) -> tuple[str, ...]:
    """What counts as its name: the name or one of WordNet's synonyms, with or without an article."""
    return _with_article((entry.name, *entry.also))


def _with_article(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(before + word for word in words for before in ("", "a ", "an ", "the "))


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
        self.test = [named for entry in catalogue.of("test") if (named := rightly_named(entry))]
        self.style = [replace(entry, also=(*entry.also, *EMOJI.get(entry.name, ()))) for entry in catalogue.of("style")]
        self.known = {entry.name for entry in catalogue.of("train")}
        self.pool = [*[entry for entry in self.test if entry.name in self.known], *self.style]
        self.questions: list[Question] = []

    def all(self) -> list[Question]:
        for entry in self.test:
            known = entry.name in self.known or self.known & set(entry.also)
            kind = "naming, stamps and clip art" if known else "naming, name of no training picture"
            picture = single(self.catalogue, entry, self.rng, vary=False)
            self._add(picture, "What is this?", entry.name, kind, named(entry))
        for entry in self.rng.sample(self.style, self.emoji):
            picture = single(self.catalogue, entry, self.rng, vary=False)
            self._add(picture, "What is this?", entry.name, "naming, unseen emoji style", named(entry))
        for make in (self._choice, self._present, self._count, self._where, self._size, self._colour):
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
        self.progress("making the suite's pictures", len(self.questions), len(self.test) + self.emoji + 6 * self.each)

    def _others(self, shown: list[Entry], number: int) -> list[Entry]:
        found: list[Entry] = []
        while len(found) < number:
            entry = self.rng.choice(self.pool)
            if not any(related(entry, one) for one in [*shown, *found]):
                found.append(entry)
        return found

    def _choice(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        names = [one.name for one in (entry, *self._others([entry], 3))]
        self.rng.shuffle(names)
        one, two, three, four = (article(name) for name in names)
        picture = single(self.catalogue, entry, self.rng, vary=False)
        text = f"What is this: {one}, {two}, {three} or {four}?"
        self._add(picture, text, entry.name, "four-way choice", _with_article((entry.name,)))
        return True

    def _present(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        asked = entry if done % 2 == 0 else self._others([entry], 1)[0]
        picture = single(self.catalogue, entry, self.rng, vary=False)
        self._add(picture, f"Is there {article(asked.name)} in the image?", "no" if done % 2 else "yes", "yes/no")
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
        self._add(picture, text, SIDES[side], "position", (side,))
        return True

    def _size(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        picture, (one, other) = scene(self.catalogue, [entry, *self._others([entry], 1)], self.rng, least=0.35)
        if not larger(one, other):
            return False
        names = [one.entry.name, other.entry.name]
        right, asked = (names[0], "larger") if done % 2 == 0 else (names[1], "smaller")
        self.rng.shuffle(names)
        text = f"Which is {asked} in the picture, the {names[0]} or the {names[1]}?"
        self._add(picture, text, right, "size, of two", _with_article((right,)))
        return True

    def _colour(self, done: int) -> bool:
        entry = self.rng.choice(self.pool)
        if entry.colour is None or has_colour_word(entry.name):
            return False
        picture, _ = scene(self.catalogue, [entry, *self._others([entry], 1)], self.rng)
        also = {"light blue": ("blue",), "gray": ("grey",)}.get(entry.colour, ())
        self._add(picture, f"What color is the {entry.name}?", entry.colour, "colour, of two things", also)
        return True
