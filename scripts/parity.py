"""Compare every family and layout with Hugging Face transformers, on random small checkpoints, and write the table.

    python scripts/parity.py docs/parity.md

For each family a checkpoint is written by transformers in the layout of the hub, loaded here and there, and asked about
random pictures: processed pixels and ids must be equal, image features and logits close, greedy ids equal. Needs the
test dependencies. What the original code computed (pixels, prompts, ids, labels) is compared in the tests.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mistral_common
import numpy as np
import PIL.Image
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from llava import Image, Message, Video
from llava.assistant import Assistant
from llava.checkpoints.load import load_checkpoint
from llava.engine.sampling import Sampling
from llava.files import write_text
from llava.media.video import SampledVideo
from llava.models.llava import IMAGE_TOKEN

KINDS = ("llava", "llava_next", "llava_next_video")
FAMILIES = ("llama", "mistral", "qwen2")
CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
WORDS = ["what", "is", "this", "?", "a", "red", "dog", ",", "two", "cats", "and", "the", "table", "!", "describe"]


@dataclass
class Peer:
    """transformers' model and processor, and the folder that both sides load."""

    model: Any
    processor: Any
    folder: Path


@dataclass
class Differences:
    """The largest difference of each figure over all comparisons of a row; ids and pixels are counted."""

    images: int = 0
    configs: int = 0
    pixels: float = 0.0
    ids: int = 0
    features: float = 0.0
    logits: float = 0.0
    greedy: int = 0
    notes: list[str] = field(default_factory=list)


def write_checkpoint(folder: Path, kind: str, family: str, seed: int) -> Peer:
    """A random small checkpoint of this kind, in the layout of the hub."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)

    def pick(*choices: Any) -> Any:
        return choices[int(random.integers(len(choices)))]

    side, heads = pick(28, 42), pick(2, 4)
    vision = transformers.CLIPVisionConfig(
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
    )
    special = {"image_token_index": 32000, "vision_config": vision, "text_config": text}
    if kind == "llava":
        config: Any = transformers.LlavaConfig(**special)
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
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        shutil.copyfile(vocabulary, source / "tokenizer.model")
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **tokens}
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
        (source / "config.json").write_text('{"model_type": "llama"}')
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<image>", "<pad>", "<video>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    options = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": CHAT,
    }
    if kind == "llava":
        processor: Any = transformers.LlavaProcessor(transformers.CLIPImageProcessorPil(**sizes), tokenizer, **options)
    else:
        images = transformers.LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=pinpoints)
        processor = transformers.LlavaNextProcessor(images, tokenizer, **options)
    processor.save_pretrained(folder)
    return processor


@torch.inference_mode()
def compare(peer: Peer, ours: Assistant, random: np.random.Generator, found: Differences, greedy: int) -> None:
    """Ask both sides about one or two random pictures; keep the largest differences in `found`."""
    count = 1 + int(random.random() < 0.3)
    pictures = [random_picture(random) for _ in range(count)]
    question = " ".join(random.choice(WORDS, int(random.integers(1, 12))))
    parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
    text = peer.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    theirs = peer.processor(images=pictures, text=text, return_tensors="pt")
    visuals = [Image(picture) for picture in pictures]
    messages = [Message.user(*visuals, question)]
    prompt = ours.processor.prompt(messages)
    views = ours.processor.views(visuals)

    pixels = theirs["pixel_values"]
    layouts = [span.layout for span in prompt.spans]
    if pixels.dim() == 5:  # padded to the most tiles of a picture
        pixels = torch.cat([item[: layout.views] for item, layout in zip(pixels, layouts, strict=True)])
    found.images += count
    found.pixels = max(found.pixels, distance(pixels, views))
    image_id = peer.model.config.image_token_index
    mine = [image_id if token == IMAGE_TOKEN else token for token in prompt.ids]
    if mine != theirs["input_ids"][0].tolist():
        found.ids += 1
        found.notes.append(f"ids differ: {[picture.size for picture in pictures]}")
        return
    tokens = ours.model.encode(views, layouts)
    sizes = {"image_sizes": theirs["image_sizes"]} if "image_sizes" in theirs else {}
    features = peer.model.get_image_features(pixel_values=theirs["pixel_values"], **sizes).pooler_output
    expected = torch.cat([item.reshape(-1, item.shape[-1]) for item in features])
    found.features = max(found.features, distance(tokens, expected))
    logits = ours.model.llm.logits(ours.model(torch.tensor([prompt.ids]), tokens))
    found.logits = max(found.logits, distance(logits, peer.model(**theirs).logits))
    if greedy:
        answer = list(ours._engine.stream(ours.request(messages), Sampling(greedy)))
        generated = peer.model.generate(**theirs, max_new_tokens=greedy, do_sample=False)[0, len(prompt.ids) :].tolist()
        eos = ours.processor.tokenizer.eos_id
        generated = generated[: generated.index(eos)] if eos in generated else generated
        found.greedy += answer != generated


@torch.inference_mode()
def compare_video(peer: Peer, ours: Assistant, random: np.random.Generator, found: Differences) -> None:
    """The same for a video of a few frames. transformers' own video processor needs torchvision: frames go one by one
    through its image processor, and ids are put together here."""
    frames = [random_picture(random) for _ in range(int(random.integers(1, 7)))]
    clip = Video("not opened")
    clip.__dict__["sampled"] = SampledVideo(frames, [float(i) for i in range(len(frames))], len(frames) - 1.0)
    messages = [Message.user(clip, "what is this ?")]
    prompt = ours.processor.prompt(messages)
    side = ours.processor.image.size
    clip_pixels = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    pixels = torch.cat([clip_pixels(frame, return_tensors="pt")["pixel_values"] for frame in frames])
    views = ours.processor.views([clip])
    found.images += 1
    found.pixels = max(found.pixels, distance(pixels, views))
    tokens = ours.model.encode(views, [prompt.spans[0].layout])
    expected = peer.model.get_video_features(pixels[None]).pooler_output
    expected = torch.cat([item.reshape(-1, item.shape[-1]) for item in expected])
    found.features = max(found.features, distance(tokens, expected))
    ids = torch.tensor([prompt.ids])
    theirs = ids.masked_fill(ids == IMAGE_TOKEN, peer.model.config.video_token_index)
    logits = ours.model.llm.logits(ours.model(ids, tokens))
    their_logits = peer.model(input_ids=theirs, pixel_values_videos=pixels[None]).logits
    found.logits = max(found.logits, distance(logits, their_logits))


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference; infinite where shapes differ or a value is no number."""
    if ours.shape != theirs.shape:
        return float("inf")
    largest = float((ours - theirs).abs().max()) if ours.numel() else 0.0
    return float("inf") if math.isnan(largest) else largest


