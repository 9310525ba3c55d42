"""Make the embedded model's training data from the train split of easy-VQA, as LLaVA's JSON.

    python scripts/easy_vqa_data.py data/easy-vqa

writes align.json (a caption a picture, for stage 1), finetune.json (conversations of several turns, for stage 2) and
images/. Captions are made from the answers to "what" questions only: yes/no questions may be negated. A picture whose
questions leave its shape or its colour open is used in stage 2 alone.

Three things keep a small model from learning yes/no questions soon. Three of four ask about what is not there: a prior
that is learned first and stays. Half of them are negated, so that "yes" says nothing about what is in the picture until
negation is understood as well. And comparing a question with a picture is hard to find where comparing it with words is
not yet known. So a picture's conversation holds no more questions about what is absent than about what is present, and
only half of the negated ones; and stage 2 also has conversations in which a caption stands in place of the picture:
from them the LLM learns to compare within a hundred steps, and what it learned carries over.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

from llava.eval.benchmarks.easy_vqa import Question, load_questions
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


def caption_of(questions: list[Question], rng: random.Random) -> str | None:
    """A caption of the picture, or None where its questions do not tell both shape and colour."""
    facts = {question.kind: question.answer for question in questions}
    if "shape" not in facts or "colour" not in facts:
        return None
    return rng.choice(CAPTIONS).format(shape=facts["shape"], colour=facts["colour"])


def caption_row(image: Path, caption: str) -> dict[str, object]:
    """A row for stage 1."""
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


def conversation(questions: list[Question], turns: int, rng: random.Random, first: str) -> list[dict[str, str]]:
    """At most `turns` of a picture's questions in random order; `first` stands before the first of them."""
    order = balanced([q for q in rng.sample(questions, len(questions)) if not negated(q) or rng.random() < NEGATED])
    said = []
    for index, question in enumerate(order[:turns]):
        said += [
            {"from": "human", "value": (first if index == 0 else "") + question.text},
            {"from": "gpt", "value": question.answer},
        ]
    return said


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
    captions, chats, described = [], [], []
    for image, asked in by_image.items():
        turns = conversation(asked, options.turns, rng, "<image>\n")
        chats.append({"id": f"chat-{image.stem}", "image": image.name, "conversations": turns})
        if caption := caption_of(asked, rng):
            captions.append(caption_row(image, caption))
            turns = conversation(asked, options.turns, rng, f"{caption}\n")
            described.append({"id": f"described-{image.stem}", "conversations": turns})
    with atomic_folder(options.folder) as folder:
        (folder / "images").mkdir()
        for image in by_image:
            shutil.copyfile(image, folder / "images" / image.name)
        (folder / "align.json").write_text(json.dumps(captions, indent=1))
        (folder / "finetune.json").write_text(json.dumps(chats + described, indent=1))
    counts = f"{len(by_image)} images, {len(captions)} captions, {len(chats)} conversations, {len(described)} described"
    print(f"{options.folder}: {counts}")


if __name__ == "__main__":
    main()
