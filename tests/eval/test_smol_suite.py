"""The suite's questions about a small catalogue made here: every expected answer is true of its picture."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from llava.eval.benchmarks.smol_names import ALSO, MISNAMED, rightly_named
from llava.eval.benchmarks.smol_suite import (
    NUMBERS,
    make_questions,
    more_photographs,
    one_of_each,
    photographs,
    without_picture,
)
from llava.eval.question import Question
from llava.eval.runner import Answer, Score, write_page, yes_ratio
from llava.pictures.catalogue import Catalogue, Entry

# all of one hue each, so that a picture itself tells what is in it
THINGS = {"ruby": 0, "lime": 85, "sky": 140, "plum": 200, "sun": 40, "rose": 230}
EACH = 20


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("catalogue")
    entries = []
    for name, hue in THINGS.items():
        PIL.Image.new("HSV", (90, 80), (hue, 255, 255)).convert("RGBA").save(folder / f"{name}.png")
        entries.append(Entry(f"{name}.png", "test", name, (f"{name}let",), None, (), f"{name} hue", "train"))
    unseen = [Entry(e.file, "emoji", e.name, e.also, None, (), e.colour, "style") for e in entries]
    held = [Entry("ruby.png", "stamps", name, (), None, (), None, "test") for name in ("ruby", "zyx")]
    (folder / "suite").mkdir()
    return make_questions(Catalogue(folder, [*entries, *unseen, *held]), folder / "suite", each=EACH, emoji=6)


def of(kind: str, questions: list[Question]) -> list[Question]:
    return [question for question in questions if question.kind == kind]


def hues(question: Question) -> dict[str, tuple[float, float]]:
    """The things in a picture, and their centres (x, y)."""
    pixels = np.asarray(PIL.Image.open(question.image).convert("HSV")).astype(int)
    found = {}
    for name, hue in THINGS.items():
        rows, columns = np.nonzero((abs(pixels[..., 0] - hue) <= 2) & (pixels[..., 1] > 250) & (pixels[..., 2] > 250))
        if len(rows) > 300:
            found[name] = (float(columns.mean()), float(rows.mean()))
    return found


def areas(question: Question) -> dict[str, int]:
    """The pixels of each thing in a picture."""
    pixels = np.asarray(PIL.Image.open(question.image).convert("HSV")).astype(int)
    vivid = (pixels[..., 1] > 250) & (pixels[..., 2] > 250)
    counts = {name: int(((abs(pixels[..., 0] - hue) <= 2) & vivid).sum()) for name, hue in THINGS.items()}
    return {name: count for name, count in counts.items() if count > 100}


def test_all_kinds_are_there_in_the_numbers_asked_for(questions: list[Question]) -> None:
    numbers = {kind: len(of(kind, questions)) for kind in sorted({q.kind for q in questions})}
    assert numbers == {
        "naming, stamps and clip art": 1,
        "naming, name of no training picture": 1,
        "naming, unseen emoji style": 6,
        "four-way choice": EACH,
        "yes/no": EACH,
        "counting to five": EACH,
        "position": EACH,
        "size, of two": EACH,
        "colour, of two things": EACH,
    }


def test_naming_takes_synonyms_and_articles_and_nothing_else(questions: list[Question]) -> None:
    for question in of("naming, unseen emoji style", questions):
        assert list(hues(question)) == [question.answer]
        right = (question.answer, f"A {question.answer}.", f"{question.answer}let")
        assert all(question.is_right(text) for text in right)
        assert not question.is_right("thing")


def test_choices_yes_and_no_are_true(questions: list[Question]) -> None:
    for question in of("four-way choice", questions):
        (shown,) = hues(question)
        assert question.answer == shown and question.is_right(f"A {shown}.")
        assert len({name for name in THINGS if f" a {name}" in question.text}) == 4
    asked = of("yes/no", questions)
    assert sum(question.answer == "yes" for question in asked) == EACH / 2
    for question in asked:
        assert any(f" {name} " in question.text for name in hues(question)) == (question.answer == "yes")


def test_positions_are_true(questions: list[Question]) -> None:
    for question in of("position", questions):
        place = hues(question)
        one, other = (
            name for word in question.text.replace(",", "").replace("?", "").split() for name in THINGS if name == word
        )
        dx, dy = place[one][0] - place[other][0], place[one][1] - place[other][1]
        side = ("left" if dx < 0 else "right") if abs(dx) > abs(dy) else ("above" if dy < 0 else "below")
        assert question.accepted == (side,)


def test_sizes_and_colours_are_true(questions: list[Question]) -> None:
    for question in of("size, of two", questions):
        small, large = sorted(areas(question).items(), key=lambda item: item[1])
        assert large[1] > 1.8 * small[1]
        assert question.answer == (large if "larger" in question.text else small)[0]
        assert question.is_right(f"The {question.answer}.") and not question.is_right("The thing.")
        assert all(f"the {name}" in question.text for name in (small[0], large[0]))
    assert sum("larger" in question.text for question in of("size, of two", questions)) == EACH / 2
    for question in of("colour, of two things", questions):
        (name,) = (name for name in hues(question) if f"the {name}?" in question.text)
        assert len(hues(question)) == 2 and question.answer == f"{name} hue"


def test_questions_about_shapes_are_of_different_pictures() -> None:
    asked = [
        Question(f"{place}?", "red", "colour", Path(f"{picture}.png")) for picture in range(9) for place in range(5)
    ]
    chosen = one_of_each(asked, 6)
    assert len({question.image for question in chosen}) == 6 and {question.kind for question in chosen} == {"easy-VQA"}
    assert len({question.text for question in chosen}) > 1
    assert chosen == one_of_each(asked, 6)


def test_counts_go_from_one_to_five_equally_often(questions: list[Question]) -> None:
    answers = [question.answer for question in of("counting to five", questions)]
    assert all(answers.count(number) == EACH / 5 for number in NUMBERS[1:])


def test_questions_without_a_picture_take_sentences_but_not_parts_of_words() -> None:
    asked = {question.text: question for question in without_picture()}
    assert all(question.image is None and question.free for question in asked.values())
    france, legs = asked["What is the capital of France?"], asked["How many legs does a dog have?"]
    assert france.is_right("The capital of France is Paris.") and not france.is_right("It is Parisian.")
    assert legs.is_right("A dog has 4 legs.") and not legs.is_right("Fourteen.")
    assert asked["What is 2 plus 3?"].accepted == ("5", "five")


def test_photographs_that_scikit_image_has(tmp_path: Path) -> None:
    asked = photographs(tmp_path)
    assert len(asked) == 10 and len({question.image for question in asked}) == 10
    cat = next(question for question in asked if question.answer == "cat")
    assert cat.image == tmp_path / "chelsea.png"
    assert cat.is_right("A tabby cat.") and not cat.is_right("A cat and a dog.")


def test_photographs_that_opencv_has(tmp_path: Path) -> None:
    asked = more_photographs(tmp_path)
    assert len(asked) == 23 and len({question.image for question in asked}) == 23
    lake = next(question for question in asked if question.answer == "lake")
    assert lake.image == tmp_path / "hfs" / "data" / "001.jpg"
    assert lake.is_right("A river.") and not lake.is_right("A tree.")


def test_wilsons_interval() -> None:
    low, high = Score(8, 10).interval  # 0.490 to 0.943, as in Brown, Cai & DasGupta 2001
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert Score(0, 10).interval[0] == pytest.approx(0, abs=1e-12)


def test_the_page_shows_every_answer_and_escapes_it(tmp_path: Path, questions: list[Question]) -> None:
    image = questions[0].image
    answers = [Answer(i, "is it?", "0", "yes", text, "yes/no", i == 0) for i, text in enumerate(("Yes.", "<b>no</b>"))]
    text = Answer(2, "Paris?", "", "yes", "Yes", "text", True)
    write_page(tmp_path / "page.html", [*answers, text], {0: image, 1: image, 2: None})
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "&lt;b&gt;no&lt;/b&gt;" in page and "<b>" not in page
    assert yes_ratio(answers) == 0.5
    assert yes_ratio([]) is None


def test_wrong_names_are_replaced_others_added_and_pictures_without_a_right_one_left_out() -> None:
    def held(file: str, name: str, *also: str) -> Entry:
        return Entry(file, "clipart", name, also, None, (), None, "test")

    frog = rightly_named(held("clipart/00771.png", "rana", "genus rana"))
    assert frog is not None and (frog.name, frog.also) == ("frog", ())
    grape = rightly_named(held("clipart/01184.png", "grape", "uva"))
    assert grape is not None and (grape.name, grape.also) == ("grape", ("uva", "grapes"))
    assert rightly_named(held("clipart/02000.png", "psycho")) is None
    plain = held("clipart/00001.png", "dog")
    assert rightly_named(plain) is plain
    assert not set(MISNAMED) & set(ALSO)
    assert all(
        word == word.strip().lower() for names in (*MISNAMED.values(), *ALSO.values()) for word in names.split(", ")
    )
