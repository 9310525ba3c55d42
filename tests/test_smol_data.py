"""What the training data says about a picture is true of it."""

import json
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest

import llava
from llava.errors import LlavaError
from llava.eval.benchmarks.smol_suite import without_picture
from llava.eval.runner import Answer
from llava.pictures import drawn
from llava.pictures.catalogue import Catalogue, Entry
from llava.pictures.english import article, plural
from llava.pictures.scenes import Placed
from llava.registry import EMBEDDED
from llava.train.data import messages_of
from scripts import easy_vqa_data, embed_model, random_model, smol_data, smol_pictures, smol_text
from scripts.smol_card import write_card
from scripts.smol_data import Rows, row, sample
from scripts.smol_sheet import sheet
from scripts.smol_turns import (
    BARS,
    COLOUR,
    DESCRIBE,
    KIND,
    NAMING,
    NUMBERS,
    PLACE,
    PRESENT,
    SELF,
    SHORTEST,
    SIZE,
    SIZES,
    TALLEST,
    WHERE,
    WHICH,
    Maker,
    about_chart,
    capital,
    caption_of,
    told_scene,
    words,
)

NAMES = ("apple", "dog", "bus", "hammer", "cherry", "fox", "glasses", "unicorn")


@pytest.fixture
def maker() -> Maker:
    entries = [Entry(f"{n}.png", "s", n, (), "thing", (), "red", "train") for n in NAMES]
    held = Entry("x.png", "s", "secret", (), "thing", (), None, "test")
    return Maker(Catalogue(Path(), [*entries, held]), random.Random(0))


@pytest.mark.parametrize(
    ("name", "one", "several"),
    [
        ("apple", "an apple", "apples"),
        ("unicorn", "a unicorn", "unicorns"),
        ("bus", "a bus", "buses"),
        ("cherry", "a cherry", "cherries"),
        ("toy", "a toy", "toys"),
        ("walrus", "a walrus", "walruses"),
        ("mantis", "a mantis", "mantises"),
        ("glasses", "glasses", "glasses"),
        ("fox", "a fox", "foxes"),
        ("snowman", "a snowman", "snowmen"),
        ("woman", "a woman", "women"),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("hourglass", "an hourglass", "hourglasses"),
        ("maple leaf", "a maple leaf", "maple leaves"),
        ("one piece swimsuit", "a one piece swimsuit", "one piece swimsuits"),
        ("human", "a human", "humans"),
    ],
)
def test_articles_and_plurals(name: str, one: str, several: str) -> None:
    assert (article(name), plural(name)) == (one, several)


def present(question: str, name: str) -> bool:
    return any(question == form.format(a=article(name)) for form in PRESENT)


def test_turns_about_one_thing_are_true_and_name_nothing_held_out(maker: Maker) -> None:
    answers: Counter[str] = Counter()
    for _ in range(300):
        entry = maker.draw()
        for question, answer in maker.about_one(entry):
            assert "secret" not in question + answer
            if answer in ("Yes.", "No."):
                assert present(question, entry.name) == (answer == "Yes.")
                answers[answer] += 1
            elif question in DESCRIBE:
                assert answer == f"The picture shows {article(entry.name)}."
            elif question in NAMING:
                assert answer.lower() == f"{article(entry.name)}."
            elif question.startswith("What is this: "):
                assert answer.lower() == f"{article(entry.name)}."
                assert answer[:-1].lower() in re.split(", | or ", question.removeprefix("What is this: ")[:-1])
            elif answer.startswith("There is no"):
                absent = answer.removeprefix("There is no ").split(" in the")[0]
                assert absent != entry.name and absent in question and answer.endswith(f"{article(entry.name)}.")
            elif question in KIND:
                assert answer == "A thing."
            else:
                assert question in [form.format(name=entry.name) for form in COLOUR] and answer == "Red."
    assert 0.4 < answers["Yes."] / answers.total() < 0.6


