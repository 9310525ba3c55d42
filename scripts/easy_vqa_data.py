"""Make LLaVA training data of easy-VQA's train split: captions for stage 1, conversations for stage 2.

    python scripts/easy_vqa_data.py data/easy-vqa

writes align.json (a caption a picture), finetune.json and images/. What a picture shows is gathered from its questions
and their answers, beware of negation; pictures whose shape or colour stays open are left out. The questions of stage 2
are in easy-VQA's own words.

easy-VQA's questions as they are teach a small model to answer "yes" or "no" without looking: five of six ask about what
is not there, and half are negated. So here as many ask about what is there, and fewer are negated; and they stand at
the beginning of a conversation, before an answer in it tells what the picture shows. Stage 2 also has conversations in
which a caption stands in place of the picture: from them the LLM learns to compare within a hundred steps.
"""

import argparse
import json
import random
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from llava.errors import LlavaError
from llava.eval.benchmarks.easy_vqa import COLOURS, SHAPES, load_questions
from llava.eval.question import Question, by_image
from llava.files import atomic_folder

CAPTIONS = (
    "A {colour} {shape}.",
    "The image shows a {colour} {shape}.",
    "There is a {colour} {shape}.",
    "A picture of a {colour} {shape}.",
    "This is a {shape}. Its color is {colour}.",
    "One {shape}, colored {colour}.",
    "The {shape} is {colour}.",
)
NEGATED = 0.35  # the part of yes/no questions that asks whether something is not there


@dataclass(frozen=True)
class Shown:
    """What a picture shows."""

    shape: str
    colour: str


def facts(questions: list[Question]) -> Shown | None:
    """What a picture shows, as its questions and answers tell it, or None where they leave something open."""
    named: set[str] = set()
    for question in questions:
        if question.answer not in ("yes", "no"):
            named |= {question.answer, *words(question.text)}
        elif (question.answer == "yes") != negated(question.text):
            named |= set(words(question.text))
    shapes, colours = named & set(SHAPES), named & set(COLOURS)
    return Shown(shapes.pop(), colours.pop()) if len(shapes) == len(colours) == 1 else None


def words(text: str) -> list[str]:
    """The shapes and colours that a question names."""
    return [word for word in re.findall(r"\w+", text) if word in SHAPES + COLOURS]


def negated(text: str) -> bool:
    """Whether a question asks if something is not there."""
    return " not " in text or " no " in text


def wordings(questions: list[Question]) -> dict[str, list[str]]:
    """How easy-VQA asks, by kind of question, with {shape} and {colour} for the names."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for question in questions:
        text = question.text
        for name in words(text):
            text = text.replace(name, "{shape}" if name in SHAPES else "{colour}")
        found[question.kind][text] = None
    return {kind: sorted(texts) for kind, texts in found.items()}


def yes_no(kind: str, shown: Shown, asked: dict[str, list[str]], rng: random.Random) -> tuple[str, str]:
    """A question whether there is a shape or colour, and its answer; every second time it is there."""
    names, true = (SHAPES, shown.shape) if kind == "yes/no shape" else (COLOURS, shown.colour)
    present, negate = rng.random() < 0.5, rng.random() < NEGATED
    name = true if present else rng.choice([name for name in names if name != true])
    text = rng.choice([text for text in asked[kind] if negated(text) == negate])
    return text.format(shape=name, colour=name), "yes" if present != negate else "no"


def conversation(shown: Shown, asked: dict[str, list[str]], rng: random.Random, first: str) -> list[dict[str, str]]:
    """Two yes/no questions and, after or before them, one for a name; `first` stands before the first of them."""
    naming = rng.choice(
        [
            (rng.choice(asked["shape"]).format(colour=shown.colour), shown.shape),
            (rng.choice(asked["colour"]).format(shape=shown.shape), shown.colour),
        ]
    )
    turns = [yes_no(kind, shown, asked, rng) for kind in rng.sample(["yes/no shape", "yes/no colour"], 2)]
    turns.insert(0 if rng.random() < 0.25 else 2, naming)
    said = [
        {"from": speaker, "value": text} for turn in turns for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    said[0]["value"] = first + said[0]["value"]
    return said


def main() -> None:
    """Write the data set into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--conversations", type=int, default=2, help="conversations a picture (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder.exists() and not (options.folder / "align.json").exists():
        parser.error(f"{options.folder} holds other things than this data, and would be replaced: name a new folder")
    rng = random.Random(options.seed)
    questions = load_questions("train")
    asked = wordings(questions)
    shown = {image: found for image, about in by_image(questions).items() if (found := facts(about))}
    align: list[dict[str, object]] = []
    finetune: list[dict[str, object]] = []
    for image, what in shown.items():
        caption = rng.choice(CAPTIONS).format(shape=what.shape, colour=what.colour)
        turns = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": caption}]
        align.append({"id": f"caption-{image.stem}", "image": image.name, "conversations": turns})
        for index in range(options.conversations):
            turns = conversation(what, asked, rng, "<image>\n")
            finetune.append({"id": f"chat-{image.stem}-{index}", "image": image.name, "conversations": turns})
        turns = conversation(what, asked, rng, f"{caption}\n")
        finetune.append({"id": f"described-{image.stem}", "conversations": turns})
    with atomic_folder(options.folder) as folder:
        (folder / "images").mkdir()
        for image in shown:
            shutil.copyfile(image, folder / "images" / image.name)
        (folder / "align.json").write_text(json.dumps(align, indent=1))
        (folder / "finetune.json").write_text(json.dumps(finetune, indent=1))
    print(f"{options.folder}: {len(shown)} images and captions, {len(finetune)} conversations")


if __name__ == "__main__":
    try:
        main()
    except LlavaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
