"""Made-up features of the classes that a vision encoder knows."""

import json
from pathlib import Path

import pytest
import torch

from llava.config import EfficientNetLiteConfig, ImageConfig
from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.models.vision.efficientnet_lite import CLASSES
from llava.processor import Processor
from llava.train.classes import MadeUpClasses
from llava.train.loop import set_up
from llava.train.recipe import Recipe
from tests.train.helpers import Watcher, recipe_values, write_base, write_data

NAMED = {3: "cat", 7: "dog", 8: "dog", 9: "dog", 10: "dog"}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("names") / "classes.json"
    file.write_text(json.dumps([NAMED.get(index) for index in range(CLASSES)]))
    return file


def values(folder: Path, names: Path) -> dict[str, object]:
    """A recipe for stage match with an encoder that classifies."""
    made = recipe_values(folder, stage="match", class_names=str(names), cache_features=False)
    encoder = EfficientNetLiteConfig(image_size=64, stages=(7,), grid=2, classes=True)
    made["model"] |= {
        "vision": "efficientnet-lite0",
        "encoder": encoder.model_dump(),
        "image": ImageConfig(size=64).model_dump(),
    }
    return made


@pytest.fixture
def ready(tmp_path: Path, names: Path) -> tuple[LlavaModel, Processor, MadeUpClasses, Path]:
    write_base(tmp_path)
    rows = [row for row in write_data(tmp_path) if "image" in row]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    run = set_up(Recipe.model_validate(values(tmp_path, names)), Watcher())
    assert run.made_up is not None and run.captions is not None
    batch = run.batch([0, 1, 2, 3])
    assert run.weight(batch) == 4 + 1  # one made-up row for three real ones
    assert torch.isfinite(run.loss_sum(batch))
    spelt = {tuple(run.loaded.processor.tokenizer.encode(f"{name}\n")[0]) for name in ("cat", "dog")}
    assert spelt <= set(run.captions.ids)
    return run.model, run.loaded.processor, run.made_up, tmp_path


def test_made_up_rows_show_the_class_that_they_are_named_for(
    ready: tuple[LlavaModel, Processor, MadeUpClasses, Path],
) -> None:
    model, processor, made_up, _ = ready
    torch.manual_seed(0)
    real = torch.randn(900, 4, model.vision.feature_size)
    rows, captions = made_up.rows(real)
    assert len(rows) == len(captions) == 300
    found = (rows[:, :, -CLASSES:] / 8).square()
    assert torch.allclose(found.sum(-1), torch.ones(300, 4), atol=1e-4)  # probabilities
    assert (found == found[:, :1]).all()  # the same in all cells
    others = {row.numpy().tobytes() for row in real[:, :, :-CLASSES]}
    assert all(row.numpy().tobytes() in others for row in rows[:, :, :-CLASSES])  # the rest is a real row's
    cat, dog = (tuple(processor.tokenizer.encode(f"{name}\n")[0]) for name in ("cat", "dog"))
    right = [index in {cat: (3,), dog: (7, 8, 9, 10)}[name] for index, name in
             zip(found[:, 0].argmax(-1).tolist(), captions, strict=True)]  # fmt: skip
    assert sum(right) > 285  # a low score may fall behind a class alike
    assert 0.25 < captions.count(cat) / 300 < 0.42  # as 1 : sqrt(4)


def test_class_names_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, ready: tuple[LlavaModel, Processor, MadeUpClasses, Path]
) -> None:
    model, processor, _, folder = ready
    for text, message in (("[]", "expected a list of 1000 names"), ("{", "not valid JSON")):
        (tmp_path / "n.json").write_text(text)
        with pytest.raises(LlavaError, match=message):
            MadeUpClasses(model, tmp_path / "n.json", processor.tokenizer)
    with pytest.raises(LlavaError, match="cannot be read"):
        MadeUpClasses(model, tmp_path / "none.json", processor.tokenizer)
    plain = recipe_values(folder, stage="match", class_names=str(tmp_path / "n.json"))
    with pytest.raises(LlavaError, match="does not classify"):
        set_up(Recipe.model_validate(plain), Watcher())
    with pytest.raises(ValueError, match="makes no features up"):
        Recipe.model_validate({**plain, "stage": "align"})
