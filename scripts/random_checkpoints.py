"""Random small checkpoints of every published layout, with transformers' model and processor of the same weights.

The hf ones are written by transformers under the hub's names, the original ones as haotian-liu/LLaVA writes them: from
its own field and tensor names, not by this package.
"""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import PIL
import PIL.Image
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
KINDS = ("llava", "llava, SigLIP", "llava_next", "llava_next_video")
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ARCHITECTURES = {
    "llama": "LlavaLlamaForCausalLM",
    "mistral": "LlavaMistralForCausalLM",
    "qwen2": "LlavaQwenForCausalLM",
}
GENERATIONS = ("1.0", "1.5", "1.6")
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def resize_as_pillow_13() -> None:
    """Have everything in this process resize as Pillow 13 does, which `llava` does under any Pillow.

    Peers resize by the Pillow that is installed: an earlier one rounds some numbers of a tall picture otherwise.
    """
    if int(PIL.__version__.split(".")[0]) >= 13 or hasattr(PIL.Image.Image, "as_installed"):
        return
    installed = PIL.Image.Image.resize

    def resize(
        picture: PIL.Image.Image, size: tuple[int, int], resample: Any = None, box: Any = None, reducing_gap: Any = None
    ) -> PIL.Image.Image:
        fewer_columns, fewer_rows = picture.width - size[0], picture.height - size[1]
        if box is None and fewer_rows > max(0, 2 * fewer_columns):
            picture = installed(picture, (picture.width, size[1]), resample)
        return installed(picture, size, resample, box, reducing_gap)

    PIL.Image.Image.as_installed = installed  # type: ignore[attr-defined]
    PIL.Image.Image.resize = resize  # type: ignore[method-assign, assignment]


@dataclass
class Peer:
    """transformers' model and processor, and the folder that both sides load."""

    model: Any
    processor: Any
    folder: Path


def write_checkpoint(folder: Path, kind: str, family: str, seed: int) -> Peer:
    """A random small checkpoint of this kind (KINDS, FAMILIES), in the layout of the hub."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(random.integers(len(choices)))]

    side, heads = pick(28, 42), pick(2, 4)
    siglip = kind == "llava, SigLIP"
    vision = transformers.AutoConfig.for_model(
        "siglip_vision_model" if siglip else "clip_vision_model",
        image_size=side,
        patch_size=14,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=pick(2, 3),
        num_attention_heads=4,
        initializer_range=0.2,
    )
    text = transformers.AutoConfig.for_model(
        family,
        vocab_size=32064,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=pick(1, 2),
        num_attention_heads=heads,
        num_key_value_heads=pick(1, heads),
        max_position_embeddings=4096,
        initializer_range=0.2,
        **({"head_dim": 16} if family == "qwen3" else {}),
    )
    special: dict[str, Any] = {"image_token_index": 32000, "vision_config": vision, "text_config": text}
    if kind in ("llava", "llava, SigLIP"):
        strategy = "full" if siglip else "default"
        config: Any = transformers.LlavaConfig(**special, vision_feature_select_strategy=strategy)
        model: Any = transformers.LlavaForConditionalGeneration(config)
    else:
        shapes = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
        special["image_grid_pinpoints"] = [[rows * side, columns * side] for rows, columns in shapes]
        if kind == "llava_next":
            model = transformers.LlavaNextForConditionalGeneration(transformers.LlavaNextConfig(**special))
        else:
            special |= {"video_token_index": 32002, "spatial_pool_mode": pick("average", "max")}
            config = transformers.LlavaNextVideoConfig(**special)
            model = transformers.LlavaNextVideoForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.image_newline, std=0.2)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save_file(hub_names(model.state_dict()), folder / "model.safetensors", {"format": "pt"})
    processor = write_processor(folder, kind, side, special.get("image_grid_pinpoints"))
    return Peer(model, processor, folder)


def hub_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under the names that the hub's files have."""
    named = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        name = name.replace("language_model.", "language_model.model.", 1)
        name = name.replace("lm_head.", "language_model.lm_head.", 1)
        if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
            name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
        named[name] = tensor.contiguous().clone()
    return named


