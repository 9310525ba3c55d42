"""The memory of keys and values: how much there is, and what finished requests left in it for later ones."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava.models.cache import KVCache

BLOCK = 64  # slots; memory is counted in blocks


def blocks_for(slots: int) -> int:
    """The blocks that hold so many slots."""
    return -(-slots // BLOCK)


def common_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The length of the prefix that both share."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high - 1:  # a[:low] is shared, a[:high] is not
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(eq=False)
class Prefix:
    """What a finished request left: its keys, and their keys and values."""

    keys: list[Hashable]
    cache: KVCache
    blocks: int


class Prefixes:
    """All blocks of a pool: those in use, and those of kept prefixes, of which the least recently used goes first."""

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self._kept: OrderedDict[int, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, blocks: int) -> bool:
        """Take blocks from the pool, at the cost of kept prefixes if need be. False: there are not enough."""
        if self.free + sum(prefix.blocks for prefix in self._kept.values()) < blocks:
            return False  # and nothing is given up for it
        while self.free < blocks:
            self.free += self._kept.popitem(last=False)[1].blocks
        self.free -= blocks
        return True

    def give(self, blocks: int) -> None:
        """Return blocks to the pool."""
        self.free += blocks

    def keep(self, keys: list[Hashable], cache: KVCache, blocks: int) -> None:
        """Keep a finished request's cache, whose blocks the caller had. Of two that begin alike, the longer stays."""
        covered = not keys
        for name, prefix in list(self._kept.items()) if keys else ():
            last = min(len(prefix.keys), len(keys)) - 1
            if prefix.keys[last] != keys[last]:  # neither begins as the other: told at once, most of the time
                continue
            shared = common_length(prefix.keys, keys)
            if shared == len(keys):
                covered = True
            elif shared == len(prefix.keys):
                self.free += self._kept.pop(name).blocks
        if covered:
            self.free += blocks
        else:
            prefix = Prefix(keys, cache, blocks)
            self._kept[id(prefix)] = prefix

    def best(self, keys: Sequence[Hashable]) -> tuple[int, Prefix | None]:
        """The kept prefix that shares most with `keys`, and how much."""
        found: tuple[int, Prefix | None] = (0, None)
        for prefix in self._kept.values():
            most = min(len(prefix.keys), len(keys))
            if most <= found[0] or prefix.keys[found[0]] != keys[found[0]]:  # it shares no more than what was found
                continue
            length = common_length(prefix.keys, keys)
            if length > found[0]:
                found = (length, prefix)
        if found[1] is not None:
            self._kept.move_to_end(id(found[1]))
        return found

    def pop(self, prefix: Prefix) -> None:
        """Hand a kept prefix, with its blocks, over to the caller."""
        del self._kept[id(prefix)]
