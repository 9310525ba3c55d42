"""Make the training data of llava-smol: captions for both parts of stage 1, conversations for stage 2.

    python scripts/smol_data.py data/llava-smol

writes match.json (captions in a few words), align.json (the same pictures in sentences), finetune.json, images/ and
card.html (sources, licences, counts, examples). Pictures come from the
catalogue's training split (stamps, clip art, children's games, emoji in seven styles; see llava/pictures), alone and
composed to scenes of up to five things, from easy-VQA's training split, and from llava/pictures/drawn.py (shapes,
numbers, words, bar charts). On request some are to be taken for classes of photographs that an encoder knows. Replies
without a picture are SmolLM2's own, so that what it says there stays what it was.
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava.cli.progress import bars
from llava.errors import LlavaError
from llava.eval.benchmarks.easy_vqa import load_questions
from llava.eval.benchmarks.smol_suite import NUMBERS, SIDES
from llava.eval.question import by_image
from llava.fetch import fetch
from llava.files import atomic_folder
from llava.pictures import drawn
from llava.pictures.catalogue import NOT_NAMES, Catalogue, Entry, load_catalogue, related
from llava.pictures.colours import has_colour_word
from llava.pictures.english import article, plural
from llava.pictures.imagenet import class_names, class_offsets
from llava.pictures.scenes import Placed, larger, where
from llava.pictures.wordnet import WordNet
from llava.registry import PICTURES

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripts import easy_vqa_data, smol_card, smol_text
from scripts.smol_pictures import Picture, make_pictures

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


def row(name: str, turns: list[tuple[str, str]], image: str | None) -> dict[str, object]:
    """A row of LLaVA's JSON."""
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    if image is None:
        return {"id": name, "conversations": said}
    said[0]["value"] = "<image>\n" + said[0]["value"]
    return {"id": name, "image": image, "conversations": said}


@dataclass
class Rows:
    """The rows of each file."""

    match: list[dict[str, object]] = field(default_factory=list)
    align: list[dict[str, object]] = field(default_factory=list)
    finetune: list[dict[str, object]] = field(default_factory=list)

    def caption(self, name: str, image: str, words: str, sentence: str, also: dict[str, object] | None = None) -> None:
        """Add a picture's captions; pictures have the same order in both files, which can share a feature cache."""
        self.match.append(row(name, [("Name it.", words)], image) | (also or {}))
        self.align.append(row(name, [("Name it.", sentence)], image) | (also or {}))


