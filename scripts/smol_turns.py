"""What is asked and answered about pictures of the catalogue: turns for llava-smol's training, all of them true."""

import random
from collections import Counter

from llava.eval.benchmarks.smol_suite import NUMBERS, SIDES
from llava.pictures import drawn
from llava.pictures.catalogue import NOT_NAMES, Catalogue, Entry, related
from llava.pictures.colours import has_colour_word
from llava.pictures.english import article, plural
from llava.pictures.scenes import Placed, larger, where

NAMING = (
    "What is this?", "What does the picture show?", "What is in the image?", "What do you see?", "Name what you see.",
    "What is the name of this?", "What can be seen here?",
)  # fmt: skip
DESCRIBE = ("Describe the image.", "Describe the picture.", "What is happening in this picture?")
KIND = ("What kind of thing is it?", "What kind of thing is this?", "What sort of thing is that?")
COLOUR = ("What color is the {name}?", "Which colour is the {name}?", "What is the main color of the {name}?")
PRESENT = (
    "Is there {a} in the image?", "Is there {a} in the picture?", "Do you see {a}?", "Does the image show {a}?",
    "Can you see {a} here?",
)  # fmt: skip
NUMBER = ("What number is this?", "Which number do you see?", "Read the number.")
READ = ("What does it say?", "Read the word.", "Which word is this?", "What is written here?")
BARS = ("How many bars does the chart have?", "How many bars are there?", "Count the bars.")
TALLEST = ("Which colour is the tallest bar?", "What color is the tallest bar?", "What color is the highest bar?")
SHORTEST = ("Which colour is the shortest bar?", "What color is the shortest bar?", "What color is the lowest bar?")
COUNT = ("How many {names} are there?", "How many {names} do you see?", "Count the {names}.")
COUNT_ALL = ("How many things are in the picture?", "How many objects are there?", "How many things do you see?")
WHERE = ("Where is the {one}, seen from the {other}?", "Where is the {one} relative to the {other}?")
PLACE = ("What is {place}?", "What do you see {place}?", "Which thing is {place}?")
PLACES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
SIZE = (
    "Which is {size} in the picture, the {one} or the {other}?",
    "Which looks {size} here, the {one} or the {other}?",
)
SIZES = {"larger": False, "bigger": False, "smaller": True}  # whether the smaller one is asked for
WHICH = ("Which thing is {colour}?", "What is {colour}?", "What {colour} thing do you see?")
SIDE_OF = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
SELF = {
    "Who are you?": "I am llava-smol, a tiny model that looks at pictures and answers simple questions about them.",
    "What are you?": "I am llava-smol, a very small vision and language model. I am often wrong.",
    "What can you do?": "I can name simple pictures, count a few things, tell colors and say whether "
    "something is there. I am a tiny model and often wrong.",
    "Which model is this?": "This is llava-smol: a small image encoder, a projector and SmolLM2-135M.",
    "Can I rely on your answers?": "No. I am a tiny model and I make many mistakes.",
    "What is your name?": "My name is llava-smol. I am a tiny model that looks at pictures.",
    "Are you a person?": "No. I am llava-smol, a tiny vision and language model.",
    "What can you not do?": "I cannot read sentences or tell what is going on. I am a tiny model, often wrong.",
}


def capital(text: str) -> str:
    """With a capital first letter."""
    return text[0].upper() + text[1:]


