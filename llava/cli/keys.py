"""`llava keys`: who may use a server, and how much."""

from typing import Annotated

import typer

from llava.cli.options import KeysOption

HELP = """Make, limit and revoke the keys of `llava serve`, and see what they used.

Examples:

    llava keys create alice

    llava keys create bob --requests-per-minute 20 --tokens-per-day 100000

    llava keys list

    llava keys usage --days 7

    llava keys revoke bob
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[str, typer.Argument(help="The user's name.")]

RequestsMinute = Annotated[int | None, typer.Option(min=0, help="No limit unless given; so are all of these.")]
Quota = Annotated[int | None, typer.Option(min=0)]


@app.command("create")
def create(
    name: Name,
    requests_per_minute: RequestsMinute = None,
    requests_per_day: Quota = None,
    tokens_per_minute: Quota = None,
    tokens_per_day: Quota = None,
    images_per_minute: Quota = None,
    images_per_day: Quota = None,
    keys: KeysOption = None,
) -> None:
    """Make a key and print it, for the only time: the file holds its hash."""
    from llava.serve.keys import KeyStore, Quotas, default_keys

    quotas = Quotas(
        requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, images_per_minute, images_per_day
    )
    typer.echo(KeyStore(keys or default_keys()).create(name, quotas))


@app.command("limit")
def limit(
    name: Name,
    requests_per_minute: RequestsMinute = None,
    requests_per_day: Quota = None,
    tokens_per_minute: Quota = None,
    tokens_per_day: Quota = None,
    images_per_minute: Quota = None,
    images_per_day: Quota = None,
    keys: KeysOption = None,
) -> None:
    """Give a key other quotas, in the place of all that it had. A running server heeds them at once."""
    from llava.serve.keys import KeyStore, Quotas, default_keys

    quotas = Quotas(
        requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, images_per_minute, images_per_day
    )
    KeyStore(keys or default_keys()).limit(name, quotas)


@app.command("revoke")
def revoke(name: Name, keys: KeysOption = None) -> None:
    """Refuse a key from now on, also in a server that runs."""
    from llava.serve.keys import KeyStore, default_keys

    KeyStore(keys or default_keys()).revoke(name)


@app.command("list")
def list_keys(keys: KeysOption = None) -> None:
    """Show all keys: their names and beginnings, quotas, and whether they are revoked."""
    from datetime import datetime, timezone

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from llava.serve.keys import KeyStore, default_keys

    table = Table("name", "key", "made", "a minute", "a day", "revoked")
    for key in KeyStore(keys or default_keys()).all():
        quotas = [
            ", ".join(
                f"{getattr(key.quotas, f'{what}_{window}')} {what}"
                for what in ("requests", "tokens", "images")
                if getattr(key.quotas, f"{what}_{window}") is not None
            )
            for window in ("minute", "day")
        ]
        times = [
            "" if time is None else datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%d %H:%M")
            for time in (key.created, key.revoked)
        ]
        table.add_row(escape(key.name), f"{key.hint}...", times[0], *(text or "no limit" for text in quotas), times[1])
    Console().print(table)


@app.command("usage")
def usage(
    days: Annotated[int, typer.Option(min=1, max=400, help="How many days, today (UTC) included.")] = 30,
    keys: KeysOption = None,
) -> None:
    """Show what each key used, by day."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from llava.serve.keys import KeyStore, default_keys

    table = Table("day (UTC)", "name")
    for column in ("requests", "tokens", "images"):
        table.add_column(column, justify="right")
    for day, name, used in KeyStore(keys or default_keys()).use(days):
        table.add_row(day, escape(name), f"{used.requests:,}", f"{used.tokens:,}", f"{used.images:,}")
    Console().print(table)
