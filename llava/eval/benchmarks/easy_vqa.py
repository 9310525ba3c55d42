"""easy-VQA (Victor Zhou 2019): questions about one coloured shape in a 64 x 64 picture; 13 answers.

A predictor that sees only the question gets 67.0% on the test split, hence the control with shuffled images.
"""

import json
from typing import Literal

from llava.errors import LlavaError
from llava.eval.question import Question
from llava.fetch import Progress, quiet, resolve

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")


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


def _kind(text: str, answer: str) -> str:
    if answer in SHAPES:
        return "shape"
    if answer in COLOURS:
        return "colour"
    return "yes/no shape" if any(shape in text for shape in SHAPES) else "yes/no colour"