def random_picture(random: np.random.Generator) -> PIL.Image.Image:
    """Noise of a random size; thin ones among them."""
    width, height = (int(n) for n in np.exp(random.uniform(np.log(3), np.log(400), 2)))
    return PIL.Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def run(kind: str, family: str, configs: int, images: int) -> Differences:
    """All comparisons of one row."""
    found = Differences()
    for seed in range(configs):
        with tempfile.TemporaryDirectory() as name:
            peer = write_checkpoint(Path(name), kind, family, seed)
            ours = Assistant(load_checkpoint(Path(name)))
            random = np.random.default_rng(seed)
            found.configs += 1
            first = True
            while found.images < images * (seed + 1) / configs:
                if kind == "llava_next_video" and random.random() < 0.5:
                    compare_video(peer, ours, random, found)
                else:
                    compare(peer, ours, random, found, greedy=8 if first else 0)
                    first = False
    return found


def table(rows: dict[tuple[str, str], Differences]) -> str:
    """The rows in Markdown."""
    lines = [
        "| layout | LLM | configs | images | pixels | ids that differ | image features | logits | greedy that differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, family), row in rows.items():
        cells = [kind, family, row.configs, row.images, f"{row.pixels:.2g}", row.ids]
        cells += [f"{row.features:.2g}", f"{row.logits:.2g}", row.greedy]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Compare as the command line says, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--configs", type=int, default=50, help="random configurations a row (default 50)")
    parser.add_argument("--images", type=int, default=200, help="random pictures a row (default 200)")
    options = parser.parse_args()
    rows = {}
    for kind in KINDS:
        for family in FAMILIES:
            rows[kind, family] = run(kind, family, options.configs, options.images)
            print(kind, family, rows[kind, family], file=sys.stderr)
    arguments = f" --configs {options.configs} --images {options.images}"
    text = PAGE.format(arguments=arguments if arguments != " --configs 50 --images 200" else "", table=table(rows))
    write_text(options.page, text)
    print(text)


PAGE = """# Parity with transformers

Made by

```sh
python scripts/parity.py docs/parity.md{arguments}
```

on random small checkpoints in the layout of the hub; float32, largest differences. Some prompts hold two pictures, and
half of those to `llava_next_video` a video. Pixels and ids must be equal, features and logits within 1e-4.

{table}
"""

if __name__ == "__main__":
    main()
