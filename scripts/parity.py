"""Compare every family and layout with Hugging Face transformers, on random small checkpoints, and write the table.

    python scripts/parity.py docs/parity.md

For each family and layout a checkpoint is written without this package, loaded here and there, and asked about random
pictures: processed pixels and ids must be equal, image features and logits close, greedy ids equal. Needs the test
dependencies. What the original code itself computed (tiles, pixels, prompts, ids, labels) is compared in the tests.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import sentencepiece
import torch
import transformers
from torch import Tensor

from llava import Image, Message, Video
from llava.assistant import Assistant
from llava.chat.templates import Text
from llava.checkpoints.load import load_checkpoint
from llava.engine.sampling import Sampling
from llava.files import write_text
from llava.media.video import SampledVideo
from llava.models.llava import IMAGE_TOKEN

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also when it is run as a file
from scripts.random_checkpoints import (
    ARCHITECTURES,
    FAMILIES,
    GENERATIONS,
    KINDS,
    VOCABULARY,
    Peer,
    resize_as_pillow_13,
    write_checkpoint,
    write_generation,
)

resize_as_pillow_13()
WORDS = ["what", "is", "this", "?", "a", "red", "dog", ",", "two", "cats", "and", "the", "table", "!", "describe"]
ROWS = [*((k, f) for k in KINDS for f in FAMILIES), *((g, f) for g in GENERATIONS for f in ARCHITECTURES)]
SENTENCEPIECE = sentencepiece.SentencePieceProcessor(str(VOCABULARY))


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


@torch.inference_mode()
def compare_original(peer: Peer, ours: Assistant, random: np.random.Generator, found: Differences, greedy: int) -> None:
    """The same for a checkpoint in the original's layout: one picture, ids as `tokenizer_image_token` makes them."""
    picture, question = random_picture(random), " ".join(random.choice(WORDS, int(random.integers(1, 12))))
    visual = Image(picture)
    messages = [Message.user(visual, question)]
    prompt = ours.processor.prompt(messages)
    pixels = peer.processor(picture, return_tensors="pt")["pixel_values"]
    pixels = pixels[0] if pixels.dim() == 5 else pixels
    views = ours.processor.views([visual])
    found.images += 1
    found.pixels = max(found.pixels, distance(pixels, views))

    tiled = pixels.shape[0] > 1
    sizes = {"image_sizes": torch.tensor([[picture.height, picture.width]])} if tiled else {}
    batch = pixels[None] if tiled else pixels
    features = peer.model.get_image_features(pixel_values=batch, **sizes).pooler_output
    expected = torch.cat([item.reshape(-1, item.shape[-1]) for item in features])
    text = "".join(part.text if isinstance(part, Text) else "<image>" for part in ours.processor.segments(messages))
    before, after = (SENTENCEPIECE.encode(chunk) for chunk in text.split("<image>"))
    image_id = peer.model.config.image_token_index
    ids = [SENTENCEPIECE.bos_id(), *before, *[image_id] * len(expected), *after]
    if [image_id if token == IMAGE_TOKEN else token for token in prompt.ids] != ids:
        found.ids += 1
        found.notes.append(f"ids differ: {picture.size}")
        return
    tokens = ours.model.encode(views, [prompt.spans[0].layout])
    found.features = max(found.features, distance(tokens, expected))
    logits = ours.model.llm.logits(ours.model(torch.tensor([prompt.ids]), tokens))
    inputs = {"input_ids": torch.tensor([ids]), "pixel_values": batch, **sizes}
    found.logits = max(found.logits, distance(logits, peer.model(**inputs).logits))
    if greedy:
        answer = list(ours._engine.stream(ours.request(messages), Sampling(greedy)))
        generated = peer.model.generate(**inputs, max_new_tokens=greedy, do_sample=False)[0, len(ids) :].tolist()
        eos = ours.processor.tokenizer.eos_id
        found.greedy += answer != (generated[: generated.index(eos)] if eos in generated else generated)


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
    """All comparisons of one row. kind: of KINDS (hf) or GENERATIONS (original)."""
    found = Differences()
    for seed in range(configs):
        with tempfile.TemporaryDirectory() as name:
            original = kind in GENERATIONS
            peer = (write_generation if original else write_checkpoint)(Path(name), kind, family, seed)
            ours = Assistant(load_checkpoint(peer.folder, template="llava_v1" if kind == "1.0" else None))
            random = np.random.default_rng(seed)
            found.configs += 1
            greedy = 8  # for the first pictures of each configuration
            while found.images < images * (seed + 1) / configs:
                if kind == "llava_next_video" and random.random() < 0.5:
                    compare_video(peer, ours, random, found)
                else:
                    (compare_original if original else compare)(peer, ours, random, found, greedy)
                    greedy = 0
    return found


def table(rows: dict[tuple[str, str], Differences]) -> str:
    """The rows in Markdown."""
    lines = [
        "| layout | LLM | configs | images | pixels | ids that differ | image features | logits | greedy that differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, family), row in rows.items():
        layout = f"original, {kind}" if kind in GENERATIONS else f"hf, {kind}"
        cells = [layout, family, row.configs, row.images, f"{row.pixels:.2g}", row.ids]
        cells += [f"{row.features:.2g}", f"{row.logits:.2g}", row.greedy]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Compare as the command line says, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--configs", type=int, default=50, help="random configurations a row (default 50)")
    parser.add_argument("--images", type=int, default=200, help="random pictures a row (default 200)")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first of the rows")
    options = parser.parse_args()
    rows = {}
    for kind, family in ROWS[: options.rows]:
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

on random small checkpoints that transformers wrote in the layout of the hub (hf), and on such weights in the layout of
haotian-liu/LLaVA (original: 1.0 linear and cropped, 1.5 padded, 1.6 tiled), written without this package; float32,
largest differences. Some prompts to hf checkpoints hold two pictures, and half of those to `llava_next_video` a video.
Pixels and ids must be equal, features and logits within 1e-4. The peer of the original rows is transformers on the same
weights, with tiles in the original's order and the ids that SentencePiece gives for each chunk.

{table}
"""

if __name__ == "__main__":
    main()