def main() -> None:
    """Write the data set into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", type=int, default=5, help="of each picture (default 5), and one that is worn")
    parser.add_argument("--groups", type=int, default=9000, help="pictures of several things (default 9000)")
    parser.add_argument("--pairs", type=int, default=4000, help="and of two different things (default 4000)")
    parser.add_argument("--singles", type=int, default=9000, help="conversations about one thing (default 9000)")
    parser.add_argument("--named", type=int, default=7000, help="and its name alone (default 7000)")
    parser.add_argument("--scenes", type=int, default=4500, help="conversations about several (default 4500)")
    parser.add_argument("--shapes", type=int, default=4000, help="conversations about easy-VQA's pictures")
    parser.add_argument(
        "--drawn", type=int, default=2400, help="conversations about drawn shapes, numbers, words, charts"
    )
    parser.add_argument("--texts", type=int, default=1500, help="replies without a picture, each taken twice")
    parser.add_argument(
        "--imagined", type=int, default=18000, help="captions of pictures taken for classes that an encoder knows"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.views < 1:
        parser.error("--views must be at least 1")
    if options.folder.exists() and not (options.folder / "match.json").exists():
        parser.error(f"{options.folder} holds other things than this data, and would be replaced: name a new folder")
    rng = random.Random(options.seed)
    with bars() as progress:
        catalogue = load_catalogue(progress.bytes)
    maker, rows = Maker(catalogue, rng), Rows()
    with atomic_folder(options.folder) as folder, bars() as progress:
        images = folder / "images"
        images.mkdir()
        number = {entry.file: i for i, entry in enumerate(catalogue.entries)}
        ones = [(entry, "one") for _ in range(options.views) for entry in maker.entries]
        ones += [(entry, "worn") for entry in maker.entries]
        groups = [maker.group() for _ in range(options.groups)]
        pairs = [[entry, *maker.others([entry], 1)] for entry in (maker.draw() for _ in range(options.pairs))]
        wanted = [
            Picture(images / f"{how}-{i}.jpg", how, (number[entry.file],), rng.getrandbits(32))
            for i, (entry, how) in enumerate(ones)
        ]
        wanted += [
            Picture(images / f"{kind}-{i}.jpg", kind, tuple(number[e.file] for e in group), rng.getrandbits(32))
            for kind, made in (("scene", groups), ("pair", pairs))
            for i, group in enumerate(made)
        ]
        placed = make_pictures(wanted, progress.items)
        for i, (entry, how) in enumerate(ones):
            rows.caption(f"{how}-{i}", f"{how}-{i}.jpg", entry.name, maker.told(entry, how == "one"))
        weights = [maker.weight[entry.name] * (0.5 if how == "worn" else 1) for entry, how in ones]
        for count, i in enumerate(sample(range(len(ones)), weights, options.singles + options.named, rng)):
            entry, how = ones[i]
            turns = maker.about_one(entry, how == "one") if count < options.singles else [maker.naming(entry)]
            rows.finetune.append(row(f"about-{how}-{i}", turns, f"{how}-{i}.jpg"))
        for i, group in enumerate(groups):
            things = placed[f"scene-{i}.jpg"]
            if len(group) > 1:
                rows.caption(f"scene-{i}", f"scene-{i}.jpg", words(Counter(e.name for e in group)), told_scene(things))
            if i < options.scenes:
                rows.finetune.append(row(f"about-scene-{i}", maker.about_scene(things), f"scene-{i}.jpg"))
        for i, group in enumerate(pairs):
            things = placed[f"pair-{i}.jpg"]
            rows.caption(f"pair-{i}", f"pair-{i}.jpg", words(Counter(e.name for e in group)), told_scene(things))
            if turns := maker.about_pair(things):
                rows.finetune.append(row(f"about-pair-{i}", turns, f"pair-{i}.jpg"))
        shapes(options.shapes, rng, folder, rows)
        drawings(options.drawn, rng, images, rows)
        texts = smol_text.replies(rng, options.texts, progress.items)
        rows.finetune += [row(f"text-{i}", [turn], None) for i, turn in enumerate(texts * 2)]
        rows.finetune += [row(f"self-{i}", [turn], None) for i, turn in enumerate(list(SELF.items()) * 40)]
        files = [f"one-{i}.jpg" for i, (_, how) in enumerate(ones) if how == "one"]
        if options.imagined:
            imagined(options.imagined, Maker(catalogue, random.Random(options.seed + 1)), files, rows)
        for name, of in vars(rows).items():
            (folder / f"{name}.json").write_text(json.dumps(of, indent=1))
        smol_card.write_card(folder / "card.html", catalogue, vars(rows), images)
    print(f"{options.folder}: {len(rows.match)} captions, {len(rows.finetune)} conversations")


def sample(items: Sequence[int], weights: Sequence[float], number: int, rng: random.Random) -> list[int]:
    """So many different items, those of larger weight sooner (Efraimidis & Spirakis 2006)."""
    keyed = sorted(zip(items, weights, strict=True), key=lambda pair: -(rng.random() ** (1 / pair[1])))
    return [item for item, _ in keyed[:number]]


def imagined(number: int, maker: Maker, files: list[str], rows: Rows) -> None:
    """Rows whose picture is to be taken for a class of photographs that the encoder knows (llava.train.classes).

    Names with many classes (109 are dogs) come less often than those. Every twelfth gets a conversation too.
    """
    rng, wordnet = maker.rng, WordNet(fetch(PICTURES["wordnet"]))
    offsets = class_offsets()
    names = class_names(wordnet, maker.entries, offsets)
    count = Counter(names)
    drawn_classes = list(range(len(names)))[:number]  # each at least once, where there is room
    drawn_classes += rng.choices(
        range(len(names)), [count[name] ** -0.5 for name in names], k=max(0, number - len(names))
    )
    rng.shuffle(drawn_classes)
    for i, index in enumerate(drawn_classes):
        name, file = names[index], rng.choice(files)
        what: dict[str, object] = {"imagined_class": index}
        rows.caption(f"class-{i}", file, name, capital(article(name)) + ".", what)
        if i % 12 == 0:
            synset = wordnet.synset(offsets[index])
            also = tuple(word.lower() for word in synset.words if word.lower() != name)
            above = (synset.offset, *sorted(wordnet.above(synset) - {synset.offset}))
            entry = Entry(file, "imagenet", name, also=also, kind=None, above=above, colour=None, split="train")
            rows.finetune.append(row(f"about-class-{i}", maker.about_one(entry, coloured=False), file) | what)


def drawings(conversations: int, rng: random.Random, images: Path, rows: Rows) -> None:
    """Rows about shapes of other sizes and edges than easy-VQA's, numbers, words and bar charts."""
    asked = easy_vqa_data.wordings(load_questions("train"))
    for i in range(conversations):
        file, kind = f"drawn-{i}.jpg", i % 6
        if kind == 3:
            picture, number = drawn.digits(rng)
            turns, caption, told = [(rng.choice(NUMBER), f"{number}.")], f"number {number}", f"The number {number}."
        elif kind == 4:
            picture, word = drawn.word(rng)
            turns, caption, told = [(rng.choice(READ), capital(word) + ".")], f"word {word}", f"The word {word}."
        elif kind == 5:
            chart = drawn.chart(rng)
            picture, turns, caption = chart.picture, about_chart(chart, rng), f"chart {' '.join(chart.colours)}"
            told = f"A bar chart: {', '.join(chart.colours)}."
        else:
            picture, shape, colour = drawn.shape(rng)
            what, caption = easy_vqa_data.Shown(shape, colour), f"{colour} {shape}"
            told = capital(article(caption)) + "."
            turns = [(rng.choice(NAMING), told)]
        picture.save(images / file, quality=92)
        rows.caption(f"drawn-{i}", file, caption, told)
        if kind == 0:
            said = easy_vqa_data.conversation(what, asked, rng, "<image>\n")
            rows.finetune.append({"id": f"drawn-{i}", "image": file, "conversations": said})
        else:
            rows.finetune.append(row(f"drawn-{i}", turns, file))


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


