"""`llava train`: run a recipe, or show what it would do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.cli.progress import Bars
    from llava.train.log import StepLog
    from llava.train.preview import Preview

HELP = """Train a model from a recipe.

Interrupted at any moment, the same command goes on from the last checkpoint. The output folder holds the model (for
`llava chat`, `llava eval` or the next stage), `loss.png`, `log.jsonl` and TensorBoard logs.

Examples:

    llava train recipes/easy-vqa-align.yaml --dry-run

    llava train recipes/easy-vqa-align.yaml

    llava train recipes/easy-vqa-finetune.yaml max_steps=50 lora.rank=4 output=runs/try
"""


class _Watcher:
    """Draws a run's progress bars."""

    def __init__(self, bars: "Bars") -> None:
        self.fetching = bars.bytes
        self.preparing = bars.items
        self._bars = bars

    def stepped(self, log: "StepLog") -> None:
        note = f"loss {log.loss:.4f}  {log.tokens_per_second:.0f} tokens/s"
        self._bars.items("training", log.step, log.steps, note)

    def told(self, text: str) -> None:
        self._bars.stop()
        typer.echo(text, err=True)


def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file; recipes/ has examples.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as data.path=my.json")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show a sample, dropped rows, memory and time; train nothing.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget an earlier run in the output folder.")] = False,
) -> None:
    """See HELP."""
    from llava.cli.progress import bars
    from llava.train.recipe import load_recipe

    chosen = load_recipe(recipe, overrides or [])
    if dry_run:
        from llava.train.preview import preview

        with bars() as progress, _memory_errors():
            report = preview(chosen, _Watcher(progress))
        _show(report)
        return
    from llava.train.loop import train

    try:
        with bars() as progress, _memory_errors():
            output = train(chosen, _Watcher(progress), restart)
    except KeyboardInterrupt:
        same = "The same command without --restart" if restart else "The same command"
        typer.echo(f"\n{same} goes on from the last checkpoint.", err=True)
        raise
    typer.echo(f"{output}: finished; loss curve in {output / 'loss.png'}")


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """What PyTorch makes of memory that ran out, as a message: of a GPU, of the machine, or of a loader's process."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
            raise LlavaError(
                "memory ran out; lower batch_size (and raise accumulation, which keeps the result) or max_tokens, or "
                "train with lora"
            ) from None
        if "DataLoader worker" in text:
            raise LlavaError(f"a process that loads data was killed ({text.splitlines()[0]}); lower workers") from None
        raise


def _show(preview: "Preview") -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    text = Text()
    count = dict.fromkeys(("image", "context", "supervised"), 0)
    for piece in preview.pieces:
        count[piece.kind] += piece.tokens
        if piece.kind == "image":
            text.append(f"[image: {piece.tokens} tokens]", style="cyan")
        elif piece.kind == "supervised":
            text.append(f"[{piece.text}]", style="bold green")
        else:
            text.append(piece.text)
    console.print(
        "a sample as the model gets it, supervised tokens in green and [brackets]:", style="bold", markup=False
    )
    console.print(text)
    console.print(f"\ntokens: {count['image']} image, {count['context']} context, {count['supervised']} supervised")
    console.print(f"rows: {preview.rows}, used: {preview.samples}, dropped: {sum(preview.dropped.values())}")
    for reason, number in preview.dropped.most_common():
        console.print(f"  {number} x {reason}", markup=False)
    console.print(f"trainable parameters: {preview.trainable:,} of {preview.parameters:,}")
    console.print(f"steps: {preview.steps}, about {_duration(preview.seconds)} in all, measured on a few batches")
    console.print(f"memory: {preview.memory / 1e9:.1f} GB at the peak, measured on the longest batch")
    console.print(f"output: {preview.output}", markup=False)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