def write_processor(folder: Path, kind: str, side: int, pinpoints: Any) -> Any:
    """Mistral's real vocabulary with the image tokens that the hub's checkpoints have, and the image processor."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        shutil.copyfile(VOCABULARY, source / "tokenizer.model")
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **tokens}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        (source / "config.json").write_text('{"model_type": "llama"}')
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<image>", "<pad>", "<video>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    siglip = kind == "llava, SigLIP"
    options = {
        "patch_size": 14,
        "vision_feature_select_strategy": "full" if siglip else "default",
        "num_additional_image_tokens": 0 if siglip else 1,
        "chat_template": CHAT,
    }
    processor: Any
    if siglip:
        images: Any = transformers.SiglipImageProcessorPil(size={"height": side, "width": side})
        processor = transformers.LlavaProcessor(images, tokenizer, **options)
    elif kind == "llava":
        processor = transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(**sizes), tokenizer, **options)
    else:
        images = transformers.LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)
        processor = transformers.LlavaNextProcessor(images, tokenizer, **options)
    processor.save_pretrained(folder)
    return processor


def original_names(peer: Peer, with_tower: bool) -> dict[str, Tensor]:
    """The peer's tensors under the names of the original's files."""
    named = {}
    for name, tensor in hub_names(peer.model.state_dict()).items():
        name = name.removeprefix("language_model.")
        name = name.replace("multi_modal_projector.linear_1.", "model.mm_projector.0.")
        name = name.replace("multi_modal_projector.linear_2.", "model.mm_projector.2.")
        name = name.replace("multi_modal_projector.", "model.mm_projector.")  # 1.0: one linear layer
        name = name.replace("vision_tower.", "model.vision_tower.vision_tower.", 1)
        name = "model.image_newline" if name == "image_newline" else name
        if with_tower or "vision_tower" not in name:
            named[name] = tensor
    return named


def write_tower(folder: Path, peer: Peer) -> Path:
    """The vision tower in a folder of its own, as the hub has CLIP: beside a text tower that LLaVA does not use."""
    folder.mkdir()
    vision = peer.model.config.vision_config.to_dict()
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": vision}))
    tensors = {
        name.removeprefix("vision_tower."): tensor
        for name, tensor in hub_names(peer.model.state_dict()).items()
        if name.startswith("vision_tower.")
    }
    save_file({**tensors, "text_model.final_layer_norm.weight": torch.ones(3)}, folder / "model.safetensors")
    return folder


def write_original(folder: Path, peer: Peer, with_tower: bool = True, **changes: Any) -> Path:
    """The peer's model in the original's layout; its tower in the folder `tower` beside it. changes: of its config."""
    text = peer.model.config.text_config
    if not (folder.parent / "tower").exists():
        write_tower(folder.parent / "tower", peer)
    folder.mkdir()
    config = {
        **{key: value for key, value in text.to_dict().items() if key not in ("architectures", "dtype")},
        "model_type": "llava",
        "architectures": [ARCHITECTURES[text.model_type]],
        "mm_vision_tower": str(folder.parent / "tower"),
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 32,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(original_names(peer, with_tower), folder / "model.safetensors")
    shutil.copyfile(VOCABULARY, folder / "tokenizer.model")
    return folder


def write_generation(folder: Path, generation: str, family: str, seed: int) -> Peer:
    """A random small checkpoint of the original's 1.0, 1.5 or 1.6 in `folder / "original"`.

    The peer's processor makes pixels only. Its tiles are the original's: hf's list of pinpoints is (height, width), so
    the same order of shapes resolves ties in the same way.
    """
    peer = write_checkpoint(folder / "hf", "llava_next" if generation == "1.6" else "llava", family, seed)
    side = peer.model.config.vision_config.image_size
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    changes: dict[str, Any] = {}
    processor: Any
    if generation == "1.0":
        projector = torch.nn.Linear(32, peer.model.config.text_config.hidden_size)
        torch.nn.init.normal_(projector.weight, std=0.2)
        peer.model.model.multi_modal_projector = projector
        changes = {"mm_projector_type": "linear", "image_aspect_ratio": "square"}
        processor = transformers.CLIPImageProcessorPil(**sizes)
    elif generation == "1.5":
        processor = transformers.LlavaImageProcessorPil(do_pad=True, **sizes)
    else:
        pinpoints = [list(reversed(shape)) for shape in peer.model.config.image_grid_pinpoints]
        changes = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
        changes["image_grid_pinpoints"] = pinpoints
        processor = peer.processor.image_processor
    original = write_original(folder / "original", peer, with_tower=generation == "1.6", **changes)
    return Peer(peer.model, processor, original)
