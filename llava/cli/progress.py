"""Progress bars for the commands, on stderr, so that stdout holds answers only."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bars:
    """One bar for each kind of work, drawn when it begins; none where stderr is no terminal."""

    def __init__(self, console: Console) -> None:
        label = TextColumn("{task.description}")
        download = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        count = (label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = {
            "bytes": Progress(*download, console=console, transient=True, disable=not console.is_terminal),
            "items": Progress(*count, console=console, transient=True, disable=not console.is_terminal),
        }
        self._tasks: dict[str, TaskID] = {}
        self._active: str | None = None

    def bytes(self, what: str, done: int, total: int) -> None:
        """A download: bytes so far, and in all."""
        self._show("bytes", f"fetching {what}", done, total, "")

    def items(self, what: str, done: int, total: int, note: str = "") -> None:
        """Work on items: how many are done, and in all; `note` stands behind the bar."""
        self._show("items", what, done, total, note)

    def _show(self, kind: str, what: str, done: int, total: int, note: str) -> None:
        if kind != self._active:
            self.stop()
            self._progress[kind].start()
            self._active = kind
        progress = self._progress[kind]
        if what not in self._tasks:
            self._tasks[what] = progress.add_task(what, total=total, note=note)
        progress.update(self._tasks[what], completed=done, total=total, note=note)

    def stop(self) -> None:
        """Take the bars off the screen."""
        if self._active:
            self._progress[self._active].stop()
            self._active = None


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """Progress bars for the length of a block."""
    shown = Bars(Console(stderr=True))
    try:
        yield shown
    finally:
        shown.stop()
