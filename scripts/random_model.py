"""Write a checkpoint of a published model's exact shape with random weights, in the original's layout, in float16.

    python scripts/random_model.py /tmp/random-7b
    python scripts/random_model.py /tmp/random-2gb --layers 2

It is for measuring memory and speed: shard by shard, so that it needs little memory itself. Its answers mean nothing.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import mistral_common
import torch
from torch import Tensor

from llava.checkpoints.convert import write_shards
from llava.checkpoints.write import original_name, original_values
from llava.config import LlavaConfig
from llava.errors import LlavaError
from llava.files import atomic_folder, write_text
from llava.models.llava import LlavaModel
from llava.registry import PUBLISHED

TOKENIZER = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"  # as many tokens as LLaMA's

_BLOCK = 4_000_037  # a prime number: rows of a matrix must not be alike


def tensors(config: LlavaConfig) -> Iterator[tuple[str, Tensor]]:
    """Random weights of the usual size, one by one; all repeat the same numbers, for drawing billions takes minutes."""
    with torch.device("meta"):
        model = LlavaModel(config)
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    for name, empty in model.state_dict().items():
        weight = block.repeat(-(-empty.numel() // _BLOCK))[: empty.numel()].view(empty.shape)
        yield name, (weight + 1 if "norm" in name and name.endswith("weight") else weight)


def main() -> None:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="liuhaotian/llava-v1.5-7b", choices=[*PUBLISHED], metavar="ID")
    parser.add_argument("--layers", type=int, help="fewer layers of the LLM than the model has")
    parser.add_argument("--shard", type=float, default=1.0, help="GB a shard (default 1)")
    options = parser.parse_args()
    if options.target.exists() and not (options.target / "config.json").exists():
        parser.error(f"{options.target} holds something else than a model, and would be replaced: name a new folder")
    config = PUBLISHED[options.model].shape()
    if options.layers:
        config = config.model_copy(update={"llm": config.llm.model_copy(update={"num_layers": options.layers})})
    values = original_values(config, "openai/clip-vit-large-patch14-336")
    with atomic_folder(options.target) as folder:
        write_text(folder / "config.json", json.dumps({**values, "image_aspect_ratio": "pad"}, indent=2) + "\n")
        shutil.copyfile(TOKENIZER, folder / "tokenizer.model")
        write_shards(folder, tensors(config), original_name, int(options.shard * 1e9))
    size = sum(file.stat().st_size for file in options.target.glob("*.safetensors"))
    print(f"{options.target}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    try:
        main()
    except LlavaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
