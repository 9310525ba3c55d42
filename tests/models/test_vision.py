"""Vision encoders against independent implementations, and the contract that each must keep."""

from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionModel
from transformers import SiglipVisionConfig as TheirSiglipConfig

from llava.checkpoints.files import load_strict, read_torch, write_safetensors
from llava.config import ClipVisionConfig, EfficientNetLiteConfig, ImageConfig, SiglipVisionConfig, VisionConfig
from llava.errors import LlavaError
from llava.fetch import fetch
from llava.media.images import open_image, pixels_of
from llava.models.vision import build_vision_encoder
from llava.models.vision.clip import ClipVisionEncoder
from llava.models.vision.efficientnet_lite import EfficientNetLite
from llava.models.vision.siglip import SiglipVisionEncoder
from llava.pictures.imagenet import class_offsets
from llava.registry import PARTS

SMALL_CLIP = ClipVisionConfig(
    image_size=42, patch_size=14, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4
)
SMALL_SIGLIP = SiglipVisionConfig(
    image_size=45, patch_size=14, hidden_size=32, intermediate_size=48, num_layers=4, num_heads=4
)


@pytest.mark.parametrize(
    "config",
    [
        SMALL_CLIP,
        SMALL_SIGLIP,
        EfficientNetLiteConfig(),
        EfficientNetLiteConfig(image_size=96, stages=(1, 7), grid=2),
        EfficientNetLiteConfig(image_size=96, stages=(7,), grid=(3, 1)),
    ],
    ids=["clip_vit", "siglip_vit", "efficientnet_lite0", "efficientnet_lite0-2x2", "efficientnet_lite0-3x3-1x1"],
)
@torch.inference_mode()
def test_every_encoder_produces_what_it_announces(config: VisionConfig) -> None:
    encoder = build_vision_encoder(config).eval()
    features = encoder(torch.randn(2, 3, config.image_size, config.image_size))
    assert features.shape == (2, encoder.num_tokens, encoder.feature_size)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("layer", "select"), [(-2, "patch"), (-1, "cls_patch"), (2, "patch"), (-4, "patch")])