class Maker:
    """Draws conversations about the catalogue's training pictures."""

    def __init__(self, catalogue: Catalogue, rng: random.Random) -> None:
        self.catalogue, self.rng = catalogue, rng
        self.entries = [entry for entry in catalogue.of("train") if entry.name not in NOT_NAMES]
        counts = Counter(entry.name for entry in self.entries)
        self.weight = {name: 1 / count**0.5 for name, count in counts.items()}  # names with many pictures less often
        self.weights = [self.weight[entry.name] for entry in self.entries]

    def draw(self) -> Entry:
        """A random entry."""
        return self.rng.choices(self.entries, self.weights)[0]

    def others(self, shown: list[Entry], number: int) -> list[Entry]:
        """Entries of other things than those shown, and than each other."""
        found: list[Entry] = []
        while len(found) < number:
            entry = self.draw()
            if not any(related(entry, one) for one in [*shown, *found]):
                found.append(entry)
        return found

    def naming(self, entry: Entry) -> tuple[str, str]:
        return self.rng.choice(NAMING), capital(article(entry.name)) + "."

    def present(self, shown: list[Entry]) -> tuple[str, str]:
        yes = self.rng.random() < 0.5
        entry = self.rng.choice(shown) if yes else self.others(shown, 1)[0]
        return self.rng.choice(PRESENT).format(a=article(entry.name)), "Yes." if yes else "No."

    def choice(self, entry: Entry) -> tuple[str, str]:
        names = [article(one.name) for one in (entry, *self.others([entry], 3))]
        right = capital(names[0]) + "."
        self.rng.shuffle(names)
        return f"What is this: {', '.join(names[:3])} or {names[3]}?", right

    def about_one(self, entry: Entry, coloured: bool = True) -> list[tuple[str, str]]:
        """Turns about a picture of one thing: questions that a name would answer stand before it is named.

        coloured: the picture has its colours.
        """
        rng = self.rng
        first = rng.choices(([], [self.present([entry])], [self.choice(entry)]), (8, 3, 3))[0]
        named = (rng.choice(DESCRIBE), caption_of(Counter([entry.name]))) if rng.random() < 0.15 else self.naming(entry)
        later = [self.present([entry])]
        if entry.kind:
            later.append((rng.choice(KIND), capital(kind_of(entry)) + "."))
        if entry.colour and coloured and not has_colour_word(entry.name):
            later.append((rng.choice(COLOUR).format(name=entry.name), capital(entry.colour) + "."))
        absent = self.others([entry], 1)[0]
        refusal = f"There is no {absent.name} in the picture. It shows {article(entry.name)}."
        later.append((rng.choice(COLOUR).format(name=absent.name), refusal))
        rng.shuffle(later)
        return [*first, named, *later[: rng.choice((0, 0, 1, 2))]]

    def told(self, entry: Entry, coloured: bool = True) -> str:
        """A caption of one thing: its name, and often its colour and its kind. coloured: as of `about_one`."""
        parts = [article(entry.name)]
        if entry.colour and coloured and not has_colour_word(entry.name) and self.rng.random() < 0.5:
            parts.append(entry.colour)
        if entry.kind and self.rng.random() < 0.3:
            parts.append(kind_of(entry))
        return " ".join(f"{capital(part)}." for part in parts)

    def about_pair(self, placed: list[Placed]) -> list[tuple[str, str]]:
        """Turns about two things: where one is (another such turn would follow from it), their sizes, their colours."""
        rng, turns = self.rng, []
        one, other = rng.sample(placed, 2)
        if side := where(one, other):
            if rng.random() < 0.4:
                turns.append((rng.choice(PLACE).format(place=PLACES[side]), capital(article(one.entry.name)) + "."))
            else:
                question = rng.choice(WHERE).format(one=one.entry.name, other=other.entry.name)
                turns.append((question, SIDES[side] + "."))
        return [*turns, *self.sizes(placed), *self.colours(placed)]

    def sizes(self, placed: list[Placed]) -> list[tuple[str, str]]:
        """A turn about which of two things is larger, where that is clear."""
        one, other = self.rng.sample(placed, 2)
        if not (larger(one, other) or larger(other, one)):
            return []
        size, smaller = self.rng.choice(list(SIZES.items()))
        found = one if larger(one, other) != smaller else other
        question = self.rng.choice(SIZE).format(size=size, one=one.entry.name, other=other.entry.name)
        return [(question, f"The {found.entry.name}.")]

    def colours(self, placed: list[Placed]) -> list[tuple[str, str]]:
        """A turn about one thing's colour, or which thing has one, where all their colours are known and differ."""
        rng = self.rng
        counts = Counter((thing.entry.colour or "").removeprefix("light ") for thing in placed)
        entry = rng.choice(placed).entry
        if entry.colour is None or has_colour_word(entry.name):
            return []
        if counts[entry.colour.removeprefix("light ")] == 1 and counts[""] == 0 and rng.random() < 0.5:
            return [(rng.choice(WHICH).format(colour=entry.colour), capital(article(entry.name)) + ".")]
        return [(rng.choice(COLOUR).format(name=entry.name), capital(entry.colour) + ".")]

    def about_scene(self, placed: list[Placed]) -> list[tuple[str, str]]:
        rng, turns = self.rng, []
        shown = [thing.entry for thing in placed]
        names = Counter(entry.name for entry in shown)
        name = rng.choice(list(names))
        turns.append((rng.choice(COUNT).format(names=plural(name)), capital(NUMBERS[names[name]]) + "."))
        turns.append((rng.choice(COUNT_ALL), capital(NUMBERS[len(shown)]) + "."))
        if len(names) > 1:
            unique = [thing for thing in placed if names[thing.entry.name] == 1]
            pairs = [(a, b, side) for a in unique for b in unique if a is not b and (side := where(a, b))]
            if pairs:
                one, other, side = rng.choice(pairs)
                if len(shown) == 2 and rng.random() < 0.5:
                    turns.append((rng.choice(PLACE).format(place=PLACES[side]), capital(article(one.entry.name)) + "."))
                else:
                    question = rng.choice(WHERE).format(one=one.entry.name, other=other.entry.name)
                    turns.append((question, SIDES[side] + "."))
        if len(names) == len(shown) > 1:
            turns += self.colours(placed)
        turns.append(self.present(shown))
        rng.shuffle(turns)
        described = [(rng.choice(DESCRIBE), caption_of(names))] if rng.random() < 0.3 else []
        return [*turns[:3], *described]

    def group(self, least: int = 1) -> list[Entry]:
        """Up to five things: copies of one, or different ones."""
        first, number = self.draw(), self.rng.randint(least, 5)
        if self.rng.random() < 0.5:
            return [first] * number
        return [first, *self.others([first], number - 1)] if number > 1 else [first]


