"""The training loop. One process; what is computed here stays the same when sharding is applied from outside."""

import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.chat.messages import Visual
from llava.checkpoints.native import CONFIG, Loaded, default_device
from llava.errors import LlavaError
from llava.files import os_errors, sha256, write_text
from llava.models.llava import LlavaModel
from llava.processor import IGNORE
from llava.train.classes import ImaginedClasses
from llava.train.compiling import compile_blocks
from llava.train.data import Batch, Dataset, collate, endless_batches, measure
from llava.train.features import FeatureCache, build_cache
from llava.train.log import LOG, Log, StepLog, draw_loss, read_log, require_log
from llava.train.matching import Captions, caption_of, matching_loss, move_origin, scatter_as_words
from llava.train.precision import autocast, faster_precision
from llava.train.recipe import Recipe
from llava.train.stages import load_model, parameter_groups, prepare, save_trained, trained_folder
from llava.train.state import (
    FINISHED,
    Progress,
    discard_checkpoints,
    discard_run,
    last_precision,
    load_checkpoint,
    parts_in,
    save_checkpoint,
    trainable,
)

_FOR_MEAN = 1000  # samples whose features stand for all, in stage match


class Watcher(Protocol):
    """Hears of a run as it goes; the command line draws progress bars from it."""

    def fetching(self, what: str, done: int, total: int) -> None: ...
    def preparing(self, what: str, done: int, total: int) -> None: ...
    def stepped(self, log: StepLog) -> None: ...
    def told(self, text: str) -> None: ...


@dataclass(frozen=True)
class Run:
    """A run made ready: model with trainable parts, measured data, feature cache.

    captions, mean: of stage match; mean (Dv): of the features, which the projector sees without it.
    """

    recipe: Recipe
    loaded: Loaded
    data: Dataset
    cache: FeatureCache | None
    captions: Captions | None
    imagined: ImaginedClasses | None  # where rows have a class
    precision: str  # float32 or bfloat16
    mean: Tensor | None = None

    @property
    def model(self) -> LlavaModel:
        return self.loaded.model

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        size, pictured = self.recipe.batch_size, sum(bool(sample.sizes) for sample in self.data.samples)
        batches = math.ceil(pictured / size) + math.ceil((len(self.data.samples) - pictured) / size)  # never mixed
        steps = max(1, math.ceil(self.recipe.epochs * batches / self.recipe.accumulation))
        return min(steps, self.recipe.max_steps or steps)

    def batch(self, indices: list[int]) -> Batch:
        """The samples with these indices, padded; those whose pictures turn out corrupt are left out and counted."""
        prompts, visual, classes = [], [], dict[int, int]()
        for index in indices:
            sample = self.data.samples[index]
            prompt = self.data.prompt(sample)
            try:
                visual.append(self._visual([span.image for span in prompt.spans]))
            except LlavaError:
                continue
            prompts.append(prompt)
            if sample.as_class is not None:
                classes[sum(len(views) for views in visual[:-1])] = sample.as_class
        views = torch.cat(visual) if visual else torch.empty(0)
        return collate(prompts, views, len(indices) - len(prompts), classes)

    def loss_sum(self, batch: Batch) -> Tensor:
        """The loss of this stage, summed over what `weight` counts."""
        batch = batch.to(self.model.device)
        features = self.features(batch)
        if self.captions is not None:
            assert self.mean is not None
            own = [caption_of(labels) for labels in batch.labels.tolist()]
            return matching_loss(self.model, features - self.mean, own, self.captions, self.precision)
        return language_loss(self.model, batch, features, self.precision)

    def features(self, batch: Batch) -> Tensor:
        """What the encoder says of a batch's views, (N, T, Dv), in float32."""
        features = batch.visual
        if len(features) == 0:
            features = features.new_empty(0, self.model.vision.num_tokens, self.model.vision.feature_size)
        elif self.cache is None:
            with torch.set_grad_enabled(bool(self.recipe.train_vision)), autocast(self.model, self.precision):
                features = self.model.vision(features).float()
        if self.imagined is not None and batch.classes:
            features = self.imagined.exchange(features, batch.classes)
        return features

    def weight(self, batch: Batch) -> int:
        """What a batch's loss is the sum over: pictures in stage match, else supervised tokens."""
        return len(batch.ids) if self.captions is not None else batch.supervised

    def _visual(self, images: list[Visual]) -> Tensor:
        if self.cache is not None:
            return self.cache.get([Path(str(image.source)) for image in images])
        return self.data.processor.views(images)