@torch.inference_mode()
def test_clip_equals_transformers(
    activation: str, layer: int, select: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = SMALL_CLIP.model_copy(update={"activation": activation, "feature_layer": layer, "feature_select": select})
    torch.manual_seed(0)
    theirs = CLIPVisionModel(
        CLIPVisionConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            hidden_act=activation,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path_factory.mktemp("clip") / "model.safetensors"
    write_safetensors(file, theirs.state_dict())
    ours = ClipVisionEncoder(config).eval()
    load_strict(ours, ours.state_dict_from(file), file)
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    states = theirs(pixels, output_hidden_states=True).hidden_states
    expected = states[layer][:, 1:] if select == "patch" else states[layer]
    assert torch.allclose(ours(pixels), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layer", [-2, -1, 1])
@torch.inference_mode()
def test_siglip_equals_transformers(layer: int, tmp_path: Path) -> None:
    config = SMALL_SIGLIP.model_copy(update={"feature_layer": layer})
    shape = config.model_dump(include={"image_size", "patch_size", "hidden_size", "intermediate_size"})
    torch.manual_seed(0)
    theirs = SiglipVisionModel(TheirSiglipConfig(**shape, num_hidden_layers=4, num_attention_heads=4)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    file = tmp_path / "model.safetensors"
    write_safetensors(file, theirs.state_dict())
    ours = SiglipVisionEncoder(config).eval()
    load_strict(ours, ours.state_dict_from(file), file)
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[layer]
    assert expected.shape == (2, 9, 32)
    assert torch.allclose(ours(pixels), expected, atol=1e-4, rtol=0)


def test_clip_refuses_a_layer_that_it_has_not() -> None:
    with pytest.raises(LlavaError, match="outside the 4 layers"):
        ClipVisionEncoder(SMALL_CLIP.model_copy(update={"feature_layer": -6}))


@pytest.mark.parametrize("size", [224, 160, 97])
@torch.inference_mode()
def test_efficientnet_stages_equal_the_package_on_real_weights(size: int) -> None:
    file = fetch(PARTS["efficientnet-lite0"])
    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    theirs.load_state_dict(read_torch(file))
    ours = EfficientNetLite(EfficientNetLiteConfig(image_size=size, stages=(1, 2, 3, 4, 5, 6, 7))).eval()
    load_strict(ours, ours.state_dict_from(file), file)
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = F.relu6(theirs._bn0(theirs._conv_stem(pixels)))
    ends = [0, 2, 4, 7, 10, 14, 15]  # the last block of each stage
    expected = []
    for index, block in enumerate(theirs._blocks):
        x = block(x)
        if index in ends:
            expected.append(x)
    for ours_map, theirs_map in zip(ours.stage_maps(pixels), expected, strict=True):
        assert torch.allclose(ours_map, theirs_map, atol=1e-4, rtol=1e-5)  # values reach tens: float32's last digits


@torch.inference_mode()
def test_efficientnet_classes_equal_the_package_and_stand_beside_every_cell() -> None:
    file = fetch(PARTS["efficientnet-lite0"])
    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(read_torch(file))
    ours = EfficientNetLite(EfficientNetLiteConfig(stages=(3, 7), grid=7, classes=True, places=True)).eval()
    load_strict(ours, ours.state_dict_from(file), file)
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = ours(pixels)
    assert features.shape == (2, 49, 40 + 320 + 2 + 1000)
    expected = theirs(pixels).softmax(-1)
    for cell in (0, 30, 48):
        assert torch.allclose((features[:, cell, -1000:] / 8) ** 2, expected, atol=1e-5, rtol=0)
        place = torch.tensor([cell % 7, cell // 7]) / 3 - 1  # from left to right, then down
        assert torch.allclose(features[:, cell, -1002:-1000], place.expand(2, 2))


@torch.inference_mode()
def test_efficientnet_normalizes_each_stage_by_what_its_batch_norms_have_learned() -> None:
    plain = EfficientNetLite(EfficientNetLiteConfig(stages=(3, 7), grid=1)).double()
    norms = {stage: [block.project.norm for block in plain.stages[stage - 1]] for stage in (3, 7)}
    for norm in (norm for found in norms.values() for norm in found):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    normal = EfficientNetLite(EfficientNetLiteConfig(stages=(3, 7), grid=1, normalize=True)).double()
    normal.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    expected = plain(pixels)[:, 0].clone()
    for start, stage in ((0, 3), (40, 7)):
        part = expected[:, start : start + norms[stage][0].bias.numel()]
        part -= sum(norm.bias for norm in norms[stage])
        part /= sum(norm.weight**2 for norm in norms[stage]).sqrt() / 3
    assert torch.allclose(normal(pixels)[:, 0], expected, atol=1e-6, rtol=1e-6)


@torch.inference_mode()
def test_the_classifier_takes_a_tiger_for_the_class_that_wordnet_calls_so() -> None:
    encoder = EfficientNetLite(EfficientNetLiteConfig(classes=True))
    encoder.load_state_dict(encoder.state_dict_from(fetch(PARTS["efficientnet-lite0"])))
    image = ImageConfig(size=224, aspect="pad", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    views = pixels_of(open_image(Path("examples/tiger.png")), image)[None]
    scores = encoder.class_logits(encoder.stage_maps(views)[-1])
    assert class_offsets()[scores.argmax()] == 2129604  # tiger in WordNet 3.0


@torch.inference_mode()
def test_several_grids_stand_one_after_the_other() -> None:
    torch.manual_seed(0)
    settings = {"image_size": 64, "stages": (3, 7), "places": True, "classes": True}
    both = EfficientNetLite(EfficientNetLiteConfig(**settings, grid=(3, 2))).eval()
    pixels = torch.randn(2, 3, 64, 64)
    parts = []
    for grid in (3, 2):
        alone = EfficientNetLite(EfficientNetLiteConfig(**settings, grid=grid)).eval()
        alone.load_state_dict(both.state_dict())
        parts.append(alone(pixels))
    assert both.num_tokens == 13
    assert torch.equal(both(pixels), torch.cat(parts, dim=1))


def test_efficientnet_ignores_the_training_mode() -> None:
    encoder = EfficientNetLite(EfficientNetLiteConfig(image_size=64, grid=2))
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(encoder.train()(pixels), encoder.eval()(pixels))
