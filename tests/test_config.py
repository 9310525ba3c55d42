import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llava import LlavaError
from llava.config import LlavaConfig, load_config, validate

VALUES: dict[str, Any] = {
    "llm": {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "rope_theta": 1e4,
        "norm_eps": 1e-5,
        "max_positions": 128,
        "tie_embeddings": True,
    },
    "vision": {"type": "clip_vit", "image_size": 28},
    "image": {"size": 28},
    "projector": "mlp2x_gelu",
    "template": "chatml",
    "base": {"llm": "a.gguf", "vision": "b.safetensors"},
}


def changed(place: str, value: object) -> dict[str, Any]:
    """VALUES with another value at `place`, such as `llm.num_layers`."""
    values: dict[str, Any] = json.loads(json.dumps(VALUES))
    *parents, last = place.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return values


def without(place: str) -> dict[str, Any]:
    values = changed(place, None)
    parent, _, last = place.rpartition(".")
    del (values[parent] if parent else values)[last]
    return values


def problem(values: object) -> str:
    with pytest.raises(LlavaError) as caught:
        validate(LlavaConfig, values, "here")
    return str(caught.value)


def test_a_config_survives_a_round_trip(tmp_path: Path) -> None:
    config = validate(LlavaConfig, VALUES, "here")
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert load_config(path) == config
    assert (config.vision.type, config.vision.image_size) == ("clip_vit", 28)


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        validate(LlavaConfig, VALUES, "here").image.size = 3


@pytest.mark.parametrize(
    ("place", "known"),
    [
        (
            "foo",
            "layout, llm, vision, image, video, projector, template, chat_template, system, images_first, "
            "around_image, storage, base",
        ),
        ("base.foo", "llm, vision"),
        ("image.foo", "size, tiling, aspect, mean, std"),
    ],
)
def test_an_unknown_key_lists_the_known_ones(place: str, known: str) -> None:
    assert problem(changed(place, 1)) == f"here: unknown key '{place}' (known here: {known})"


def test_an_unknown_key_of_an_encoder_lists_those_of_that_encoder() -> None:
    values = changed("vision", {"type": "efficientnet_lite0", "patch_size": 14})
    known = "type, image_size, stages, grid, normalize, places, classes"
    assert problem(values) == f"here: unknown key 'vision.patch_size' (known here: {known})"


@pytest.mark.parametrize("place", ["projector", "llm.num_layers", "image.size", "base.llm"])
def test_a_missing_key_is_named(place: str) -> None:
    assert problem(without(place)) == f"here: key '{place}' is missing"


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("llm.num_layers", "many", "key 'llm.num_layers': Input should be a valid integer"),
        ("llm.hidden_size", 1.5, "key 'llm.hidden_size': Input should be a valid integer"),
        ("llm", 3, "key 'llm': Input should be a valid dictionary"),
        ("image.aspect", "zoom", "key 'image.aspect': Input should be 'pad', 'crop' or 'squash', found 'zoom'"),
        ("image.mean", [0.5, 0.5], "key 'image.mean.2' is missing"),
        ("image.mean", [0.5, 0.5, "x"], "key 'image.mean.2': Input should be a valid number"),
        ("vision.patch_size", "x", "key 'vision.patch_size': Input should be a valid integer"),
        ("vision", {"type": "siglip"}, "'siglip' found using 'type' does not match any of the expected tags"),
        ("vision.patch_size", 0, "key 'vision.patch_size': Input should be greater than 0, found 0"),
        ("llm.num_layers", 10**9, "key 'llm.num_layers': Input should be less than or equal to 1000"),
        ("layout", "llava-native-2", "key 'layout': Input should be 'llava-native-1', found 'llava-native-2'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(place: str, value: object, expected: str) -> None:
    assert expected in problem(changed(place, value))


def test_every_mistake_is_told_at_once_on_one_line() -> None:
    values = changed("foo", 1)
    values["llm"]["num_layers"] = "many\nlines"
    del values["template"]
    text = problem(values)
    assert "\n" not in text
    assert all(part in text for part in ("unknown key 'foo'", "key 'llm.num_layers'", "key 'template' is missing"))


def test_a_config_that_is_no_object_is_told() -> None:
    assert problem([1, 2]).startswith("here: Input should be a valid dictionary")


@pytest.mark.parametrize("text", [b"", b"{", b"{'a': 1}", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_told(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(LlavaError, match=r"config\.json: is not valid JSON"):
        load_config(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(LlavaError, match=r"config\.json: cannot be read \(No such file or directory\)"):
        load_config(tmp_path / "config.json")
