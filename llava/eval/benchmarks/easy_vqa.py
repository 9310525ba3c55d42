"""easy-VQA (Victor Zhou 2019): questions about one coloured shape in a 64 x 64 picture; 13 answers.

A predictor that sees only the question gets 67.0% on the test split, hence the control with shuffled images.
"""

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llava.chat.messages import Image, Message
from llava.errors import LlavaError
from llava.fetch import Progress, quiet, resolve

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
KINDS = ("shape", "colour", "yes/no shape", "yes/no colour")  # the rows of the result table


@dataclass(frozen=True)
class Question:
    """One question, its answer, its kind (in easy-VQA one of KINDS), and the picture it is about, if any.

    accepted: other answers that are right too. free: the reply is a sentence; it is right where it holds an answer.
    """

    text: str
    answer: str
    kind: str
    image: Path | None
    accepted: tuple[str, ...] = ()
    free: bool = False

    def message(self) -> Message:
        """The question as a user's turn, after its picture."""
        return Message.user(*([Image(self.image)] if self.image else []), self.text)

    def is_right(self, reply: str) -> bool:
        """An exact match with one of the answers, but for case and a full stop at the end; free: one is in it."""
        reply, answers = reply.strip().rstrip(".").lower(), {right.lower() for right in (self.answer, *self.accepted)}
        if self.free:
            return any(re.search(rf"\b{re.escape(answer)}\b", reply) for answer in answers)
        return reply in answers


def load_questions(split: Literal["train", "test"], progress: Progress = quiet) -> list[Question]:
    """All questions of a split, fetched once; those of one picture stand together. Raises LlavaError."""
    folder = resolve("easy-vqa", progress) / split
    try:
        rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlavaError(f"{folder}: damaged copy of easy-VQA ({error}); delete the folder and try again") from None
    return [
        Question(text, answer, _kind(text, answer), folder / "images" / f"{image}.png")
        for text, answer, image in sorted(rows, key=lambda row: int(row[2]))
    ]


def by_image(questions: list[Question]) -> dict[Path, list[Question]]:
    """The questions about each picture."""
    found: dict[Path, list[Question]] = {}
    for question in questions:
        if question.image is not None:
            found.setdefault(question.image, []).append(question)
    return found


def _kind(text: str, answer: str) -> str:
    if answer in SHAPES:
        return "shape"
    if answer in COLOURS:
        return "colour"
    return "yes/no shape" if any(shape in text for shape in SHAPES) else "yes/no colour"


def choose(questions: list[Question], limit: int | None, seed: int = 0) -> list[tuple[int, Question]]:
    """The questions with their indices; with a limit, that many, about pictures chosen at random, all of each."""
    numbered = list(enumerate(questions))
    if limit is None:
        return numbered
    images = list(dict.fromkeys(question.image for question in questions))
    random.Random(seed).shuffle(images)
    order = {image: place for place, image in enumerate(images)}
    return sorted(numbered, key=lambda pair: order[pair[1].image])[:limit]


def shuffle_images(questions: list[Question], seed: int = 0) -> list[Question]:
    """Show each question another picture: all of one picture's get the same one, and no picture stays."""
    images = list(by_image(questions))
    random.Random(seed).shuffle(images)
    other = dict(zip(images, images[1:] + images[:1], strict=True))
    return [replace(question, image=other[question.image]) if question.image else question for question in questions]
