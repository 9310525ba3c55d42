"""Recipes: the shipped ones are valid, overrides apply, mistakes are named."""

from pathlib import Path

import pytest

from llava.errors import LlavaError
from llava.train.recipe import load_recipe

ALIGN = Path(__file__).parents[2] / "recipes" / "easy-vqa-align.yaml"


@pytest.mark.parametrize("path", sorted(ALIGN.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert load_recipe(path).stage in ("match", "align", "finetune")


def test_overrides_reach_nested_keys() -> None:
    recipe = load_recipe(ALIGN, ["data.max_dropped=0.5", "max_steps=7", "model.encoder.grid=2", "output=a=b"])
    assert (recipe.data.max_dropped, recipe.max_steps, str(recipe.output)) == (0.5, 7, "a=b")


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = load_recipe(ALIGN, ["output=~/runs/a", "data.path=~/a.json", "data.images=~/i", "cache=~/c", "model=~/m"])
    paths = recipe.output, recipe.data.path, recipe.data.images, recipe.cache, recipe.model
    assert paths == tuple(Path("/home/me") / name for name in ("runs/a", "a.json", "i", "c", "m"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_step=3", "unknown key 'max_step'"),
        ("max_steps=-3", "key 'max_steps'"),
        ("max_steps", "not of the form key=value"),
        ("stage.x=3", "'stage' holds no keys"),
        ("stage=pretrain", "key 'stage'"),
        ("data.color=3", "unknown key 'data.color' \\(known here: path, images, max_dropped\\)"),
        ("encoder={type: efficientnet_lite0}", "a new model has its encoder in model.encoder"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(LlavaError, match=message):
        load_recipe(ALIGN, [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=match", "lora={rank: 4}"], "stage match does not run the LLM"),
        (["model.image.size=64"], "model.image.size is 64, model.encoder.image_size 224; make them equal"),
        (["epochs=.inf"], "key 'epochs'"),
        (["cache=x", "cache_features=false"], "no features are kept without cache_features"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(LlavaError, match=message):
        load_recipe(ALIGN, overrides)


@pytest.mark.parametrize("text", ["a: [", "- 1", "just text", ""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(LlavaError, match=r"r\.yaml"):
        load_recipe(tmp_path / "r.yaml")
