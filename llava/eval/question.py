"""A benchmark's question, what counts as its answer, and the choice of questions and of pictures to go with them."""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.chat.messages import Image, Message


@dataclass(frozen=True)
class Question:
    """One question, its answer, its kind, and the picture it is about, if any.

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


def by_image(questions: list[Question]) -> dict[Path, list[Question]]:
    """The questions about each picture."""
    found: dict[Path, list[Question]] = {}
    for question in questions:
        if question.image is not None:
            found.setdefault(question.image, []).append(question)
    return found


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
    """Show each question another picture of its kind: all of one picture's get the same one, and no picture stays.

    A picture is of the kind that its questions have; those with questions of several kinds are a kind of their own, and
    one that is alone in its kind is exchanged with those of another.
    """
    kinds: dict[str, list[Path]] = {}
    for image, asked in by_image(questions).items():
        kind = asked[0].kind if len({one.kind for one in asked}) == 1 else ""
        kinds.setdefault(kind, []).append(image)
    groups = [images for images in kinds.values() if len(images) > 1]
    if alone := [images[0] for images in kinds.values() if len(images) == 1]:
        groups = [[*alone, *(groups[0] if groups else [])], *groups[1:]]
    other: dict[Path, Path] = {}
    for images in groups:
        random.Random(seed).shuffle(images)
        other |= zip(images, images[1:] + images[:1], strict=True)
    return [replace(question, image=other[question.image]) if question.image else question for question in questions]


def digest(questions: Sequence[Question]) -> str:
    """A hash of what is asked, about which pictures (by name), and what is right."""
    told = [(one.text, one.answer, one.accepted, one.kind, one.free, one.image and one.image.name) for one in questions]
    return hashlib.sha256(repr(told).encode()).hexdigest()