def test_turns_about_a_scene_are_true(maker: Maker) -> None:
    entries = {entry.name: entry for entry in maker.entries}
    placed = [
        Placed(entries["fox"], 0.1, 0.5, 0.3, 0.3),
        Placed(entries["dog"], 0.9, 0.5, 0.3, 0.3),
        Placed(entries["dog"], 0.5, 0.9, 0.3, 0.3),
    ]
    seen = set()
    for _ in range(200):
        for question, answer in maker.about_scene(placed):
            if answer in ("Yes.", "No."):
                assert (present(question, "fox") or present(question, "dog")) == (answer == "Yes.")
            elif "dogs" in question:
                assert answer == "Two."
            elif "foxes" in question:
                assert answer == "One."
            elif question.startswith("Where"):
                raise AssertionError("a position is asked only of things that are there once")
            seen.add(answer)
    assert {"Two.", "One.", "Three.", "Yes.", "No.", "The picture shows a fox and two dogs."} <= seen


def test_what_stands_on_a_side_is_asked_by_it(maker: Maker) -> None:
    entries = {entry.name: entry for entry in maker.entries}
    placed = [Placed(entries["fox"], 0.1, 0.5, 0.3, 0.3), Placed(entries["dog"], 0.9, 0.5, 0.3, 0.3)]
    asked = {form.format(place=place): right for form in PLACE for place, right in
             (("on the left", "A fox."), ("on the right", "A dog."))}  # fmt: skip
    turns = [turn for _ in range(100) for turn in maker.about_scene(placed) if turn[0] in asked]
    assert {answer for _, answer in turns} == {"A fox.", "A dog."}
    assert all(asked[question] == answer for question, answer in turns)


def test_where_two_things_are_is_asked_of_both_and_told_in_the_caption(maker: Maker) -> None:
    entries = {entry.name: entry for entry in maker.entries}
    fox, dog = Placed(entries["fox"], 0.5, 0.9, 0.3, 0.3), Placed(entries["dog"], 0.5, 0.1, 0.3, 0.3)
    right = {form.format(one=a, other=b): answer for form in WHERE for a, b, answer in
             (("fox", "dog", "Below."), ("dog", "fox", "Above."))}  # fmt: skip
    right |= {form.format(place=place): answer for form in PLACE for place, answer in
              (("at the top", "A dog."), ("at the bottom", "A fox."))}  # fmt: skip
    turns = [turn for _ in range(100) for turn in maker.about_pair([fox, dog])[:1]]
    assert all(right[question] == answer for question, answer in turns)
    assert {answer for _, answer in turns} == set(right.values())
    assert told_scene([fox, dog]) == "A fox below a dog."
    assert told_scene([Placed(entries["fox"], 0.9, 0.5, 0.3, 0.3), Placed(entries["apple"], 0.1, 0.5, 0.3, 0.3)]) == (
        "A fox to the right of an apple."
    )
    unclear = [fox, Placed(entries["dog"], 0.4, 0.8, 0.3, 0.3)]
    assert {answer for _, answer in maker.about_pair(unclear)} == {"Red."}  # nothing of places or sizes
    assert told_scene(unclear) == "A fox and a dog."
    assert told_scene([dog, dog, fox]) == "Two dogs and a fox."


def test_sizes_are_asked_of_what_is_clearly_larger(maker: Maker) -> None:
    entries = {entry.name: entry for entry in maker.entries}
    sizes = {"fox": 0.3, "dog": 0.2, "bus": 0.19}
    fox, dog, bus = (Placed(entries[name], 0.5, 0.5, size, size) for name, size in sizes.items())
    turns = {turn for _ in range(400) for turn in maker.sizes([fox, dog, bus])}
    assert turns == {
        (form.format(size=size, one=a, other=b), f"The {small if smaller else 'fox'}.")
        for form in SIZE
        for size, smaller in SIZES.items()
        for small in ("dog", "bus")
        for a, b in (("fox", small), (small, "fox"))
    }
    assert maker.sizes([dog, bus]) == []


def test_colours_in_a_scene_are_asked_of_what_has_them(maker: Maker) -> None:
    apple = maker.entries[0]
    others = [replace(apple, name="frog", colour="green"), replace(apple, name="cat", colour=None)]
    named = Placed(replace(apple, name="red apple"), 0.5, 0.5, 0.3, 0.3)
    assert maker.colours([named]) == []  # the question would answer itself
    red, green, unknown = (Placed(entry, 0.5, 0.5, 0.3, 0.3) for entry in (apple, *others))
    by_name = {
        form.format(name=name): answer for form in COLOUR for name, answer in (("apple", "Red."), ("frog", "Green."))
    }
    by_colour = {form.format(colour=colour): answer for form in WHICH
                 for colour, answer in (("red", "An apple."), ("green", "A frog."))}  # fmt: skip
    assert {turn for _ in range(300) for turn in maker.colours([red, green])} == {*by_name.items(), *by_colour.items()}
    assert {turn for _ in range(300) for turn in maker.colours([red, green, unknown])} == set(by_name.items())
    of_two_red = {question for _ in range(100) for question, _ in maker.colours([red, red])}
    assert of_two_red == {form.format(name="apple") for form in COLOUR}


