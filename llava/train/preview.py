"""A dry run: one rendered sample with its supervised tokens marked, dropped rows, and measured memory and time."""

import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from llava.models.llava import IMAGE_TOKEN
from llava.processor import IGNORE, Prompt
from llava.tokenizer import Tokenizer
from llava.train.compiling import compile_blocks
from llava.train.data import batch_order
from llava.train.log import require_log
from llava.train.loop import Run, Watcher, set_up
from llava.train.recipe import Recipe
from llava.train.state import trainable

TIMED_BATCHES = 2  # batches that are run to estimate the time


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens of one kind: `image` (count of placeholders), `supervised` or `context`."""

    kind: str
    text: str
    tokens: int


@dataclass(frozen=True)
class Preview:
    """What a recipe would do. memory: bytes at the peak of the longest batch; seconds: of the whole run."""

    rows: int
    samples: int
    dropped: Counter[str]
    pieces: list[Piece]
    steps: int
    trainable: int
    parameters: int
    memory: int
    seconds: float
    output: Path


def preview(recipe: Recipe, watcher: Watcher) -> Preview:
    """Do everything that the recipe does before its first step, and time a few batches. Raises LlavaError.

    Features of pictures that are encoded for it are kept in the recipe's cache, where the run finds them.
    """
    require_log()
    run = set_up(recipe, watcher)
    if recipe.compile and run.captions is None:
        compile_blocks(run.model)
    seconds = _time_batches(run)
    first = run.data.prompt(run.data.samples[0])
    return Preview(
        rows=len(run.data.rows),
        samples=len(run.data.samples),
        dropped=run.data.dropped,
        pieces=pieces_of(first, run.data.processor.tokenizer),
        steps=run.steps,
        trainable=sum(p.numel() for p in trainable(run.model).values()),
        parameters=sum(p.numel() for p in run.model.parameters()),
        memory=_peak_memory() + sum(2 * p.nbytes for p in trainable(run.model).values()),  # AdamW's two averages
        seconds=seconds * run.steps * recipe.accumulation,
        output=recipe.output,
    )


def pieces_of(prompt: Prompt, tokenizer: Tokenizer) -> list[Piece]:
    """The prompt's tokens, grouped into stretches of one kind."""
    groups: list[tuple[str, list[int]]] = []
    for token, label in zip(prompt.ids, prompt.labels, strict=True):
        kind = "image" if token == IMAGE_TOKEN else "context" if label == IGNORE else "supervised"
        if not groups or groups[-1][0] != kind:
            groups.append((kind, []))
        groups[-1][1].append(token)
    return [
        Piece(kind, "" if kind == "image" else tokenizer.decode(ids, keep_special=True), len(ids))
        for kind, ids in groups
    ]


def _time_batches(run: Run) -> float:
    """Mean seconds a batch, forward and backward; the longest batch of an epoch runs first, for the memory."""
    batches = batch_order(run.data.samples, run.recipe.batch_size, run.recipe.seed, epoch=0)
    longest = max(batches, key=lambda batch: sum(run.data.samples[i].length for i in batch))
    _forward_backward(run, longest)
    began = time.monotonic()
    for batch in batches[:TIMED_BATCHES]:
        _forward_backward(run, batch)
    return (time.monotonic() - began) / len(batches[:TIMED_BATCHES])


def _forward_backward(run: Run, indices: list[int]) -> None:
    run.loss_sum(run.batch(indices)).backward()  # type: ignore[no-untyped-call]
    run.model.zero_grad(set_to_none=True)


def _peak_memory() -> int:
    """Bytes at the peak of this process, or of its GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
