"""How often stage 1 alone (`match`) gives a held-out picture its name: the nearest one, by the LLM's own embeddings.

In both spaces of the stage: as the embeddings are, and whitened.

    python scripts/smol_nearest.py runs/llava-smol-align

The names are those that training has; a picture whose name is not among them is left out. No LLM runs.
"""

import argparse
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from llava.chat.messages import Image
from llava.checkpoints.native import CONFIG, load_base, load_visual_parts
from llava.config import load_config
from llava.pictures.catalogue import load_catalogue
from llava.pictures.scenes import single
from llava.train.matching import Captions

_BATCH = 32


@torch.inference_mode()
def main(folder: Path) -> None:
    """Print the share of each split."""
    loaded = load_base(load_config(folder / CONFIG))
    load_visual_parts(loaded.model, folder)
    model, tokenizer = loaded.model, loaded.processor.tokenizer
    catalogue = load_catalogue()
    names = sorted({entry.name for entry in catalogue.of("train")})
    captions = Captions(model, [tuple(tokenizer.encode(f"{name}\n")[0]) for name in names])
    for split in ("test", "style"):
        entries = [entry for entry in catalogue.of(split) if entry.name in names]
        right = [0, 0]
        for start in range(0, len(entries), _BATCH):
            batch = entries[start : start + _BATCH]
            pictures = [Image(single(catalogue, entry, random.Random(0), vary=False)) for entry in batch]
            features = model.vision(loaded.processor.views(pictures))
            away = model.projector(features).mean(1) - model.llm.embed_tokens.weight.mean(0)
            tokens = F.normalize(away @ captions.spaces, dim=-1)
            for space, nearest in enumerate((tokens @ captions.texts.transpose(1, 2)).argmax(-1).tolist()):
                right[space] += sum(
                    names[i] in (entry.name, *entry.also) for i, entry in zip(nearest, batch, strict=True)
                )
        plain, whitened = (count / len(entries) for count in right)
        print(f"{split}: {plain:.1%}, whitened {whitened:.1%}, of {len(entries)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the output folder of a run, or of an embedded model")
    main(parser.parse_args().folder)