def set_up(recipe: Recipe, watcher: Watcher, precision: str | None = None) -> Run:
    """Load the model, check the data, cache the features. Raises LlavaError.

    precision: of the run that is to go on, where the recipe leaves it to the machine.
    """
    loaded = load_model(recipe, watcher.fetching)
    processor = loaded.processor
    if recipe.stage != "finetune":
        processor = processor.with_template("plain")
    data = measure(
        recipe.data,
        processor,
        recipe.max_tokens,
        decode=recipe.cache_features,
        on_row=lambda n, of: watcher.preparing("checking data", n, of),
    )
    if recipe.stage == "match" and any(
        len(sample.sizes) != 1 or processor.layout(sample.sizes[0]).views != 1 for sample in data.samples
    ):
        raise LlavaError(f"{recipe.data.path}: stage match takes rows of one picture, of one view")
    classes = any(sample.as_class is not None for sample in data.samples)
    imagined = ImaginedClasses(loaded.model.vision) if classes else None
    prepare(loaded.model, recipe)
    loaded.model.to(default_device())
    if recipe.precision != "auto":
        precision = recipe.precision
    precision = precision or faster_precision(loaded.model.device)
    cache = None
    if recipe.cache_features and (sizes := data.image_sizes()):
        cache = build_cache(
            loaded.model,
            processor,
            sizes,
            recipe.cache or recipe.output / "cache",
            precision,
            lambda n, of: watcher.preparing("encoding images", n, of),
        )
    captions = None
    if recipe.stage == "match":
        captions = Captions(loaded.model, [caption_of(data.prompt(sample).labels) for sample in data.samples])
    run = Run(recipe, loaded, data, cache, captions, imagined, precision)
    if recipe.stage == "match":
        mean = torch.cat([features.mean(1) for features in _sampled_features(run, watcher)]).mean(0)
        move_origin(loaded.model.projector, mean)  # moved back when the stage has ended
        run = replace(run, mean=mean)
    return run