def shapes(conversations: int, rng: random.Random, folder: Path, rows: Rows) -> None:
    """The rows of easy-VQA's training split, as scripts/easy_vqa_data.py makes them."""
    questions = load_questions("train")
    asked = easy_vqa_data.wordings(questions)
    shown = [(image, what) for image, about in by_image(questions).items() if (what := easy_vqa_data.facts(about))]
    for number, (image, what) in enumerate(rng.sample(shown, min(conversations, len(shown)))):
        name = f"shape-{image.stem}.png"
        (folder / "images" / name).write_bytes(image.read_bytes())
        caption = f"{what.colour} {what.shape}"
        rows.caption(f"shape-{image.stem}", name, caption, capital(article(caption)) + ".")
        turns = easy_vqa_data.conversation(what, asked, rng, "<image>\n")
        rows.finetune.append({"id": f"shape-{image.stem}", "image": name, "conversations": turns})
        if number % 8 == 0:
            caption = rng.choice(easy_vqa_data.CAPTIONS).format(shape=what.shape, colour=what.colour)
            turns = easy_vqa_data.conversation(what, asked, rng, f"{caption}\n")
            rows.finetune.append({"id": f"described-{image.stem}", "conversations": turns})


if __name__ == "__main__":
    try:
        main()
    except LlavaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