def test_captions_name_a_thing_before_its_colour_and_its_kind(maker: Maker) -> None:
    told = {maker.told(maker.entries[0]) for _ in range(100)}
    assert told == {"An apple.", "An apple. Red.", "An apple. A thing.", "An apple. Red. A thing."}
    assert {maker.told(maker.entries[0], coloured=False) for _ in range(100)} == {"An apple.", "An apple. A thing."}


def test_both_files_of_captions_have_their_pictures_in_the_same_order() -> None:
    rows = Rows()
    rows.caption("a", "a.jpg", "dog", "A dog.")
    rows.caption("b", "b.jpg", "cat", "A cat.", {"imagined_class": 281})
    assert [one["image"] for one in rows.match] == [one["image"] for one in rows.align] == ["a.jpg", "b.jpg"]
    assert rows.match[1]["imagined_class"] == rows.align[1]["imagined_class"] == 281


def test_a_picture_without_its_colours_is_not_asked_for_them(maker: Maker) -> None:
    answers = {answer for _ in range(200) for _, answer in maker.about_one(maker.draw(), coloured=False)}
    assert "Red." not in answers and "Yes." in answers


def test_questions_without_a_picture_are_not_those_of_the_suite() -> None:
    prompts = smol_text.prompts()
    assert len(prompts) > 1000 and len(set(prompts)) == len(prompts)
    assert not {question.text for question in without_picture()} & set(prompts)


def test_replies_end_with_a_sentence() -> None:
    assert smol_text.whole_sentences(" Oslo is the capital. It lies by the") == "Oslo is the capital."
    assert smol_text.whole_sentences("It is far. It is 3.5 km in the U.S") == "It is far."
    assert smol_text.whole_sentences("It is 3.5 km") == ""
    assert smol_text.whole_sentences("1. One\n2. Two.") == smol_text.whole_sentences("no end") == ""


def test_items_of_larger_weight_are_taken_more_often_and_none_twice() -> None:
    rng = random.Random(0)
    taken = Counter(item for _ in range(500) for item in sample(range(4), [1, 1, 1, 9], 2, rng))
    assert taken.total() == 1000 and max(taken.values()) <= 500
    assert taken[3] > 400 > max(taken[i] for i in range(3))


def test_turns_about_a_chart_are_true() -> None:
    seen = set()
    for seed in range(60):
        rng = random.Random(seed)
        chart = drawn.chart(rng)
        for question, answer in about_chart(chart, rng):
            if question in BARS:
                assert answer == f"{capital(NUMBERS[len(chart.heights)])}."
            elif question in (*TALLEST, *SHORTEST):
                height = (max if question in TALLEST else min)(chart.heights)
                assert answer == f"{capital(chart.colours[chart.heights.index(height)])}."
            seen.add(question)
    assert seen >= {*BARS, *TALLEST, *SHORTEST}


