"""Run a model over a benchmark's questions: batched, resumable, every answer on disk as soon as it is there."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from llava.assistant import Assistant
from llava.errors import LlavaError
from llava.eval.question import Question
from llava.files import os_errors, sha256, write_text

ANSWERS, SETTINGS, SUMMARY, PAGE = "answers.jsonl", "settings.json", "summary.json", "answers.html"
_MAX_NEW_TOKENS = 24
_TOGETHER = 16  # questions at least, that are answered at once


@dataclass(frozen=True)
class Answer:
    """One answered question. image: what was shown, if anything: with shuffled images it is not the question's."""

    index: int
    question: str
    image: str
    expected: str
    answer: str
    kind: str
    correct: bool


@dataclass(frozen=True)
class Score:
    """Right answers of a number of questions. error: one standard error of the accuracy."""

    correct: int
    questions: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.questions

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by Wilson (1927): it is right for few questions and near 0 and 1 too."""
        z, n, p = 1.959964, self.questions, self.accuracy
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)

    @property
    def error(self) -> float:
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.questions)


def fingerprint(folder: Path) -> str:
    """A hash of the files that make a model what it is: a resumed run must not mix two models.

    Results of evaluations that stand in its folder are no part of it.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.name in (SETTINGS, SUMMARY):
            continue
        if path.suffix in (".json", ".safetensors", ".bin", ".model", ".gguf") and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return digest.hexdigest()


def evaluate(
    assistant: Assistant,
    questions: Sequence[tuple[int, Question]],
    settings: dict[str, Any],
    output: Path,
    on_answer: Callable[[int, int, int], None] | None = None,
) -> list[Answer]:
    """Answer what is not answered yet under `output`; return all answers. Questions are (index, Question) pairs.

    settings: what the result depends on; answers made with other settings are not mixed in.
    on_answer: hears of (answered, all, correct). Raises LlavaError.
    """
    with os_errors(f"use the output folder {output}"):
        output.mkdir(parents=True, exist_ok=True)
        answers = _resume(output, settings)
        done = {answer.index for answer in answers}
        left = [(index, question) for index, question in questions if index not in done]
        with (output / ANSWERS).open("a", encoding="utf-8") as file:
            for batch in _batches(left):
                texts = assistant.chat_batch(
                    [[question.message()] for _, question in batch],
                    max_new_tokens=_MAX_NEW_TOKENS,
                )
                for (index, question), text in zip(batch, texts, strict=True):
                    right = question.is_right(text)
                    image = question.image.stem if question.image else ""
                    answer = Answer(index, question.text, image, question.answer, text, question.kind, right)
                    answers.append(answer)
                    file.write(json.dumps(asdict(answer)) + "\n")
                file.flush()
                if on_answer:
                    on_answer(len(answers), len(questions), sum(answer.correct for answer in answers))
    return answers


def scores(answers: Sequence[Answer]) -> dict[str, Score]:
    """The score of each kind of question, then of all."""
    kinds = sorted({answer.kind for answer in answers})
    table = {kind: [answer.correct for answer in answers if answer.kind == kind] for kind in kinds}
    table["all"] = [answer.correct for answer in answers]
    return {kind: Score(sum(correct), len(correct)) for kind, correct in table.items()}


def yes_ratio(answers: Sequence[Answer]) -> float | None:
    """How often a question of kind yes/no was answered yes; None where there are none."""
    said = [answer.answer.strip().lower().startswith("yes") for answer in answers if answer.kind == "yes/no"]
    return sum(said) / len(said) if said else None


def write_page(path: Path, answers: Sequence[Answer], images: Mapping[int, Path | None]) -> None:
    """One HTML page with every picture, question and answer; the pictures are inside it."""
    rows = []
    for answer in answers:
        shown = images[answer.index]
        encoded = base64.b64encode(shown.read_bytes()).decode() if shown else ""
        mark, colour = ("right", "#dfd") if answer.correct else ("wrong", "#fdd")
        cells = [html.escape(text) for text in (answer.kind, answer.question, answer.expected, answer.answer)]
        rows.append(
            f'<tr style="background:{colour}"><td>'
            + (f'<img width="112" loading="lazy" alt="" src="data:image/png;base64,{encoded}">' if shown else "")
            + "</td>"
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + f"<td>{mark}</td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("picture", "kind", "question", "expected", "answer", ""))
    body = "\n".join(rows)
    write_text(
        path,
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Answers</title>'
        f'<table style="font-family:sans-serif"><tr>{head}</tr>\n{body}</table></html>\n',
    )


def write_summary(
    output: Path, settings: dict[str, Any], table: dict[str, Score], said_yes: float | None = None
) -> None:
    """Write `summary.json`. said_yes: `yes_ratio`, where there is one."""
    results = {
        kind: {
            "accuracy": s.accuracy,
            "standard_error": s.error,
            "interval": s.interval,
            "correct": s.correct,
            "questions": s.questions,
        }
        for kind, s in table.items()
    }
    ratio = {} if said_yes is None else {"yes_ratio": said_yes}
    write_text(output / SUMMARY, json.dumps({**settings, "results": results, **ratio}, indent=1) + "\n")


def _batches(questions: Sequence[tuple[int, Question]]) -> Iterator[list[tuple[int, Question]]]:
    """The questions of one picture together, for what they share is computed once; of several, where each has few."""
    batch: list[tuple[int, Question]] = []
    for _, group in groupby(questions, key=lambda pair: pair[1].image):
        batch += group
        if len(batch) >= _TOGETHER:
            yield batch
            batch = []
    if batch:
        yield batch


def _resume(output: Path, settings: dict[str, Any]) -> list[Answer]:
    path = output / SETTINGS
    if not path.exists():
        (output / ANSWERS).unlink(missing_ok=True)  # first: interrupted here, they are of no settings
        write_text(path, json.dumps(settings, indent=1) + "\n")
        return []
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        earlier = None
    if earlier != settings:
        raise LlavaError(f"{output}: holds answers of another run; choose another --output, or give --restart")
    answers: dict[int, Answer] = {}
    file = output / ANSWERS
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):
            break  # cut short by an interruption
        answers[answer.index] = answer
    write_text(file, "".join(json.dumps(asdict(answer)) + "\n" for answer in answers.values()))
    return list(answers.values())
