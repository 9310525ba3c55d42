"""A small training set of coloured squares, and a base model small enough to train in a test."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import PIL.Image
import torch

from llava.checkpoints.files import write_safetensors
from llava.config import ClipVisionConfig
from llava.models.vision.clip import ClipVisionEncoder
from llava.train.log import StepLog

COLOURS = ("red", "green", "blue", "black")
CHARACTERS = [*sorted({*"abcdefghijklmnopqrstuvwxyz?,."}), "Ġ", "Ċ", "re"]


class Watcher:
    """Keeps what it hears; can interrupt a run after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.logs: list[StepLog] = []
        self.texts: list[str] = []
        self.stop_after = stop_after

    def fetching(self, what: str, done: int, total: int) -> None: ...

    def preparing(self, what: str, done: int, total: int) -> None: ...

    def told(self, text: str) -> None:
        self.texts.append(text)

    def stepped(self, log: StepLog) -> None:
        self.logs.append(log)
        if log.step == self.stop_after:
            raise KeyboardInterrupt


def write_base(folder: Path) -> None:
    """`llm.gguf`, a random two-layer decoder that knows letters, and `clip.safetensors`, a random encoder."""
    random = np.random.default_rng(0)
    width, mlp, tokens = 16, 24, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *CHARACTERS]
    writer = gguf.GGUFWriter(folder / "llm.gguf", "llama")
    writer.add_embedding_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_feed_forward_length(mlp)
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * len(CHARACTERS)])
    writer.add_token_merges(["r e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, *shape: int) -> None:
        values = random.normal(0, 0.3, shape) if len(shape) == 2 else np.ones(shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output_norm.weight", width)
    for layer in range(2):
        for name, shape in {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            "attn_q": (width, width),
            "attn_k": (width // 2, width),
            "attn_v": (width // 2, width),
            "attn_output": (width, width),
            "ffn_gate": (mlp, width),
            "ffn_up": (mlp, width),
            "ffn_down": (width, mlp),
        }.items():
            add(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    torch.manual_seed(0)
    encoder = ClipVisionEncoder(ENCODER)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    write_safetensors(folder / "clip.safetensors", encoder.state_dict())


ENCODER = ClipVisionConfig(
    image_size=14, patch_size=14, hidden_size=8, intermediate_size=16, num_layers=2, num_heads=2, feature_layer=-1
)


def write_data(folder: Path, rows: int = 24) -> list[dict[str, Any]]:
    """`data.json` and `images/`: one coloured square a row, asked for its colour in one or two turns."""
    (folder / "images").mkdir(exist_ok=True)
    data: list[dict[str, Any]] = []
    for index in range(rows):
        colour = COLOURS[index % len(COLOURS)]
        PIL.Image.new("RGB", (10 + index, 12), colour).save(folder / "images" / f"{index}.png")
        turns = [{"from": "human", "value": "<image>\ncolour?"}, {"from": "gpt", "value": colour}]
        if index % 3 == 0:
            turns += [{"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]
        data.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    data.append({"id": "text", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
    (folder / "data.json").write_text(json.dumps(data))
    return data


def recipe_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for `write_base` and `write_data`, as plain values."""
    return {
        "stage": "align",
        "output": str(folder / "out"),
        "model": {
            "llm": str(folder / "llm.gguf"),
            "vision": str(folder / "clip.safetensors"),
            "encoder": ENCODER.model_dump(),
            "image": {"size": 14},
            "template": "chatml",
            "system": "",
        },
        "data": {"path": str(folder / "data.json"), "images": str(folder / "images")},
        "batch_size": 4,
        "max_steps": 6,
        "epochs": 3,
        "learning_rate": 1e-2,
        "checkpoint_every": 2,
        **changes,
    }
