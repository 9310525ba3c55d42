"""Make the embedded model's training data from the train split of easy-VQA, as LLaVA's JSON.

    python scripts/easy_vqa_data.py data/easy-vqa

writes align.json (a caption a picture, for stage 1), finetune.json (conversations of several turns, for stage 2) and
images/. Captions are made from the answers to "what" questions only: yes/no questions may be negated. A picture whose
questions leave its shape or its colour open is used in stage 2 alone.

Three things keep a small model from learning yes/no questions soon. Three of four ask about what is not there:
a prior that is learned first and stays. Half of them are negated, so that "yes" says nothing about what is in the
picture until negation is understood as well. And one answer in 25 tokens is a sparse signal. So a picture's
conversation holds no more questions about what is absent than about what is present, and only half of the negated ones;
and each picture has a second conversation that goes through a list: "red no, circle yes, teal no, ...".
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

from llava.eval.benchmarks.easy_vqa import COLOURS, SHAPES, Question, load_questions
from llava.files import atomic_folder

CAPTIONS = (
    "a {colour} {shape}",
    "This is a {colour} {shape}.",
    "The image contains a {colour} {shape}.",
    "There is a {shape} in the image. Its color is {colour}.",
    "The {shape} is {colour}.",
    "A picture of a {colour} {shape}.",
)

NEGATED = 0.5  # the fraction of negated questions that is kept


def caption_row(image: Path, questions: list[Question], rng: random.Random) -> dict[str, object] | None:
    """A row with one caption, or None where the questions do not tell both shape and colour."""
    facts = {question.kind: question.answer for question in questions}
    if "shape" not in facts or "colour" not in facts:
        return None
    caption = rng.choice(CAPTIONS).format(shape=facts["shape"], colour=facts["colour"])
    turns = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": caption}]
    return {"id": f"caption-{image.stem}", "image": image.name, "conversations": turns}


def negated(question: Question) -> bool:
    """Whether a question asks if something is not there."""
    return " not " in question.text or " no " in question.text


def asks_about_absent(question: Question) -> bool:
    """Whether a yes/no question asks about a shape or colour that the picture does not have."""
    return question.kind.startswith("yes/no") and (question.answer == "no") != negated(question)


def balanced(questions: list[Question]) -> list[Question]:
    """The questions, in their order, without the yes/no questions about absent things that are too many."""
    left = max(1, sum(q.kind.startswith("yes/no") and not asks_about_absent(q) for q in questions))
    kept = []
    for question in questions:
        if asks_about_absent(question):
            left -= 1
            if left < 0:
                continue
        kept.append(question)
    return kept


def list_row(image: Path, questions: list[Question], rng: random.Random) -> dict[str, object]:
    """A row that says of what is known to be in the picture, and of as much that is not and one more, whether it is."""
    present, absent = [], []
    for kind, names in (("shape", SHAPES), ("colour", COLOURS)):
        for answer in {question.answer for question in questions if question.kind == kind}:
            present.append(answer)
            absent += rng.sample([name for name in names if name != answer], 2 if kind == "colour" else 1)
    listed = rng.sample(present + absent, len(present + absent))
    asked = f"<image>\nwhich of these are in the image? {', '.join(listed)}"
    answer = ", ".join(f"{name} {'yes' if name in present else 'no'}" for name in listed)
    turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"list-{image.stem}", "image": image.name, "conversations": turns}


def conversation_row(image: Path, questions: list[Question], turns: int, rng: random.Random) -> dict[str, object]:
    """A conversation of at most `turns` of the picture's questions, in random order."""
    order = balanced([q for q in rng.sample(questions, len(questions)) if not negated(q) or rng.random() < NEGATED])
    conversation = []
    for index, question in enumerate(order[:turns]):
        prefix = "<image>\n" if index == 0 else ""
        conversation += [
            {"from": "human", "value": prefix + question.text},
            {"from": "gpt", "value": question.answer},
        ]
    return {"id": f"chat-{image.stem}", "image": image.name, "conversations": conversation}


def main() -> None:
    """Write the data set into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=5, help="questions a conversation (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    by_image: dict[Path, list[Question]] = defaultdict(list)
    for question in load_questions("train"):
        by_image[question.image].append(question)
    captions = [row for image, questions in by_image.items() if (row := caption_row(image, questions, rng))]
    chats = [conversation_row(image, asked, options.turns, rng) for image, asked in by_image.items()]
    lists = [
        list_row(image, asked, rng)
        for image, asked in by_image.items()
        if any(question.kind in ("shape", "colour") for question in asked)
    ]
    with atomic_folder(options.folder) as folder:
        (folder / "images").mkdir()
        for image in by_image:
            shutil.copyfile(image, folder / "images" / image.name)
        (folder / "align.json").write_text(json.dumps(captions, indent=1))
        (folder / "finetune.json").write_text(json.dumps(chats + lists, indent=1))
    counts = f"{len(captions)} captions, {len(chats)} conversations, {len(lists)} lists, {len(by_image)} images"
    print(f"{options.folder}: {counts}")


if __name__ == "__main__":
    main()
