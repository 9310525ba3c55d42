"""LLaVA's JSON: rows that are used, rows that are dropped and why, the order of batches."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.chat.messages import Image
from llava.checkpoints.native import Loaded
from llava.errors import LlavaError
from llava.train.data import Sample, batch_order, endless_batches, measure, messages_of
from llava.train.recipe import DataConfig
from tests.train.helpers import write_data


def row(*turns: str, image: Any = None) -> dict[str, Any]:
    speakers = ("human", "gpt") * len(turns)
    values = [{"from": who, "value": text} for who, text in zip(speakers, turns, strict=False)]
    return {"id": "x", "conversations": values} | ({"image": image} if image is not None else {})


def test_images_stand_where_their_marks_are() -> None:
    turns = messages_of(row("<image>\nand <image>?", "ok", image=["a.png", "b.png"]), Path("d"))
    assert turns[0].content == (Image(Path("d/a.png")), "\nand ", Image(Path("d/b.png")), "?")
    assert turns[1].content == ("ok",)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("<image>\nhi", "ok"), "number of <image>"),
        (row("hi", "ok", image="a.png"), "number of <image>"),
        (row("<video>\nhi", "ok") | {"video": "a.mp4"}, "rows with a video"),
        (row("hi"), "does not end with an answer"),
        (row(), "does not end with an answer"),
        ({"id": 1}, "malformed row"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "malformed row"),
        ({"conversations": [{"from": "human", "value": 3}]}, "malformed row"),
        ("text", "malformed row"),
        (None, "malformed row"),
    ],
)
def test_a_malformed_row_tells_why(bad: Any, reason: str) -> None:
    with pytest.raises(LlavaError, match=reason):
        messages_of(bad, Path("d"))


def config(folder: Path, max_dropped: float = 1.0) -> DataConfig:
    return DataConfig(path=folder / "data.json", images=folder / "images", max_dropped=max_dropped)


def test_unusable_rows_are_counted_by_reason(tiny: Loaded, tmp_path: Path) -> None:
    rows = write_data(tmp_path, rows=6)
    rows += [row("<image>\nwhat", "x", image="gone.png"), row("<image>\nwhat", "x", image="gone-too.png")]
    rows += [row("long " * 300, "x"), row("hi", "x", image="0.png")]
    (tmp_path / "images" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows.append(row("<image>\nwhat", "x", image="bad.png"))
    (tmp_path / "data.json").write_text(json.dumps(rows))
    data = measure(config(tmp_path), tiny.processor, max_tokens=200, decode=True)
    assert len(data.samples) == 7
    assert data.dropped["image not found"] == 2
    assert data.dropped["longer than max_tokens (200)"] == 1
    assert data.dropped["the number of <image> in the text is not the number of images"] == 1
    assert sum(data.dropped.values()) == 5
    for sample in data.samples:
        prompt = data.prompt(sample)
        assert (len(prompt.ids), len(prompt.spans)) == (sample.length, len(sample.sizes))
    with pytest.raises(LlavaError, match=r"5 of 12 rows cannot be used \(2 x image not found.*data\.max_dropped"):
        measure(config(tmp_path, max_dropped=0.1), tiny.processor, max_tokens=200, decode=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "3"])
def test_a_file_that_is_no_list_is_refused(tiny: Loaded, tmp_path: Path, text: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(LlavaError, match=r"not valid JSON|expected a list of rows"):
        measure(config(tmp_path), tiny.processor, 100, decode=False)


SAMPLES = st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=200)


@given(SAMPLES, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_takes_every_sample_once_and_never_mixes_modalities(
    kinds: list[tuple[int, bool]], size: int, seed: int, epoch: int
) -> None:
    samples = [Sample(i, length, (4,) if image else ()) for i, (length, image) in enumerate(kinds)]
    batches = batch_order(samples, size, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(samples)))
    assert all(len(batch) <= size for batch in batches)
    assert all(len({bool(samples[i].sizes) for i in batch}) == 1 for batch in batches)
    assert batches == batch_order(samples, size, seed, epoch)


@given(SAMPLES, st.integers(0, 50))
def test_skipping_batches_gives_the_rest_of_the_same_order(kinds: list[tuple[int, bool]], skip: int) -> None:
    samples = [Sample(i, length, (4,) if image else ()) for i, (length, image) in enumerate(kinds)]
    whole, rest = endless_batches(samples, 3, 0, 0), endless_batches(samples, 3, 0, skip)
    expected = [next(whole) for _ in range(skip + 10)][skip:]
    assert [next(rest) for _ in range(10)] == expected
