"""Pictures of the catalogue's things, composed and written on all cores."""

import functools
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llava.pictures.catalogue import Catalogue, load_catalogue
from llava.pictures.scenes import DARK, Placed, lit, scene, single, worn


@dataclass(frozen=True)
class Picture:
    """A picture to be made: `entries` in the catalogue, by what `how` says (one, worn, scene or pair), from a seed."""

    file: Path
    how: str
    entries: tuple[int, ...]
    seed: int


@functools.cache
def _catalogue() -> Catalogue:
    return load_catalogue()  # once in each worker process


def make_picture(picture: Picture) -> list[Placed]:
    """Write it, in a worker process. Returns where its things are, in a scene."""
    catalogue, rng = _catalogue(), random.Random(picture.seed)
    entries = [catalogue.entries[i] for i in picture.entries]
    placed: list[Placed] = []
    if picture.how in ("scene", "pair"):
        made, placed = scene(catalogue, entries, rng, DARK, *((0.35,) if picture.how == "pair" else ()))
        made = lit(made, rng)
    else:
        made = (worn if picture.how == "worn" else single)(catalogue, entries[0], rng)
    made.save(picture.file, quality=92)
    return placed


def make_pictures(pictures: Sequence[Picture], progress: Callable[[str, int, int], None]) -> dict[str, list[Placed]]:
    """Write all of them, on all cores. Returns where the things of each file are."""
    found = {}
    with ProcessPoolExecutor() as pool:
        for picture, placed in zip(pictures, pool.map(make_picture, pictures, chunksize=64), strict=True):
            found[picture.file.name] = placed
            progress("making pictures", len(found), len(pictures))
    return found
