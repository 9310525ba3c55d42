"""A model that one can talk to: messages in, text out."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from llava.chat.messages import Message
from llava.checkpoints.native import Loaded
from llava.engine.engine import Engine
from llava.engine.request import Request, RequestImage, Usage
from llava.engine.sampling import Sampling
from llava.engine.text import TextStream
from llava.models.llava import LlavaModel
from llava.processor import ImageSpan, Processor


class Assistant:
    """A loaded model. Successive calls that continue a conversation compute only what is new in it."""

    def __init__(self, loaded: Loaded) -> None:
        self.model: LlavaModel = loaded.model
        self.processor: Processor = loaded.processor
        self._engine = Engine(loaded.model)
        self._usage = Usage()
        text = self.processor.ending().strip(" ")
        ending = self.processor.tokenizer.encode(text)[0] if text else []
        self._stop_ids = frozenset([self.processor.tokenizer.eos_id, *(ending if len(ending) == 1 else [])])
        self._stops = [text] if text else []

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

    def chat_batch(self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int = 512) -> list[str]:
        """The greedy answers to several conversations, computed together; as `chat` gives one by one."""
        requests = [self.request(messages) for messages in conversations]
        texts, self._usage = [], Usage()
        for generation in self._engine.generate(requests, Sampling(max_new_tokens)):
            text = TextStream(self.processor.tokenizer, self._stops)
            texts.append(("".join(text.push(token) for token in generation.output) + text.finish()).strip())
            self._usage += generation.usage
        return texts

    def request(self, messages: Sequence[Message]) -> Request:
        """A conversation as the engine takes it."""
        prompt = self.processor.prompt(messages)
        keys = prompt.keys()
        return Request(prompt.ids, keys, [self._image(span) for span in prompt.spans], self._stop_ids)

    def _image(self, span: ImageSpan) -> RequestImage:
        def views() -> Tensor:
            return self.processor.views([span.image])

        return RequestImage(span.image.digest, span.start, span.layout, views)

    def _stream(self, messages: Sequence[Message], sampling: Sampling, stop: Sequence[str]) -> Iterator[str]:
        text = TextStream(self.processor.tokenizer, [*self._stops, *stop])
        generation = self._engine.submit(self.request(messages), sampling)
        try:
            for token in self._engine.follow(generation):
                self._usage = generation.usage
                if delta := text.push(token):
                    yield delta
                if text.stopped:
                    return
            self._usage = generation.usage
            if delta := text.finish():
                yield delta
        finally:
            self._engine.cancel(generation)
