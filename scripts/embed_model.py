"""Put a trained model into the package: config, projector and adapter, without the run's logs.

    python scripts/embed_model.py runs/llava-smol-finetune llava/embedded/llava-smol

The model card (README.md) that is there stays. Refuses more than 25 MB.
"""

import shutil
import sys
from pathlib import Path

from llava.checkpoints.native import ADAPTER, CONFIG, PROJECTOR, load_native
from llava.files import write_text

_LIMIT = 25_000_000  # bytes


def main(source: Path, target: Path) -> None:
    """Check that the model loads, then copy what makes it up, and its loss curves beside it."""
    load_native(source)
    size = sum(path.stat().st_size for name in (PROJECTOR, ADAPTER) for path in _files(source / name))
    if size > _LIMIT:
        sys.exit(f"{source}: {size:,} bytes are too many to embed, the limit is {_LIMIT:,}")
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / CONFIG, (source / CONFIG).read_text(encoding="utf-8"))
    shutil.copyfile(source / PROJECTOR, target / PROJECTOR)
    shutil.copytree(source / ADAPTER, target / ADAPTER, dirs_exist_ok=True)
    print(f"{target}: {size:,} bytes of weights")


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
