"""The sides of benchmarks/engine.py: one model each, asked in the same way. Each imports its own library only."""

import base64
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ANSWER = 64  # tokens of an answer
QUESTIONS = ("What is shown in this image?", "Which colours are in it?")
Timed = Iterator[float]  # seconds since the call, one for each token


class Ours:
    """This package's engine."""

    def __init__(self, folder: Path, precision: str | None, beside_8bit: bool = False) -> None:
        import llava
        from llava.engine.sampling import Sampling

        self.llava, self.sampling = llava, Sampling
        name: Any = precision
        self.assistant = llava.load(str(folder), device="cpu", precision=name, beside_8bit=beside_8bit)
        self.check([QUESTIONS[0], "A cat.", QUESTIONS[1]])

    def check(self, turns: list[str]) -> None:
        """That our prompt is the one that all other sides have."""
        import PIL.Image

        decode = self.assistant.processor.tokenizer.decode
        ids = self.request(PIL.Image.new("RGB", (8, 8)), turns).ids
        images = [place for place, token in enumerate(ids) if token < 0]
        parts = ids[: images[0]], ids[images[-1] + 1 :]
        found = "<image>".join(decode(part, keep_special=True) for part in parts)
        if found != prompt(turns):
            raise RuntimeError(f"expected the prompt {prompt(turns)!r}, found {found!r}")

    def request(self, picture: Any, turns: list[str]) -> Any:
        """A conversation about a picture: question, answer, question, ..."""
        from dataclasses import replace

        message, messages = self.llava.Message, []
        for index, text in enumerate(turns):
            image = [self.llava.Image(picture)] if index == 0 else []
            messages.append(message.assistant(text) if index % 2 else message.user(*image, text))
        return replace(self.assistant.request(messages), stop_ids=frozenset())

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start = time.perf_counter()
        for _ in self.assistant._engine.stream(self.request(picture, turns), self.sampling(tokens, lookup=False)):
            yield time.perf_counter() - start

    def together(self, pictures: list[Path]) -> None:
        requests = [self.request(picture, [QUESTIONS[0]]) for picture in pictures]
        self.assistant._engine.generate([(one, self.sampling(ANSWER, lookup=False)) for one in requests])


class Transformers:
    """`generate` of LlavaForConditionalGeneration; it keeps nothing between calls."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        import transformers

        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = transformers.LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self.streamer = transformers.generation.streamers.BaseStreamer

    def generate(self, pictures: list[Path], turns: list[str], tokens: int, on_token: Callable[[], None]) -> None:
        import PIL.Image

        class Streamer(self.streamer):  # type: ignore[name-defined, misc]
            def put(self, value: Any) -> None:
                on_token()

            def end(self) -> None:
                pass

        images = [PIL.Image.open(picture).convert("RGB") for picture in pictures]
        inputs = self.processor(images=images, text=[prompt(turns)] * len(images), return_tensors="pt", padding=True)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        streamer = Streamer() if len(images) == 1 else None
        limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        self.model.generate(**inputs, **limits, streamer=streamer)

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start, times = time.perf_counter(), list[float]()
        self.generate([picture], turns, tokens, lambda: times.append(time.perf_counter() - start))
        yield from times[1:]  # the first is the prompt's

    def together(self, pictures: list[Path]) -> None:
        self.generate(pictures, [QUESTIONS[0]], ANSWER, lambda: None)


class TransformersLanguage:
    """LlamaForCausalLM behind our vision encoder, as in benchmarks/chat.py; it keeps the last conversation's cache."""

    def __init__(self, folder: Path) -> None:
        import llava
        from benchmarks.chat import Theirs
        from llava.registry import model_folder

        self.llava = llava
        self.side = Theirs(model_folder("llava-smol"), folder)
        self.side.reset()

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        if len(turns) == 1:
            self.side.reset()
        message, messages = self.llava.Message, []
        for index, text in enumerate(turns):
            image = [self.llava.Image(picture)] if index == 0 else []
            messages.append(message.assistant(text) if index % 2 else message.user(*image, text))
        start = time.perf_counter()
        for _ in self.side.stream(messages, tokens):
            yield time.perf_counter() - start

    def together(self, pictures: list[Path]) -> None:
        import torch

        message, image = self.llava.Message, self.llava.Image
        prompts = [self.side.processor.prompt([message.user(image(p), QUESTIONS[0])]) for p in pictures]
        spans = [prompt.spans[0] for prompt in prompts]
        with torch.inference_mode():
            tokens = self.side.encode(
                self.side.processor.views([span.image for span in spans]), [span.layout for span in spans]
            )
            ids = torch.tensor([prompt.ids for prompt in prompts])
            x = self.side.llm.get_input_embeddings()(ids.clamp(min=0)).masked_scatter((ids < 0)[..., None], tokens)
            limits = {"max_new_tokens": ANSWER, "min_new_tokens": ANSWER, "do_sample": False}
            self.side.llm.generate(inputs_embeds=x, attention_mask=torch.ones_like(ids), **limits)


