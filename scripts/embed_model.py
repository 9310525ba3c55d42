"""Put a trained model into the package: config, projector, adapter and encoder in 16 bits, without the run's logs.

    python scripts/embed_model.py runs/llava-smol-finetune-3 llava/embedded/llava-smol

The model card (README.md) that is there stays. Refuses more than 25 MB.
"""

import shutil
import sys
from pathlib import Path

from llava.checkpoints.files import read_safetensors, write_safetensors
from llava.checkpoints.native import ADAPTER, CONFIG, LLM, PROJECTOR, VISION, load_native
from llava.errors import LlavaError
from llava.files import atomic_folder

CARD = "README.md"
_LIMIT = 25_000_000  # bytes


def main(source: Path, target: Path) -> None:
    """Check that the model loads, then copy what makes it up."""
    if target.exists() and not (target / CONFIG).exists():
        raise LlavaError(f"{target}: holds something else than a model, and would be replaced")
    if not (source / ADAPTER).exists():
        raise LlavaError(f"{source}: has no adapter; a whole LLM is too large to embed")
    if (source / LLM).exists():
        raise LlavaError(f"{source}: its adapter stands on an LLM of its own ({LLM}), which is too large to embed")
    load_native(source)
    weights = [path for path in sorted(source.glob("*.safetensors")) if path.name in (PROJECTOR, VISION)]
    weights += sorted((source / ADAPTER).glob("*.safetensors"))
    with atomic_folder(target) as folder:
        if (target / CARD).exists():
            shutil.copyfile(target / CARD, folder / CARD)
        shutil.copyfile(source / CONFIG, folder / CONFIG)
        shutil.copytree(source / ADAPTER, folder / ADAPTER, ignore=shutil.ignore_patterns("*.safetensors"))
        for path in weights:
            halves = {k: v.half() if v.is_floating_point() else v for k, v in read_safetensors(path).items()}
            write_safetensors(folder / path.relative_to(source), halves)
        size = sum((folder / path.relative_to(source)).stat().st_size for path in weights)
        if size > _LIMIT:
            raise LlavaError(f"{source}: {size:,} bytes are too many to embed, the limit is {_LIMIT:,}")
    print(f"{target}: {size:,} bytes of weights")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except LlavaError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
