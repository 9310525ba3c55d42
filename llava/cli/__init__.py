"""The command line: `llava chat`, `llava serve` and so on, one file each. Heavy imports happen inside."""

import sys

import typer

from llava.cli import chat, convert, evaluate, inspect, keys, models, serve, train, web
from llava.errors import LlavaError

app = typer.Typer(
    name="llava",
    help="LLaVA: talk about images, train, evaluate and inspect language-and-vision assistants.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command("chat", help=chat.HELP)(chat.run)
app.command("train", help=train.HELP)(train.run)
app.command("eval", help=evaluate.HELP)(evaluate.run)
app.command("inspect", help=inspect.HELP)(inspect.run)
app.command("serve", help=serve.HELP)(serve.run)
app.command("web", help=web.HELP)(web.run)
app.add_typer(keys.app, name="keys")
app.command("models", help=models.HELP)(models.run)
app.command("convert", help=convert.CONVERT_HELP)(convert.convert)
app.command("merge", help=convert.MERGE_HELP)(convert.merge)


def main() -> None:
    """Run the command line. A user's mistake ends with one line on stderr and status 2.

    Typer itself ends Ctrl-C with status 130, a reader that went away with 1, and a wrong usage with 2.
    """
    try:
        app()
    except LlavaError as error:
        sys.stderr.write(f"llava: error: {error}\n")
        sys.exit(2)