class Vllm:
    """vLLM for the CPU, with its prefix cache."""

    def __init__(self, folder: Path, dtype: str, image_tokens: int | None = None) -> None:
        """image_tokens: the folder has an LLM only; so many other tokens stand in a picture's place."""
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM, SamplingParams

        self.sampling, self.count = SamplingParams, image_tokens
        options: dict[str, Any] = {"dtype": dtype, "max_model_len": 2048}
        if image_tokens is None:
            options["limit_mm_per_prompt"] = {"image": 1}
        self.llm = LLM(model=str(folder), **options)

    def inputs(self, picture: Path, turns: list[str]) -> dict[str, Any]:
        import PIL.Image

        if self.count is None:
            image = PIL.Image.open(picture).convert("RGB")
            return {"prompt": prompt(turns), "multi_modal_data": {"image": image}}
        before, after = (self.llm.get_tokenizer().encode(part) for part in prompt(turns).split("<image>"))
        return {"prompt_token_ids": [*before, *picture_ids(picture, self.count), *after]}

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        engine, start, count = self.llm.llm_engine, time.perf_counter(), 0
        sampling = self.sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
        engine.add_request(str(start), self.inputs(picture, turns), sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                for _ in range(len(output.outputs[0].token_ids) - count):
                    yield time.perf_counter() - start
                count = len(output.outputs[0].token_ids)

    def together(self, pictures: list[Path]) -> None:
        sampling = self.sampling(temperature=0, max_tokens=ANSWER, ignore_eos=True)
        self.llm.generate([self.inputs(one, [QUESTIONS[0]]) for one in pictures], sampling, use_tqdm=False)


class LlamaCpp:
    """llama.cpp through llama-cpp-python: the language part, in Q4_1. One request after the other."""

    def __init__(self, file: Path, image_tokens: int) -> None:
        import llama_cpp

        self.count = image_tokens
        self.llm = llama_cpp.Llama(str(file), n_ctx=4096, n_threads=2, n_threads_batch=2, verbose=False)

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start, llm = time.perf_counter(), self.llm
        before, after = (
            llm.tokenize(part.encode(), add_bos=False, special=True) for part in prompt(turns).split("<image>")
        )
        ids = [*before, *picture_ids(picture, self.count), *after]
        for count, _ in enumerate(llm.generate(ids, temp=0.0), 1):
            yield time.perf_counter() - start
            if count == tokens:
                return

    def together(self, pictures: list[Path]) -> None:
        for picture in pictures:
            list(self.ask(picture, [QUESTIONS[0]], ANSWER))


class LlamaCppWhole:
    """llama.cpp with the picture: its own loader of LLaVA-1.5's tower, in float16, and the LLM in Q4_1."""

    def __init__(self, file: Path, tower: Path) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Llava15ChatHandler

        class Handler(Llava15ChatHandler):  # type: ignore[misc]
            """The tower of LLaVA-1.5 with the prompt of all other sides: no system's message, ChatML."""

            DEFAULT_SYSTEM_MESSAGE = None
            CHAT_FORMAT = (
                "{% for message in messages %}<|im_start|>{{ message.role }}\n"
                "{% if message.content is string %}{{ message.content }}"
                "{% else %}{{ message.content[0].image_url.url }}\n{{ message.content[1].text }}{% endif %}"
                "<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\\n' }}"  # a newline at the end would be cut
            )

        self.llm = llama_cpp.Llama(
            str(file),
            chat_handler=Handler(clip_model_path=str(tower), verbose=False),
            n_ctx=4096,
            n_threads=2,
            n_threads_batch=2,
            verbose=False,
        )

    def ask(self, picture: Path, turns: list[str], tokens: int) -> Timed:
        start, data = time.perf_counter(), base64.b64encode(picture.read_bytes()).decode()
        image = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
        messages: list[dict[str, Any]] = [{"role": "user", "content": [image, {"type": "text", "text": turns[0]}]}]
        for index, text in enumerate(turns[1:]):
            messages.append({"role": "user" if index % 2 else "assistant", "content": text})
        never = {self.llm.token_eos(): -100.0}
        chunks = self.llm.create_chat_completion(
            messages, stream=True, max_tokens=tokens, temperature=0.0, logit_bias=never
        )
        for chunk in chunks:
            if "content" in chunk["choices"][0]["delta"]:
                yield time.perf_counter() - start

    def together(self, pictures: list[Path]) -> None:
        for picture in pictures:
            list(self.ask(picture, [QUESTIONS[0]], ANSWER))


def picture_ids(picture: Path, count: int) -> list[int]:
    """What stands in a picture's place where none is run: for another picture, other tokens."""
    return [1000 + (int(picture.stem) * 7919 + index) % 40000 for index in range(count)]


def prompt(turns: list[str]) -> str:
    """A conversation as text, in the template that the folder has."""
    text = "<|im_start|>user\n<image>\n"
    for index, said in enumerate(turns):
        text += said + ("<|im_end|>\n<|im_start|>user\n" if index % 2 else "<|im_end|>\n<|im_start|>assistant\n")
    return text
