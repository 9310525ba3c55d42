"""The command line: `llava chat`, `llava serve` and so on, one file each. Heavy imports happen inside."""

import signal
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

    Typer itself ends Ctrl-C with status 130, a reader that went away with 1, and a wrong usage with 2. Ended by another
    process, or with its terminal, it deletes its temporary files as after Ctrl-C.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # `nohup` has it ignored
            signal.signal(number, lambda found, _: sys.exit(128 + found))
    try:
        app()
    except LlavaError as error:
        sys.stderr.write(f"llava: error: {error}\n")
        sys.exit(2)
