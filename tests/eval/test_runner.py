"""The evaluation runner on a random model: resume, settings, scores; and easy-VQA's questions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from llava.assistant import Assistant
from llava.chat.messages import Image, Message
from llava.checkpoints.native import Loaded
from llava.errors import LlavaError
from llava.eval.benchmarks.easy_vqa import load_questions
from llava.eval.question import Question, choose, digest, shuffle_images
from llava.eval.runner import ANSWERS, Answer, Score, evaluate, fingerprint, scores, write_summary

SETTINGS = {"model": "tiny"}


@pytest.fixture
def questions(picture: Callable[..., Path]) -> list[tuple[int, Question]]:
    images = [picture("a.png", seed=1), picture("b.png", seed=2)]
    return [(i, Question(f"question {i}?", "red", "colour", images[i // 18])) for i in range(36)]


def test_answers_are_those_of_chat(tiny: Loaded, questions: list[tuple[int, Question]], tmp_path: Path) -> None:
    answers = evaluate(Assistant(tiny), questions, SETTINGS, tmp_path / "out")
    alone = Assistant(tiny)
    for (_, question), answer in zip(questions, answers, strict=True):
        turns = [Message.user(Image(question.image), question.text)]
        assert answer.answer == alone.chat(turns, max_new_tokens=24)
    rows = [json.loads(line) for line in (tmp_path / "out" / ANSWERS).read_text().splitlines()]
    assert [row["answer"] for row in rows] == [answer.answer for answer in answers]


def test_a_question_without_a_picture_is_asked_without_one_even_when_images_are_shuffled(
    tiny: Loaded, questions: list[tuple[int, Question]], tmp_path: Path
) -> None:
    text = Question("what is the capital of France?", "Paris", "text", None, free=True)
    *_, shuffled = shuffle_images([*(question for _, question in questions), text])
    assert shuffled == text
    (answer,) = evaluate(Assistant(tiny), [(0, shuffled)], SETTINGS, tmp_path)
    assert answer.image == ""
    assert answer.answer == Assistant(tiny).chat([Message.user(text.text)], max_new_tokens=24)


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(
    tiny: Loaded, questions: list[tuple[int, Question]], tmp_path: Path
) -> None:
    whole = evaluate(Assistant(tiny), questions, SETTINGS, tmp_path / "whole")

    def interrupt(done: int, total: int, correct: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Assistant(tiny), questions, SETTINGS, tmp_path / "out", interrupt)
    file = tmp_path / "out" / ANSWERS
    assert len(file.read_text().splitlines()) == 18
    file.write_text(file.read_text() + '{"index": 20, "ques')  # killed in the middle of a line
    progress: list[int] = []
    again = evaluate(Assistant(tiny), questions, SETTINGS, tmp_path / "out", lambda done, *_: progress.append(done))
    assert again == whole
    assert progress == [36]
    assert len(file.read_text().splitlines()) == 36


def test_questions_about_many_pictures_are_answered_together(
    tiny: Loaded, picture: Callable[..., Path], tmp_path: Path
) -> None:
    asked = [(i, Question("what?", "red", "colour", picture(f"{i}.png", seed=i))) for i in range(20)]
    progress: list[int] = []
    answers = evaluate(Assistant(tiny), asked, SETTINGS, tmp_path, lambda done, *_: progress.append(done))
    assert progress == [16, 20]
    assert [answer.image for answer in answers] == [str(i) for i in range(20)]


def test_answers_of_another_run_are_not_mixed_in(
    tiny: Loaded, questions: list[tuple[int, Question]], tmp_path: Path
) -> None:
    evaluate(Assistant(tiny), questions, SETTINGS, tmp_path)
    with pytest.raises(LlavaError, match="answers of another run"):
        evaluate(Assistant(tiny), questions, {"model": "other"}, tmp_path)


def test_results_in_a_models_folder_leave_its_fingerprint_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(tmp_path)
    (tmp_path / "eval").mkdir()
    write_summary(tmp_path / "eval", SETTINGS, {"all": Score(1, 2)})
    (tmp_path / "eval" / "settings.json").write_text("{}")
    assert fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert fingerprint(tmp_path) != before


def test_scores_count_by_kind(tmp_path: Path) -> None:
    def answer(kind: str, correct: bool) -> Answer:
        return Answer(0, "q", "i", "red", "red", kind, correct)

    table = scores([answer("shape", True), answer("shape", False), answer("colour", True)])
    assert table == {"colour": Score(1, 1), "shape": Score(1, 2), "all": Score(2, 3)}
    assert table["shape"].accuracy == 0.5 and table["shape"].error == pytest.approx(0.5 / 2**0.5)
    write_summary(tmp_path, SETTINGS, table, said_yes=0.4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["results"]["all"]["correct"] == 2 and summary["yes_ratio"] == 0.4


def test_easy_vqas_test_split_is_whole() -> None:
    questions = load_questions("test")
    assert len(questions) == 9673
    assert len({question.image for question in questions}) == 1000
    assert {question.kind for question in questions} == {"shape", "colour", "yes/no shape", "yes/no colour"}
    assert all(question.image.exists() for question in questions[::500])
    assert choose(questions, None) == list(enumerate(questions))
    some = choose(questions, 100)
    assert len(some) == 100 == len({index for index, _ in some})
    assert all(questions[index] is question for index, question in some)
    assert 8 <= len({question.image for _, question in some}) <= 20  # whole pictures: what they share is computed once


def test_shuffled_questions_have_another_image() -> None:
    questions = load_questions("test")
    shuffled = shuffle_images(questions)
    assert all(a.image != b.image and a.text == b.text for a, b in zip(questions, shuffled, strict=True))
    assert {question.image for question in shuffled} == {question.image for question in questions}


def test_shuffling_stays_within_a_kind_where_it_can() -> None:
    kinds = {"naming": ["a", "b", "c"], "counting": ["d", "e"], "position": ["f"]}
    questions = [Question("?", "!", kind, Path(name)) for kind, names in kinds.items() for name in names * 2]
    shuffled = shuffle_images(questions)
    for before, after in zip(questions, shuffled, strict=True):
        assert before.image is not None and after.image is not None and before.image != after.image
        if before.kind == "counting":
            assert after.image.name in kinds["counting"]
    assert {one.image for one in shuffled} == {one.image for one in questions}
    assert len({(a.image, b.image) for a, b in zip(questions, shuffled, strict=True)}) == 6


def test_questions_have_a_digest_of_their_own() -> None:
    one = Question("?", "yes", "a", Path("x/y.png"))
    same = digest([replace(one, image=Path("z/y.png"))])
    assert digest([one]) == same
    others = [replace(one, answer="no"), replace(one, accepted=("no",)), replace(one, image=Path("x/z.png"))]
    assert len({same, *(digest([other]) for other in others), digest([one, one])}) == 5


@pytest.mark.parametrize(
    ("answer", "right"), [("red", True), ("Red.", True), (" red ", True), ("dark red", False), ("", False)]
)
def test_a_match_is_exact(answer: str, right: bool) -> None:
    assert Question("which colour?", "red", "colour", None).is_right(answer) == right
