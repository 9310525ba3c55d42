"""From ids to text as it is generated: whole characters only, cut at stop strings."""

from collections.abc import Sequence

from llava.tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are not a whole character


class TextStream:
    """Turns ids, one by one, into text that is safe to show. The space that leads an answer is stripped.

    before: ids of a text that is continued, the last of them: what leads the continuation is part of it, and stays.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids = list(before)
        self._begin = 0  # ids before `_read` are text already; decoding starts at `_begin` for context
        self._read = len(before)
        self._held = ""  # text that may be the beginning of a stop string
        self._started = bool(before)
        self.stopped = False  # a stop string was met: nothing follows

    def push(self, token: int) -> str:
        """Add an id; return the text that can be shown now, often none."""
        self._ids.append(token)
        return self._emit(self._decode(final=False), final=False)

    def finish(self) -> str:
        """The rest of the text, once no id follows."""
        return self._emit(self._decode(final=True), final=True)

    def _decode(self, final: bool) -> str:
        known = self._tokenizer.decode(self._ids[self._begin : self._read])
        text = self._tokenizer.decode(self._ids[self._begin :])
        if text.endswith(_INCOMPLETE) and not final:
            return ""
        self._begin, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _emit(self, text: str, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        if not self._started:
            text = text.lstrip()
            self._started = bool(text)
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            return text[: min(cuts)]
        hold = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
