"""A model that one can talk to: messages in, text out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from llava.chat.messages import Message
from llava.checkpoints.native import Loaded
from llava.engine.engine import Engine
from llava.engine.request import Request, RequestImage, Scored, Usage
from llava.engine.sampling import Sampling, several
from llava.errors import LlavaError
from llava.models.llava import LlavaModel
from llava.processor import ImageSpan, Processor


@dataclass(frozen=True)
class Answer:
    """A whole answer: its text, why it ended, its ids, their log probabilities where asked for, and what it took."""

    text: str
    finish: Literal["stop", "length"]
    ids: list[int]
    scored: list[Scored]
    usage: Usage


class Assistant:
    """A loaded model. Successive calls that continue a conversation compute only what is new in it."""

    def __init__(self, loaded: Loaded, variant: str = "") -> None:
        """variant: of the model, where it has several: then requests are for an engine that has them all."""
        self._variant = variant
        self.model: LlavaModel = loaded.model
        self.processor: Processor = loaded.processor
        self._engine = Engine(loaded.model, loaded.processor.tokenizer)
        self._usage = Usage()
        text = self.processor.ending().strip(" ")
        ending = self.processor.tokenizer.encode(text)[0] if text else []
        self._stop_ids = frozenset([self.processor.tokenizer.eos_id, *(ending if len(ending) == 1 else [])])
        self._stops = (text,) if text else ()

    @property
    def usage(self) -> Usage:
        """What the last request, or batch, took, and how much of it came from the caches."""
        return self._usage

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """The whole answer to a conversation. Parameters and errors are those of `stream`."""
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, seed)
        return "".join(self._stream(messages, sampling, stop)).strip()

    def stream(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The answer piece by piece, in whole characters, as it is generated.

        temperature 0 is greedy. stop: the answer ends before the first of these strings.
        Raises LlavaError for a bad conversation, picture or parameter, or a conversation longer than the context.
        """
        return self._stream(messages, Sampling(max_new_tokens, temperature, top_p, top_k, seed), stop)

    def answers(
        self,
        conversations: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        stop: Sequence[str] = (),
    ) -> list[list[Answer]]:
        """n answers to each of several conversations, all computed together. Errors are those of `stream`."""
        requests = [self.request(messages, stop) for messages in conversations]
        pairs = [(request, one) for request in requests for one in several(sampling, n)]
        found: list[Answer] = []
        self._usage = Usage()
        for generation in self._engine.generate(pairs):
            assert generation.finished == "stop" or generation.finished == "length"
            text, scored = generation.text.strip(), generation.scored
            found.append(Answer(text, generation.finished, generation.output, scored, generation.usage))
            self._usage += generation.usage
        return [found[start : start + n] for start in range(0, len(found), n)]

    def chat_batch(self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int = 512) -> list[str]:
        """The greedy answers to several conversations, computed together; as `chat` gives one by one."""
        return [only.text for (only,) in self.answers(conversations, Sampling(max_new_tokens))]

    def request(self, messages: Sequence[Message], stop: Sequence[str] = ()) -> Request:
        """A conversation as the engine takes it."""
        prompt = self.processor.prompt(messages)
        images, stops = [self._image(span) for span in prompt.spans], (*self._stops, *stop)
        return self._own(Request(prompt.ids, prompt.keys(), images, self._stop_ids, stops))

    def continuation(self, text: str | Sequence[int], stop: Sequence[str] = ()) -> Request:
        """A text, or its ids, that goes on as it would in a book: no template. Raises LlavaError for a wrong id."""
        tokenizer, size = self.processor.tokenizer, self.model.config.llm.vocab_size
        ids = tokenizer.encode(text)[0] if isinstance(text, str) else list(text)
        if isinstance(text, str) and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        if not ids:
            raise LlavaError("the prompt is empty")
        if not all(0 <= token < size for token in ids):
            raise LlavaError(f"the prompt holds an id that the vocabulary of {size} has not")
        return self._own(Request(ids, list(ids), [], frozenset([tokenizer.eos_id]), tuple(stop), continues=True))

    def _own(self, request: Request) -> Request:
        return request.of(self._variant) if self._variant else request

    def _image(self, span: ImageSpan) -> RequestImage:
        def views() -> Tensor:
            return self.processor.views([span.image])

        return RequestImage(span.image.digest, span.start, span.layout, views)

    def _stream(self, messages: Sequence[Message], sampling: Sampling, stop: Sequence[str]) -> Iterator[str]:
        generation = self._engine.submit(self.request(messages, stop), sampling)
        sent = 0
        try:
            for _ in self._engine.follow(generation):
                self._usage = generation.usage
                if len(generation.text) > sent:
                    yield generation.text[sent:]
                    sent = len(generation.text)
            self._usage = generation.usage
            if len(generation.text) > sent:
                yield generation.text[sent:]
        finally:
            self._engine.cancel(generation)