@torch.no_grad()
def _sampled_features(run: Run, watcher: Watcher) -> Iterator[Tensor]:
    """The features (N, T, Dv) of about a thousand samples, spread over the data."""
    count = len(run.data.samples)
    chosen = list(range(0, count, max(1, count // _FOR_MEAN)))
    for start in range(0, len(chosen), run.recipe.batch_size):
        batch = run.batch(chosen[start : start + run.recipe.batch_size])
        yield run.features(batch.to(run.model.device)).detach()  # an encoder that is trained leaves a graph
        watcher.preparing("measuring features", start + run.recipe.batch_size, len(chosen))


def language_loss(model: LlavaModel, batch: Batch, features: Tensor, precision: str = "float32") -> Tensor:
    """Cross-entropy summed over the batch's supervised tokens; logits are computed there only.

    features: the encoder's (views, T, Dv). precision: float32 or bfloat16; the cross-entropy itself is in float32.
    """
    targets = batch.labels[:, 1:]
    supervised = targets != IGNORE
    with autocast(model, precision):
        image_tokens = model.project(features, batch.layouts)  # (N, D)
        hidden = model(batch.ids, image_tokens)  # (B, T, D)
        logits = model.llm.logits(hidden[:, :-1][supervised])  # (supervised tokens, V): never (B, T, V)
    return F.cross_entropy(logits.float(), targets[supervised], reduction="sum")


def rate_at(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate at a step, as a fraction of its peak: linear warm-up, then cosine to zero."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(recipe: Recipe, watcher: Watcher, restart: bool = False) -> Path:
    """Run a recipe to its end, from its newest checkpoint where there is one. Returns the output folder.

    Killed at any moment, it loses nothing but the steps since the last checkpoint, and goes on exactly as it would
    have. Raises LlavaError.
    """
    if isinstance(recipe.model, Path) and recipe.output.resolve() == trained_folder(recipe.model).resolve():
        raise LlavaError(f"{recipe.output}: is the model that the run starts from; choose another output")
    require_log()
    with os_errors(f"write to the output folder {recipe.output}"):
        if not restart and (recipe.output / FINISHED).exists():
            raise LlavaError(
                f"{recipe.output}: holds a finished run; choose another output, or --restart to begin anew"
            )
        if not restart and (recipe.output / CONFIG).exists() and last_precision(recipe.output) is None:
            raise LlavaError(f"{recipe.output}: holds a model; choose another output, or --restart to replace it")
        if not restart and last_precision(recipe.output) is None and (found := parts_in(recipe.output)):
            raise LlavaError(
                f"{recipe.output}: holds {found[0]} of a run that cannot be gone on with, which would become part of "
                "this one's model; choose another output, or --restart to delete it"
            )
        recipe.output.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    run = set_up(recipe, watcher, None if restart else last_precision(recipe.output))
    if restart:  # not before all is found to be right
        discard_run(recipe.output)
    model = run.model
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate)
    progress = Progress(json.loads(recipe.model_dump_json()), precision=run.precision, begins_with=_beginning(run))
    progress = load_checkpoint(recipe.output, model, optimizer, progress)
    progress.dropped = dict(run.data.dropped)
    if progress.dropped:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in run.data.dropped.most_common(5))
        watcher.told(f"{sum(progress.dropped.values())} of {len(run.data.rows)} rows cannot be used: {reasons}")
    if recipe.compile and run.captions is None:  # stage match does not run the LLM
        compile_blocks(model)
    steps = run.steps
    with contextlib.closing(Log(recipe.output, progress.step)) as log:
        batches = _load(run, progress.batches)
        while progress.step < steps:
            began = time.monotonic()
            scale = rate_at(progress.step, steps, recipe.warmup_ratio)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * scale
            taken = list(itertools.islice(batches, recipe.accumulation))
            progress.corrupt += sum(batch.corrupt for batch in taken)
            seen = (progress.batches + recipe.accumulation) * recipe.batch_size
            if progress.corrupt > recipe.data.max_dropped * max(seen, len(run.data.rows)):
                raise LlavaError(
                    f"{progress.corrupt} samples had corrupt images; mend the data or raise data.max_dropped "
                    f"(now {recipe.data.max_dropped})"
                )
            weight = max(1, sum(run.weight(batch) for batch in taken))
            total = 0.0
            for batch in taken:
                if run.weight(batch) == 0:
                    continue
                loss = run.loss_sum(batch) / weight
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(list(trainable(model).values()), recipe.max_grad_norm)
            if not math.isfinite(total) or not math.isfinite(norm.item()):
                raise LlavaError(f"step {progress.step + 1}: loss {total}, gradient norm {norm}; lower learning_rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds, tokens = time.monotonic() - began, sum(batch.ids.numel() for batch in taken)
            progress.step += 1
            progress.batches += recipe.accumulation
            progress.tokens += tokens
            progress.seconds += seconds
            entry = StepLog(
                progress.step, steps, total, recipe.learning_rate * scale, norm.item(), tokens / max(seconds, 1e-9)
            )
            log.add(entry)
            watcher.stepped(entry)
            if progress.step % recipe.checkpoint_every == 0 or progress.step == steps:  # saving may yet fail
                save_checkpoint(recipe.output, model, optimizer, progress)
                log.draw()
    if run.mean is not None:
        move_origin(model.projector, -run.mean)
        scatter_as_words(model.projector, _sampled_features(run, watcher), model.llm.embed_tokens.weight)
    save_trained(recipe.output, model, recipe)
    write_text(recipe.output / FINISHED, json.dumps(asdict(progress), indent=1) + "\n")
    discard_checkpoints(recipe.output)
    draw_loss(read_log(recipe.output / LOG), recipe.output / "loss.png")
    if progress.corrupt:
        watcher.told(f"{progress.corrupt} samples were left out: their pictures turned out corrupt")
    return recipe.output


def _beginning(run: Run) -> str:
    """A hash of what the run starts from: an exact resume needs the same samples and the same frozen weights."""
    digest = hashlib.sha256(sha256(run.recipe.data.path).encode())
    digest.update(repr([(sample.row, sample.length) for sample in run.data.samples]).encode())
    model, base = run.recipe.model, run.model.config.base
    files = [] if base is None else [Path(base.llm), Path(base.vision)]
    files = [path for path in files if path.is_file()]  # what is known by a name has a hash of its own
    if isinstance(model, Path):
        folder = trained_folder(model)
        files += sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors"), folder / CONFIG])
    for path in files:
        digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step: pages from the kernel come zeroed, which takes time."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        trim_threshold, mmap_threshold, never = -1, -3, -1  # malloc.h
        mallopt(mmap_threshold, 2**25)  # the largest that it takes
        mallopt(trim_threshold, never)


def _load(run: Run, skip: int) -> Iterator[Batch]:
    """Batches from epoch after epoch, made in `recipe.workers` processes beside this one."""
    order = endless_batches(run.data.samples, run.recipe.batch_size, run.recipe.seed, skip)
    if run.recipe.workers == 0:
        return (run.batch(indices) for indices in order)
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        range(len(run.data.samples)),  # type: ignore[arg-type]
        batch_sampler=order,
        collate_fn=run.batch,
        num_workers=run.recipe.workers,
        generator=torch.Generator(),  # of its own: the loop's random state must not depend on it
    )
    return iter(loader)
