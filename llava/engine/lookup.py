"""Prompt lookup decoding: what followed the last few tokens when they stood there before, as a guess at what follows.

The model runs a guess and its own next token in one step; the part of the guess that it would have chosen is kept, so a
greedy answer stays what it is (Saxena 2023, "Prompt Lookup Decoding"; Leviathan et al. 2023).
"""

from collections.abc import Iterable

_SIZE = 3  # tokens that must stand there before
_MOST = 8  # tokens of a guess
_PAUSE = 16  # tokens without a guess, after guesses that were all wrong


class Lookup:
    """The tokens of a prompt and its answer so far, and where each few of them stood last."""

    def __init__(self, ids: Iterable[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._length, self._pause = _MOST // 2, 0
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token is known."""
        if len(self._ids) >= _SIZE:
            self._after[tuple(self._ids[-_SIZE:])] = len(self._ids)
        self._ids.append(token)
        self._pause -= 1

    def guess(self) -> list[int]:
        """The tokens that may follow; placeholders of pictures never do."""
        place = self._after.get(tuple(self._ids[-_SIZE:]))
        if place is None or self._pause > 0:
            return []
        period = len(self._ids) - place  # what is repeated now may go on being repeated
        found = [self._ids[place + index % period] for index in range(self._length)]
        return found[: next((index for index, token in enumerate(found) if token < 0), len(found))]

    def judged(self, right: int, of: int) -> None:
        """So many tokens of a guess were right: the next one is longer, or shorter, or has to wait."""
        if right == of:
            self._length = min(_MOST, self._length * 2)
        elif right == 0:
            self._pause = _PAUSE if self._length == 1 else 0
            self._length = max(1, self._length // 2)