def test_the_card_shows_sources_counts_and_examples(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg")
    entries = [Entry(f"{i}.png", "stamps", "dog", (), None, (), None, "test" if i == 0 else "train") for i in range(4)]
    rows = [row("a", [("What is <this>?", "A dog.")], "a.jpg"), row("b", [("Hello", "Hi.")], None)]
    write_card(tmp_path / "card.html", Catalogue(tmp_path, entries), {"finetune": rows}, tmp_path)
    page = (tmp_path / "card.html").read_text()
    assert "<td>GPL-2</td><td>3</td><td>1</td>" in page and "finetune.json: 2 rows" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "&gt; What is &lt;this&gt;?<br>- A dog." in page and "&gt; Hello<br>- Hi." in page


def test_a_sheet_shows_right_answers_in_green_and_wrong_ones_in_red(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (300, 100), "blue").save(tmp_path / "a.png")
    long = "Is there a dog in this picture, or is it something else altogether?"
    colours = []
    for right in (True, False):
        answer = Answer(0, long, "a", "yes", "Yes." if right else "No.", "yes/no", right)
        drawn = sheet([answer], {0: tmp_path / "a.png"})
        found = {pixel for _, pixel in drawn.getcolors(drawn.width * drawn.height) or []}
        colours.append(((0, 100, 0) in found, (178, 34, 34) in found, (0, 0, 255) in found))
    assert colours == [(True, False, True), (False, True, True)]


def test_a_caption_and_a_row_that_training_takes() -> None:
    assert (
        caption_of(Counter({"dog": 2, "apple": 1, "fox": 3})) == "The picture shows two dogs, an apple and three foxes."
    )
    assert words(Counter({"bus": 5, "dog": 1})) == "five buses dog"
    turns = [("What is this?", "A dog."), ("Is there a fox?", "No.")]
    messages = messages_of(json.loads(json.dumps(row("a", turns, "a.jpg"))), Path("images"))
    assert [message.role for message in messages] == ["user", "assistant"] * 2
    assert messages_of(row("b", turns, None), Path("images"))[0].content == ("What is this?",)


def test_folders_that_hold_something_else_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    monkeypatch.setattr("sys.argv", ["smol_data.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        smol_data.main()
    assert ended.value.code == 2
    for script in (easy_vqa_data, random_model):
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == 2
    with pytest.raises(LlavaError, match="something else than a model"):
        embed_model.main(EMBEDDED["llava-smol"], tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_an_adapter_over_an_llm_that_was_trained_whole_is_not_embedded(tmp_path: Path) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "llm.safetensors").touch()
    with pytest.raises(LlavaError, match="an LLM of its own"):
        embed_model.main(tmp_path / "run", tmp_path / "embedded")


def test_the_whole_data_set_is_written_and_names_only_pictures_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hues = {name: 30 * place for place, name in enumerate(NAMES)}
    for name, hue in hues.items():
        PIL.Image.new("HSV", (60, 50), (hue, 255, 255)).convert("RGBA").save(tmp_path / f"{name}.png")
    entries = [Entry(f"{name}.png", "stamps", name, (), "thing", (), "red", "train") for name in NAMES]
    catalogue = Catalogue(tmp_path, entries)
    monkeypatch.setattr(smol_data, "load_catalogue", lambda progress: catalogue)
    monkeypatch.setattr(smol_pictures, "_catalogue", lambda: catalogue)
    monkeypatch.setattr(smol_pictures, "ProcessPoolExecutor", ThreadPoolExecutor)  # which sees the lines above
    numbers = {"views": 2, "groups": 12, "pairs": 20, "singles": 9, "named": 5, "scenes": 8, "shapes": 8, "drawn": 6}
    told = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    folder = tmp_path / "data"
    monkeypatch.setattr("sys.argv", ["smol_data.py", str(folder), *told, "--texts", "2", "--imagined", "0"])
    smol_data.main()
    rows = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("match", "align", "finetune")}
    assert [row["image"] for row in rows["match"]] == [row["image"] for row in rows["align"]]
    assert len(rows["match"]) >= 3 * len(NAMES) + numbers["pairs"] + numbers["shapes"] + numbers["drawn"]
    for name, of in rows.items():
        assert len({row["id"] for row in of}) == len(of)
        for one in of:
            messages = messages_of(one, folder / "images")
            assert messages[0].role == "user" and messages[-1].role == "assistant"
            if "image" in one:
                assert llava.Image(folder / "images" / one["image"]).open().size[0] >= 64
        assert f"{name}.json: {len(of)} rows" in (folder / "card.html").read_text()
    kinds = Counter(str(one["id"]).rsplit("-", 1)[0] for one in rows["finetune"])
    assert kinds["about-one"] + kinds["about-worn"] == 14 and kinds["about-scene"] == 8 and kinds["shape"] == 8
    told_sizes = [one for one in rows["finetune"] if "about-pair" in one["id"] and "er" in str(one["conversations"])]
    assert kinds["about-pair"] > 10 and any("The " in str(one["conversations"]) for one in told_sizes)
    assert kinds["text"] == 8 and kinds["self"] == 40 * len(SELF)
    names = [one for one in rows["finetune"] if "about-" in one["id"] and len(one["conversations"]) == 2]
    assert sum(one["conversations"][0]["value"].removeprefix("<image>\n") in NAMING for one in names) >= 5
