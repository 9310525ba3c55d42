"""`llava convert` and `llava merge`: checkpoints from one layout to another, and LoRA folded into its base."""

from pathlib import Path
from typing import Annotated

import typer

from llava.cli.options import Beside8bitOption, Load4bitOption, Load8bitOption, TemplateOption, precision_of
from llava.errors import LlavaError

CONVERT_HELP = """Write a model in another layout: hf (transformers, vLLM), original (haotian-liu/LLaVA) or native.

Tensors keep their bits: a way there and back gives the same files. With --load-8bit or --load-4bit, a quantized
checkpoint is written in the native layout: smaller, and faster to load.

Examples:

    llava convert liuhaotian/llava-v1.5-7b llava-1.5-7b-hf --to hf

    llava convert llava-hf/llava-1.5-7b-hf llava-1.5-7b --to native

    llava convert llava-hf/llava-1.5-7b-hf llava-1.5-7b-int4 --to native --load-4bit
"""
MERGE_HELP = """Fold a LoRA into its base, and write one whole model in the layout that the LoRA has.

It is a LoRA folder of the original layout, or what `llava train` wrote. Checks that the merged model gives the same
logits as base and adapter together.

Examples:

    llava merge liuhaotian/llava-v1.5-7b-lora llava-v1.5-7b-merged

    llava merge runs/mine mine-merged
"""
LAYOUTS = ("hf", "original", "native")


def convert(
    source: Annotated[str, typer.Argument(help="A folder, or an id on the hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    to: Annotated[str, typer.Option(help=f"The layout to write: {', '.join(LAYOUTS)}.")],
    template: TemplateOption = None,
    load_8bit: Load8bitOption = False,
    load_4bit: Load4bitOption = False,
    beside_8bit: Beside8bitOption = False,
) -> None:
    """See CONVERT_HELP."""
    if to not in LAYOUTS:
        raise LlavaError(f"--to {to}: choose one of: {', '.join(LAYOUTS)}")
    _refuse_existing(target)
    from llava.checkpoints import convert as conversion
    from llava.config import Storage
    from llava.registry import model_folder, published_template

    precision = precision_of(None, load_8bit, load_4bit)
    if beside_8bit and precision is None:
        raise LlavaError("--beside-8bit goes with --load-8bit or --load-4bit")
    storage = Storage(precision, beside_8bit) if precision else None
    opened = conversion.open_source(model_folder(source), template or published_template(source))
    conversion.convert(opened, target, to, storage)  # type: ignore[arg-type]
    typer.echo(f"{target}: {to} layout" + (f", {precision}" if precision else ""))


def merge(
    adapter: Annotated[str, typer.Argument(help="A LoRA folder, or an id on the hub.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
) -> None:
    """See MERGE_HELP."""
    _refuse_existing(target)
    from llava.checkpoints.merge import merge as fold
    from llava.registry import model_folder

    difference = fold(model_folder(adapter), target)
    typer.echo(f"{target}: merged; logits differ by at most {difference:.2g}")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise LlavaError(f"{target}: exists already; choose another folder, or delete it")
