"""Which requests run in the next step, and how many of their tokens: clients take turns, within the memory.

A request that waits is admitted when there is memory for its prompt. Every running answer gets its next token in every
step; what is left of a step is shared evenly among the prompts that are being read, so a long one stalls nobody. When
memory runs out, kept prefixes go first, then the request that was admitted last: it waits again, in front, and will be
computed anew.
"""

import bisect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch

from llava.config import DecoderConfig
from llava.engine.prefixes import BLOCK, Prefixes, blocks_for, common_length
from llava.engine.request import Finish, Generation
from llava.errors import EngineError, LlavaError
from llava.models.cache import KVCache


@dataclass(frozen=True)
class Limits:
    """What a step and the memory hold."""

    blocks: int  # of keys and values, in all
    running: int = 32  # requests at once
    step_tokens: int = 1024  # of prompts, in a step without running answers
    shared_tokens: int = 128  # of prompts, in a step with running answers: they wait for it


class Scheduler:
    """The requests that wait and run, and their memory. It never sees weights or tensors' values."""

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype, limits: Limits) -> None:
        self._config, self._device, self._dtype, self.limits = config, device, dtype, limits
        self.waiting: list[Generation] = []
        self.running: list[Generation] = []
        self.prefixes = Prefixes(limits.blocks)
        self._orders = count()
        self._turn = 0  # of the request that was admitted last

    def enqueue(self, one: Generation, place: int) -> None:
        """Let a request wait. place: how many of the same client's stand before it.

        Clients take turns: the first of one that comes later goes before the second of one that asks for many at once.
        """
        one.turn = self._turn + 1 + place
        bisect.insort_right(self.waiting, one, key=lambda other: other.turn)  # those that gave way have turns before

    def schedule(self) -> list[tuple[Generation, int]]:
        """The next step: requests, and how many tokens of each. Requests that can never run are finished."""
        self._admit()
        plan: list[tuple[Generation, int]] = []
        answering = [one for one in self.running if one.length - one.filled == 1]
        reading = [one for one in self.running if one.length - one.filled > 1]
        budget = self.limits.shared_tokens if answering else self.limits.step_tokens
        shares: dict[Generation, int] = {}
        for index, one in enumerate(sorted(reading, key=lambda one: one.length - one.filled)):
            share = max(1, budget // (len(reading) - index))
            shares[one] = min(share, one.length - one.filled)
            budget -= shares[one]
        for one in list(self.running):
            try:
                if one in self.running and self._has_room(one):  # and not preempted for an older one
                    plan.append((one, shares.get(one, 1 + len(one.guess))))
            except (RuntimeError, MemoryError) as error:
                self.finish(one, "error", _refused(error))
        return plan

    def finish(self, one: Generation, reason: Finish, error: LlavaError | None = None) -> None:
        """End a request, wherever it is. What it computed is kept for later ones, unless it failed."""
        one.finished, one.error, one.held = reason, error, None
        for queue in (self.waiting, self.running):
            if one in queue:
                queue.remove(one)
        if one.cache is not None:
            cache, blocks = self._detach(one)
            keys = one.keys(cache.length) if reason != "error" else []
            self.prefixes.keep(keys, cache, blocks)

    def _admit(self) -> None:
        for one in list(self.waiting):
            if len(self.running) >= self.limits.running:
                return
            keys = one.keys(one.length)
            if self._is_being_read(keys):
                continue
            try:
                started = self._start(one, keys)
            except (RuntimeError, MemoryError) as error:
                self.finish(one, "error", _refused(error))
                continue
            if not started:
                if self.running:
                    return  # nobody overtakes the one that memory is awaited for
                self.finish(one, "error", self._too_long(one))

    def _is_being_read(self, keys: Sequence[Hashable]) -> bool:
        """Whether a running request is about to compute much that a request of these keys needs too."""
        shared = [(other, common_length(other.request.keys, keys)) for other in self.running]
        ready = max([self.prefixes.best(keys)[0], *(min(length, other.filled) for other, length in shared)])
        return any(length > other.filled and length - ready >= BLOCK for other, length in shared)

    def _start(self, one: Generation, keys: list[Hashable]) -> bool:
        """Give a waiting request its memory, with what is already known of its tokens in it. False: no memory."""
        last = one.length - 1  # the last token must run: its scores are needed
        length, prefix = self.prefixes.best(keys)
        others = [(min(common_length(other.request.keys, keys), other.filled), other) for other in self.running]
        nearest = max(others, key=lambda pair: pair[0], default=None)
        source: KVCache | None = None
        if nearest is not None and nearest[0] > length:
            length, prefix, source = nearest[0], None, nearest[1].cache
        elif prefix is not None and length == len(prefix.keys):  # all of it: it can be continued in place
            self.prefixes.pop(prefix)
            one.cache, one.blocks = prefix.cache, prefix.blocks
        elif prefix is not None:
            source = prefix.cache
        if one.cache is None:
            one.cache = KVCache(self._config, self._device, self._dtype)
        if not self._grow(one, one.length):
            cache, blocks = self._detach(one)
            self.prefixes.keep(keys[: cache.length], cache, blocks)
            return False
        if source is not None:
            one.cache.copy_from(source, min(length, last))
        one.cache.length = min(length, last)
        if one.usage.preemptions == 0:
            one.usage = replace(one.usage, reused_tokens=one.cache.length)
        one.order = next(self._orders)
        self._turn = max(self._turn, one.turn)
        self.waiting.remove(one)
        self.running.append(one)
        return True

    def _has_room(self, one: Generation) -> bool:
        """Make room for a running request's next tokens; False when it had to give way itself."""
        while not self._grow(one, one.length + len(one.guess)):
            if one.guess:  # not worth another's memory
                one.guess = []
                continue
            youngest = max(self.running, key=lambda other: other.order)
            if youngest is one and len(self.running) == 1:
                self.finish(one, "error", self._too_long(one))
                return False
            self._preempt(youngest)
            if youngest is one:
                return False
        return True

    def _grow(self, one: Generation, slots: int) -> bool:
        """Let a request's cache hold `slots`, and some to come where memory allows."""
        assert one.cache is not None
        if slots <= one.cache.slots:
            return True
        spare = min(one.limit - len(one.output), max(BLOCK, slots // 4))
        more = blocks_for(slots + spare) - one.blocks
        if more > self.prefixes.free:  # spare room is no reason to forget anything
            more = blocks_for(slots) - one.blocks
        if not self.prefixes.take(more):
            return False
        one.blocks += more  # whatever becomes of the next line, they are returned with the others
        one.cache.reserve(one.blocks * BLOCK)
        return True

    def _preempt(self, one: Generation) -> None:
        self.running.remove(one)
        _, blocks = self._detach(one)
        one.guess = []
        self.prefixes.give(blocks)
        one.usage = replace(one.usage, preemptions=one.usage.preemptions + 1)
        self.waiting.insert(0, one)

    def _detach(self, one: Generation) -> tuple[KVCache, int]:
        cache, blocks = one.cache, one.blocks
        assert cache is not None
        one.cache, one.blocks = None, 0
        return cache, blocks

    def _too_long(self, one: Generation) -> LlavaError:
        return LlavaError(
            f"the request needs memory for {one.length} tokens, there is memory for {self.limits.blocks * BLOCK}; "
            "use a shorter prompt or fewer images, or give the engine more memory"
        )


def _refused(error: Exception) -> EngineError:
    return EngineError(f"the machine has no memory for the request's keys and values: {error}")
