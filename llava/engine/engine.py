"""The engine: requests of ids in, ids out, many at once. It knows tokens and pictures' tensors, not conversations.

A step is the architecture: schedule -> encode pictures -> run the model -> choose tokens. Requests join and leave
between steps. Keys and values of finished requests are kept, and so are the tokens of pictures: what a later request
has in common with an earlier one is not computed again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llava.decoding import build
from llava.decoding.step import MOST_ROWS, Step, covers
from llava.engine.grammar import Grammars
from llava.engine.lookup import Lookup
from llava.engine.pictures import Pictures, Plan
from llava.engine.prefixes import BLOCK
from llava.engine.request import Finish, Generation, Request, Scored, seen
from llava.engine.sampling import Held, Sampling, choose
from llava.engine.scheduler import Limits, Scheduler
from llava.engine.text import TextStream
from llava.engine.variants import Span, Variants
from llava.errors import EngineError, LlavaError
from llava.memory import available_memory
from llava.models.cache import CacheBatch, KVCache
from llava.models.llava import IMAGE_TOKEN, LlavaModel
from llava.quantization.linears import rounds_inputs
from llava.tokenizer import Tokenizer

_KV_BYTES = 4 * 2**30  # at most, unless asked for


class Engine:
    """Runs one model. Not for use by several threads at once; see `llava.engine.background` for that.

    tokenizer: for the text of answers, in which stop strings are found, and for grammars.
    kv_bytes: memory for keys and values; by default a quarter of what is available, and at most 4 GiB.
    variants: those of the model, of which each request names one.
    """

    def __init__(
        self,
        model: LlavaModel,
        tokenizer: Tokenizer,
        kv_bytes: int | None = None,
        limits: Limits | None = None,
        variants: Variants | None = None,
    ) -> None:
        self._model, self._tokenizer, self._variants = model, tokenizer, variants
        self._grammars = Grammars(tokenizer, model.config.llm.vocab_size)
        config = model.config.llm
        if limits is None:
            slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim * model.dtype.itemsize
            budget = min(available_memory(model.device) // 4, _KV_BYTES) if kv_bytes is None else kv_bytes
            limits = Limits(blocks=max(1, budget // (slot * BLOCK)))
        self.scheduler = Scheduler(config, model.device, model.dtype, limits)
        self._pictures = Pictures(model, self.scheduler, variants)
        self._covered = covers(model)
        self._compiled: Step | None = None  # while it is being built, PyTorch runs all steps
        if rounds_inputs(model):  # but where it might round to other levels: no answer may see both
            build.wait()

    def submit(self, request: Request, sampling: Sampling, place: int = 0) -> Generation:
        """Queue a request, of which the same client has queued `place` at once before it.

        Raises LlavaError for a prompt that cannot run, or a wrong grammar.
        """
        _check(request, self._model.config.llm.vocab_size)
        longest, length = self._model.config.llm.max_positions, len(request.ids)
        if length > longest:
            raise LlavaError(
                f"the prompt takes {length} tokens, the model's context holds {longest}; "
                "start a new conversation or use fewer images"
            )
        limit = min(sampling.max_new_tokens, longest - length + 1)  # the last token is chosen, but not run
        stream = TextStream(self._tokenizer, request.stop, request.ids[-8:] if request.continues else ())
        generation = Generation(request, sampling, limit, sampling.generator(), stream)
        generation.usage = replace(generation.usage, prompt_tokens=length)
        if sampling.grammar is not None:
            generation.constraint = self._grammars.start(sampling.grammar, request.stop_ids)
        self.scheduler.enqueue(generation, place)
        return generation

    def cancel(self, generation: Generation) -> None:
        """End a request early; one that has ended stays as it is."""
        if generation.finished is None:
            self.scheduler.finish(generation, "cancelled")

    def drop(self, generation: Generation, error: LlavaError) -> None:
        """End a request whose keys and values may be wrong: they are not kept."""
        if generation.finished is None:
            self.scheduler.finish(generation, "error", error)

    @property
    def busy(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    @torch.inference_mode()
    def step(self) -> None:
        """Run some tokens of the requests that are there. What fails ends the requests that it concerns, only."""
        self._guess()
        for plan, logits in self._run_apart(self._pictures.encode(self.scheduler.schedule())):
            self._choose(plan, logits)

    def stream(self, request: Request, sampling: Sampling) -> Iterator[int]:
        """Generate one token after another, up to a stop id (not included), max_new_tokens or the end of the context.

        Raises LlavaError for a request that cannot run. Closing the iterator ends the request.
        """
        generation = self.submit(request, sampling)
        try:
            yield from self.follow(generation)
        finally:
            self.cancel(generation)

    def follow(self, generation: Generation) -> Iterator[int]:
        """The tokens of a request that was submitted, as they come. Raises LlavaError when it fails."""
        sent = 0
        while True:
            yield from generation.output[sent:]
            sent = len(generation.output)
            if generation.finished is not None:
                break
            self.step()
        if generation.error is not None:
            raise generation.error

    def generate(self, requests: Sequence[tuple[Request, Sampling]]) -> list[Generation]:
        """Run several requests together to their ends. Raises LlavaError when one of them fails."""
        generations: list[Generation] = []
        try:
            for request, sampling in requests:
                generations.append(self.submit(request, sampling))
            while any(one.finished is None for one in generations):
                self.step()
        finally:
            for one in generations:
                self.cancel(one)
        for one in generations:
            if one.error is not None:
                raise one.error
        return generations

    def _run_apart(self, plan: Plan) -> list[tuple[Plan, Tensor]]:
        """Run a plan together, and where that fails each request alone: it ends those only that fail by themselves."""
        starts = [one.filled for one, _ in plan]
        try:
            return [(plan, self._run(plan))] if plan else []
        except Exception as error:  # noqa: BLE001  out of memory, say
            if len(plan) == 1:
                self.scheduler.finish(plan[0][0], "error", EngineError(f"the model could not run: {error}"))
                return []
        for (one, _), start in zip(plan, starts, strict=True):
            assert one.cache is not None
            one.cache.length = start  # as if nothing had run
        return [run for pair in plan for run in self._run_apart([pair])]

    def _choose(self, plan: Plan, logits: Tensor) -> None:
        """The next token of each request of a plan all of whose tokens have run, for what `_run` gave."""
        greedy, row = logits.argmax(-1).tolist(), 0
        for one, _ in plan:
            if one.filled >= one.length:
                rows = 1 + len(one.guess)
                try:
                    self._extend(one, logits[row : row + rows], greedy[row : row + rows])
                except LlavaError as error:
                    self.scheduler.finish(one, "error", error)
                except Exception as error:  # noqa: BLE001  no request may end another
                    self.scheduler.finish(one, "error", EngineError(f"no token could be chosen: {error}"))
                row += rows

    def _run(self, plan: Plan) -> Tensor:
        """Run the planned tokens. Scores (B, V) after the last token of each request whose tokens have all run.

        Where a guess was run with it, after each of the guess too.
        """
        model, device = self._model, self._model.device
        ids: list[int] = []
        images: list[Tensor] = []
        caches: list[KVCache] = []
        last: list[int] = []
        spans: list[Span] = []
        for one, tokens in plan:
            start, end = one.filled, one.filled + tokens
            spans.append((one.request.variant, len(ids), len(ids) + tokens))
            ids += one.tokens(start, end)
            images += [
                self._pictures.tokens[i.digest][max(0, start - i.start) : end - i.start] for i in seen(one, start, end)
            ]
            assert one.cache is not None
            caches.append(one.cache)
            if end >= one.length:
                last += range(len(ids) - 1 - len(one.guess), len(ids))
        counts, step = [tokens for _, tokens in plan], self._step()
        flat = torch.cat(images) if images else torch.empty(0, model.config.llm.hidden_size, device=device)
        if step and len(ids) <= MOST_ROWS:
            return step.run(ids, flat, caches, counts, last)
        if self._variants is not None:
            self._variants.run(spans)
        hidden = model(torch.tensor([ids], device=device), flat, CacheBatch(caches, counts))[0, last]
        return step.logits(hidden) if step and len(last) <= MOST_ROWS else model.llm.logits(hidden).float()

    def _step(self) -> Step | None:
        """The compiled decoding step, as soon as it is there."""
        if self._covered and self._compiled is None and (run := build.function("step")):
            self._compiled = Step(self._model, run)
        return self._compiled

    def _guess(self) -> None:
        """Let an answer that runs alone have a guess: its step reads the weights once for several tokens."""
        for one in self.scheduler.running:
            one.guess = []
        if len(self.scheduler.running) != 1 or self.scheduler.waiting:
            return
        one = self.scheduler.running[0]
        if one.length - one.filled == 1 and one.sampling.plainly_greedy and one.sampling.lookup:
            if one.lookup is None:
                one.lookup = Lookup([*one.request.ids, *one.output])
            one.guess = one.lookup.guess()[: one.limit - len(one.output) - 1]

    def _extend(self, one: Generation, logits: Tensor, likeliest: list[int]) -> None:
        """Choose a request's next token for the first row of scores (rows, V), and end it where it is to end.

        The other rows follow a guess, and are used as far as it was right.
        """
        guess, one.guess = one.guess, []
        assert one.cache is not None
        one.cache.length -= len(guess)
        right = 0
        for row, token in enumerate(likeliest):
            self._add(one, logits[row], token)
            if one.finished is not None or row == len(guess) or one.output[-1] != guess[row]:
                break
            one.cache.length += 1  # what the guess left there is what the token would have
            right += 1
        if guess and one.lookup is not None:
            one.lookup.judged(right, len(guess))
            one.usage = replace(one.usage, guessed_tokens=one.usage.guessed_tokens + right)

    def _add(self, one: Generation, logits: Tensor, likeliest: int) -> None:
        """One more token for a request, by its scores (V,)."""
        sampling, output, token = one.sampling, one.output, likeliest
        if not sampling.plainly_greedy:
            if sampling.penalises and one.held is None:  # not before it runs: it is as large as the vocabulary
                one.held = Held(one.request.ids, self._model.config.llm.vocab_size, self._model.device)
            allowed = one.constraint.allowed() if one.constraint else None
            token = choose(logits, sampling, one.source, one.held, allowed)
        if token in one.request.stop_ids:
            self._finish(one, "stop")
            return
        if sampling.logprobs is not None:
            scores = logits.log_softmax(-1)
            top = scores.topk(sampling.logprobs)
            listed = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
            one.scored.append(Scored(float(scores[token]), listed))
        output.append(token)
        one.usage = replace(one.usage, answer_tokens=len(output))
        if one.lookup is not None:
            one.lookup.add(token)
        if one.held is not None:
            one.held.add(token)
        one.text += one.stream.push(token)
        if one.constraint is not None:
            one.constraint.advance(token)
        if one.stream.stopped or (one.constraint is not None and one.constraint.finished):
            self._finish(one, "stop")
        elif len(output) == one.limit:
            self._finish(one, "length")

    def _finish(self, one: Generation, reason: Finish) -> None:
        one.text += one.stream.finish()
        self.scheduler.finish(one, reason)


def _check(request: Request, vocab_size: int) -> None:
    """Raises LlavaError unless the ids are of the vocabulary, and placeholders where the pictures are."""
    if not request.ids or len(request.keys) != len(request.ids):
        raise LlavaError(
            f"the prompt has {len(request.ids)} ids and {len(request.keys)} keys; expected as many, and some"
        )
    shown = sorted(place for image in request.images for place in range(image.start, image.end))
    if shown != [place for place, token in enumerate(request.ids) if token == IMAGE_TOKEN]:
        raise LlavaError(
            f"the prompt's placeholders are not where its {len(request.images)} pictures have their tokens"
        )
    for token in request.ids:
        if token != IMAGE_TOKEN and not 0 <= token < vocab_size:
            raise LlavaError(f"the prompt has the id {token}, the model's vocabulary {vocab_size} ids, from 0 on")
