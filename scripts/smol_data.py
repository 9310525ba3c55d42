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
from llava.eval.question import by_image
from llava.fetch import fetch
from llava.files import atomic_folder
from llava.pictures import drawn
from llava.pictures.catalogue import Entry, load_catalogue
from llava.pictures.english import article
from llava.pictures.imagenet import class_names, class_offsets
from llava.pictures.wordnet import WordNet
from llava.registry import PICTURES

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripts import easy_vqa_data, smol_card, smol_text
from scripts.smol_pictures import Picture, make_pictures
from scripts.smol_turns import NAMING, NUMBER, READ, SELF, Maker, about_chart, capital, told_scene, words


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
    parser.add_argument("--texts", type=int, default=2400, help="replies without a picture, each taken four times")
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
        rows.finetune += [row(f"text-{i}", [turn], None) for i, turn in enumerate(texts * 4)]
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

    Names with many classes (109 are dogs) come less often than those. Every sixth gets a conversation too.
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
        if i % 6 == 0:
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
