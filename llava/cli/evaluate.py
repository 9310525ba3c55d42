"""`llava eval`: measure a model on a benchmark."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava.cli.options import Beside8bitOption, DtypeOption, Load4bitOption, Load8bitOption, precision_of
from llava.errors import LlavaError

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.config import Storage
    from llava.eval.runner import Score
    from llava.fetch import Progress

HELP = """Measure a model on a benchmark.

Writes `summary.json` and every answer (`answers.jsonl`) into the output folder. Interrupted, the same command goes on.

Examples:

    llava eval easy-vqa --model llava-smol

    llava eval easy-vqa --model llava-smol --shuffle-images --limit 1000 --output runs/control

    llava eval smol-suite --model llava-smol

    llava eval smol-suite --model llava-smol --base

smol-suite fetches 500 MB of pictures at its first call, and also writes `answers.html`: every picture and answer.
"""
BENCHMARKS = ("easy-vqa", "smol-suite")


def run(
    benchmark: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    model: Annotated[str, typer.Option(help="An embedded name, an id on the hub, or a folder.")] = "llava-smol",
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, about random images.")] = None,
    output: Annotated[Path | None, typer.Option(help="Default: runs/eval/BENCHMARK-MODEL.")] = None,
    shuffle_images: Annotated[
        bool, typer.Option("--shuffle-images", help="Control: each question is asked about another image.")
    ] = False,
    base: Annotated[
        bool, typer.Option("--base", help="The LLM as it was before tuning, on the questions without a picture.")
    ] = False,
    dtype: DtypeOption = None,
    load_8bit: Load8bitOption = False,
    load_4bit: Load4bitOption = False,
    beside_8bit: Beside8bitOption = False,
    restart: Annotated[bool, typer.Option("--restart", help="Forget earlier answers in the output folder.")] = False,
) -> None:
    """See HELP."""
    precision = precision_of(dtype, load_8bit, load_4bit)
    if benchmark not in BENCHMARKS:
        raise LlavaError(f"unknown benchmark '{benchmark}'; choose one of: {', '.join(BENCHMARKS)}")
    if base and benchmark != "smol-suite":
        raise LlavaError(f"--base asks questions without a picture, which {benchmark} does not have; smol-suite does")
    from llava.registry import model_folder

    folder = model_folder(model)

    import llava
    from llava.checkpoints.load import storage_for
    from llava.cli.progress import bars
    from llava.eval import question, runner
    from llava.eval.benchmarks import easy_vqa, smol_suite
    from llava.files import os_errors

    suffix = (
        ("-base" if base else "")
        + ("-shuffled" if shuffle_images else "")
        + (f"-{precision}" if precision else "")
        + ("-beside8" if beside_8bit else "")
    )
    name = Path(model).name or folder.resolve().name  # a model of the hub lies in a folder called by a hash
    where = output or Path("runs/eval") / f"{benchmark}-{name}{suffix}{f'-{limit}' if limit else ''}"
    if restart:
        with os_errors(f"use the output folder {where}"):
            (where / runner.SETTINGS).unlink(missing_ok=True)
    with bars() as progress:
        if benchmark == "smol-suite":
            questions = smol_suite.load_suite(progress.bytes)
        else:
            questions = easy_vqa.load_questions("test", progress.bytes)
        storage = storage_for(folder, precision, beside_8bit)
        if shuffle_images:
            questions = question.shuffle_images(questions)
        settings = {
            "benchmark": benchmark,
            "model": model,
            "fingerprint": runner.fingerprint(folder),
            "questions": question.digest(questions),
            "limit": limit,
            "shuffle_images": shuffle_images,
            "base": base,
            "precision": storage.precision,
            "beside_8bit": storage.beside_8bit,
        }
        if base:
            questions = [one for one in questions if one.image is None]
            assistant = _untuned(folder, storage, progress.bytes)
        else:
            assistant = llava.load(model, precision=precision, beside_8bit=beside_8bit, progress=progress.bytes)
        chosen = question.choose(questions, limit)
        answers = runner.evaluate(
            assistant,
            chosen,
            settings,
            where,
            lambda done, total, right: progress.items("answering", done, total, f"{right / done:.1%} right"),
        )
    table, ratio = runner.scores(answers), runner.yes_ratio(answers)
    runner.write_summary(where, settings, table, ratio)
    _show(f"{benchmark}, {model}" + (", shuffled images" if shuffle_images else ""), table)
    if benchmark == "smol-suite":
        if ratio is not None:
            typer.echo(f"yes/no: {ratio:.1%} answered yes")
        runner.write_page(where / runner.PAGE, answers, {index: one.image for index, one in chosen})
        typer.echo(f"{where / runner.PAGE}")
    typer.echo(f"{where / runner.SUMMARY}")


def _untuned(folder: Path, storage: "Storage", progress: "Progress") -> "Assistant":
    from llava.assistant import Assistant
    from llava.checkpoints.hf_config import read_json
    from llava.checkpoints.native import CONFIG, default_device, load_native
    from llava.config import load_config

    if "layout" not in read_json(folder / CONFIG) or load_config(folder / CONFIG).base is None:
        raise LlavaError(f"{folder}: --base needs a model that was tuned on base parts; this one is whole")
    return Assistant(load_native(folder, progress, (storage, default_device()), with_adapter=False))


def _show(title: str, table: dict[str, "Score"]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title))
    shown.add_column("question type", no_wrap=True)
    for name in ("accuracy", "± standard error", "95% interval", "correct", "questions"):
        shown.add_column(name, justify="right")
    for kind, score in table.items():
        if kind == "all":
            shown.add_section()
        low, high = score.interval
        error, interval = f"{score.error:.2%}", f"{low:.1%} to {high:.1%}"
        shown.add_row(kind, f"{score.accuracy:.2%}", error, interval, str(score.correct), str(score.questions))
    Console().print(shown)
