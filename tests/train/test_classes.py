"""Rows whose picture is to be taken for a class that the vision encoder knows."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.config import EfficientNetLiteConfig, ImageConfig
from llava.errors import LlavaError
from llava.models.vision.efficientnet_lite import CLASSES, EfficientNetLite
from llava.train.classes import ImaginedClasses
from llava.train.loop import set_up
from llava.train.recipe import Recipe
from tests.train.helpers import Watcher, recipe_values, write_base, write_data

ENCODER = EfficientNetLiteConfig(image_size=64, stages=(7,), grid=2, classes=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every second row with a picture has a class."""
    write_base(tmp_path)
    rows = write_data(tmp_path)
    for index, row in enumerate(rows):
        if "image" in row and index % 2:
            row["imagined_class"] = index
    write(tmp_path, rows)
    return tmp_path


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "data.json").write_text(json.dumps(rows))


def recipe(folder: Path, **changes: Any) -> Recipe:
    values = recipe_values(folder, cache_features=False, **changes)
    image = ImageConfig(size=64).model_dump()
    values["model"] |= {"vision": "efficientnet-lite0", "encoder": ENCODER.model_dump(), "image": image}
    return Recipe.model_validate(values)


def test_a_view_shows_the_class_that_it_is_to_be_taken_for_and_all_else_stays() -> None:
    torch.manual_seed(0)
    encoder = EfficientNetLite(ENCODER)
    real = torch.randn(300, 4, encoder.feature_size)
    classes = {view: view % CLASSES for view in range(0, 300, 2)}
    made = ImaginedClasses(encoder).exchange(real, classes)
    assert torch.equal(made[1::2], real[1::2]) and torch.equal(made[..., :-CLASSES], real[..., :-CLASSES])
    found = (made[::2, :, -CLASSES:] / 8).square()
    assert torch.allclose(found.sum(-1), torch.ones(150, 4), atol=1e-4)  # probabilities
    assert (found == found[:, :1]).all()  # the same in all cells
    right = found[:, 0].argmax(-1) == torch.tensor(list(classes.values()))
    assert right.float().mean() > 0.95  # a low score may fall behind a class alike


@pytest.mark.parametrize("stage", ["match", "align"])
def test_the_loss_of_a_batch_has_the_classes_of_its_rows(folder: Path, stage: str) -> None:
    if stage == "match":
        write(folder, [row for row in json.loads((folder / "data.json").read_text()) if "image" in row])
    run = set_up(recipe(folder, stage=stage), Watcher())
    assert run.imagined is not None
    batch = run.batch([0, 1, 2, 3])
    assert batch.classes == {1: 1, 3: 3}
    seen: list[dict[int, int]] = []

    class Spy(ImaginedClasses):
        def exchange(self, features: torch.Tensor, classes: Any) -> torch.Tensor:
            seen.append(dict(classes))
            return super().exchange(features, classes)

    spied = type(run)(**{**vars(run), "imagined": Spy(run.model.vision)})
    torch.manual_seed(0)
    first = spied.loss_sum(batch)
    torch.manual_seed(0)
    assert torch.equal(first, run.loss_sum(batch)) and seen == [{1: 1, 3: 3}]
    torch.manual_seed(0)
    assert not torch.equal(first, type(run)(**{**vars(run), "imagined": None}).loss_sum(batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imagined_class": 1000}, "'imagined_class' must be a number from 0 to 999"),
        ({"imagined_class": "cat"}, "'imagined_class' must be a number from 0 to 999"),
        ({"imagined_class": 3, "image": None}, "a row with 'imagined_class' needs one image"),
    ],
)
def test_a_wrong_class_is_counted_among_the_rows_that_cannot_be_used(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    rows = json.loads((folder / "data.json").read_text())
    text = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    rows[1] |= change if "image" not in change else {**change, "conversations": text}
    write(folder, rows)
    with pytest.raises(LlavaError, match=message):
        set_up(recipe(folder), Watcher())


def test_an_encoder_without_classes_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(LlavaError, match="the encoder gives no classes"):
        set_up(Recipe.model_validate(recipe_values(folder)), Watcher())