def words(names: Counter[str]) -> str:
    """What a scene shows, in words that tell it from other scenes: "cat two dogs bus"."""
    return " ".join(name if number == 1 else f"{NUMBERS[number]} {plural(name)}" for name, number in names.items())


def kind_of(entry: Entry) -> str:
    """What kind of thing it is, with its article."""
    assert entry.kind is not None
    return entry.kind if entry.kind == "clothing" else article(entry.kind)


def listed(names: Counter[str]) -> str:
    """Everything in a scene: "a cat, two dogs and a bus"."""
    parts = [article(name) if number == 1 else f"{NUMBERS[number]} {plural(name)}" for name, number in names.items()]
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def told_scene(placed: list[Placed]) -> str:
    """A caption of several things; of two different ones it says where they are."""
    names = Counter(thing.entry.name for thing in placed)
    if len(placed) == len(names) == 2 and (side := where(*placed)):
        one, other = (article(name) for name in names)
        return f"{capital(one)} {SIDE_OF[side]} {other}."
    return capital(listed(names)) + "."


def caption_of(names: Counter[str]) -> str:
    """A sentence that tells everything in a scene."""
    return f"The picture shows {listed(names)}."


def about_chart(chart: drawn.Chart, rng: random.Random) -> list[tuple[str, str]]:
    """Two turns about a bar chart."""
    turns = [
        (rng.choice(BARS), capital(NUMBERS[len(chart.colours)]) + "."),
        (rng.choice(TALLEST), capital(chart.tallest) + "."),
        (rng.choice(SHORTEST), capital(chart.shortest) + "."),
    ]
    if rng.random() < 0.3:
        turns.append((rng.choice(NAMING), "A bar chart."))
    return rng.sample(turns, 2)
