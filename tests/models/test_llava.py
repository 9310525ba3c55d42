"""The whole model against transformers' LlavaForConditionalGeneration, and the merge."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava.checkpoints.native import Loaded
from llava.errors import LlavaError
from llava.media.tiling import FlatLayout
from llava.models.llava import IMAGE_TOKEN, LlavaModel
from llava.models.projectors import build_projector

HF_IMAGE_TOKEN = 7


def peer(model: LlavaModel) -> LlavaForConditionalGeneration:
    """transformers' LLaVA with our model's shape and weights."""
    llm, vision = model.config.llm, model.config.vision
    assert vision.type == "clip_vit"
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                hidden_size=vision.hidden_size,
                intermediate_size=vision.intermediate_size,
                num_hidden_layers=vision.num_layers,
                num_attention_heads=vision.num_heads,
                hidden_act="quick_gelu",
            ),
            text_config=LlamaConfig(
                vocab_size=llm.vocab_size,
                hidden_size=llm.hidden_size,
                intermediate_size=llm.intermediate_size,
                num_hidden_layers=llm.num_layers,
                num_attention_heads=llm.num_heads,
                num_key_value_heads=llm.num_kv_heads,
                head_dim=llm.head_dim,
                rms_norm_eps=llm.norm_eps,
                tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": llm.rope_theta},
            ),
            image_token_index=HF_IMAGE_TOKEN,
            tie_word_embeddings=True,
        )
    ).eval()
    tensors = {f"model.language_model.{k}": v for k, v in model.llm.state_dict().items()}
    for name, tensor in model.vision.state_dict().items():
        tensors[f"model.vision_tower.{name}"] = tensor
    for index, name in ((0, "linear_1"), (2, "linear_2")):
        for kind in ("weight", "bias"):
            tensors[f"model.multi_modal_projector.{name}.{kind}"] = model.projector.state_dict()[f"{index}.{kind}"]
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    unused = (
        "vision_tower.vision_model.encoder.layers.2",
        "vision_tower.encoder.layers.2",
        "post_layernorm",
        "lm_head",
    )
    assert not unexpected
    assert all(any(part in name for part in unused) for name in missing), missing
    theirs.tie_weights()
    return theirs


@torch.inference_mode()
def test_the_whole_equals_transformers(tiny: Loaded) -> None:
    model = tiny.model
    theirs = peer(model)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(3, 3, 28, 28, generator=generator)
    for _ in range(5):
        ids = torch.randint(8, 1000, (1, 40), generator=generator)
        starts = (3, 12, 30)
        for start in starts:
            ids[0, start : start + model.vision.num_tokens] = IMAGE_TOKEN
        logits = model.llm.logits(model(ids, model.encode(pixels, [FlatLayout(1, 4)] * 3)))
        hf_ids = ids.masked_fill(ids == IMAGE_TOKEN, HF_IMAGE_TOKEN)
        expected = theirs(input_ids=hf_ids, pixel_values=pixels, attention_mask=torch.ones_like(hf_ids)).logits
        assert torch.allclose(logits, expected, atol=1e-4, rtol=0)
        assert logits.argmax(-1).equal(expected.argmax(-1))


def test_placeholders_and_image_tokens_must_be_equal_in_number(tiny: Loaded) -> None:
    ids = torch.tensor([[1, IMAGE_TOKEN, IMAGE_TOKEN, 2]])
    with pytest.raises(ValueError, match="2 image placeholders, but 3 image tokens"):
        tiny.model.embed(ids, torch.zeros(3, 48))


def test_image_tokens_are_written_in_order(tiny: Loaded) -> None:
    ids = torch.tensor([[IMAGE_TOKEN, 5, IMAGE_TOKEN], [6, IMAGE_TOKEN, 7]])
    tokens = torch.arange(3.0)[:, None].expand(3, 48)
    x = tiny.model.embed(ids, tokens)
    assert [x[0, 0, 0], x[0, 2, 0], x[1, 1, 0]] == [0, 1, 2]
    assert torch.equal(x[0, 1], tiny.model.llm.embed_tokens.weight[5])


@pytest.mark.parametrize(("name", "linears"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projectors_have_the_layers_of_their_name(name: str, linears: int) -> None:
    projector = build_projector(name, 6, 4)
    modules = [module for module in projector.modules() if isinstance(module, torch.nn.Linear)]
    assert len(modules) == linears
    assert projector(torch.zeros(2, 5, 6)).shape == (2, 5, 4)


@pytest.mark.parametrize("name", ["mlp2x_relu", "mlp0x_gelu", "", "Linear", "mlp2x_gelu "])
def test_an_unknown_projector_is_refused(name: str) -> None:
    with pytest.raises(LlavaError, match="unknown projector"):
        build_projector(name, 6, 4)
