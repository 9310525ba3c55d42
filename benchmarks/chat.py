"""Our engine against Hugging Face transformers: the same weights and conversations, on one machine, in one run.

    python benchmarks/chat.py --model llava-smol --repeats 5 --output chat.json

Both sides run in float32 with torch's default threads, and ours also as it runs by default, with weights stored in 16
bits; each in a process of its own. They take turns (A B C A B C), after a round that is not counted.
Time runs from the messages, with the picture as the bytes of a JPEG, to the token: the prompt's rendering, the
picture's decoding and the vision encoder are in it. Three conversations of two questions each: one whose first prompt
is just a picture of 640 x 480 and a short question, one whose picture is as a phone takes it (12 megapixels), and one
whose first prompt has 512 tokens.

transformers has no LLaVA with our vision encoder, so its side does what its `LlavaForConditionalGeneration` does: the
image tokens, made by our encoder and projector, are written into `inputs_embeds` of `LlamaForCausalLM` (sdpa). A plain
loop over `forward` drives it, its fastest public way, and keeps the `DynamicCache`, crops it to what the next prompt
shares, and runs only the rest. (Plain `generate` keeps nothing: every question costs what a first one does.) It loads
its weights from safetensors by `from_pretrained`, our side from the model's own files (an embedded model's: GGUF).
"""

import argparse
import functools
import io
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import PIL.Image
import torch

from llava import Image, LlavaError, Message
from llava.assistant import Assistant
from llava.checkpoints.native import CONFIG, load_base, load_native, load_visual_parts
from llava.config import Precision, Storage, load_config
from llava.engine.engine import Engine
from llava.engine.sampling import Sampling
from llava.models.llava import IMAGE_TOKEN
from llava.processor import Processor
from llava.registry import model_folder

ANSWER = 16  # tokens of an answer at most, in a history
QUESTIONS = "What is shown in this image?", "What color is it?"
FILLER = "The cat sat on the mat and the dog ran in the park while we read a book by the window."
TARGET = 0.3  # the second question's time, as a part of the first's
SIDES = ("llava", "transformers", "llava, 16 bits")
Answer = tuple[list[int], list[float]]  # ids, and for each the seconds from the call until it was there


class Ours:
    """The package's engine, driven as `Assistant` drives it."""

    def __init__(self, model: Path, precision: Precision) -> None:
        self.assistant = Assistant(load_native(model, target=(Storage(precision), torch.device("cpu"))))
        self.processor = self.assistant.processor

    def reset(self) -> None:
        """Forget all conversations and pictures."""
        self.engine = Engine(self.assistant.model, self.assistant.processor.tokenizer)

    def stream(self, messages: Sequence[Message], count: int) -> Iterator[int]:
        """The first `count` ids of the greedy answer, past any id that would end it."""
        request = replace(self.assistant.request(messages), stop_ids=frozenset())
        return self.engine.stream(request, Sampling(count, lookup=False))  # the other side guesses nothing either


class Theirs:
    """`LlamaForCausalLM` behind our vision encoder and projector. Between two resets it may see one picture only."""

    def __init__(self, model: Path, exported: Path) -> None:
        from transformers import DynamicCache, LlamaForCausalLM

        self.new_cache = DynamicCache
        self.llm = LlamaForCausalLM.from_pretrained(exported, dtype=torch.float32, attn_implementation="sdpa")
        base = load_base(load_config(model / CONFIG), with_llm=False)
        load_visual_parts(base.model, model)
        self.encode, self.processor = base.model.encode, base.processor

    def reset(self) -> None:
        """As `Ours.reset`."""
        self.cache, self.ids = self.new_cache(), list[int]()  # ids: what the cache holds

    @torch.inference_mode()
    def stream(self, messages: Sequence[Message], count: int) -> Iterator[int]:
        """As `Ours.stream`."""
        prompt = self.processor.prompt(messages)
        equal = [old == new for old, new in zip(self.ids, prompt.ids, strict=False)]
        kept = min([*equal, False].index(False), len(prompt.ids) - 1)  # the last one must run: its scores are needed
        if kept < len(self.ids):
            self.cache.crop(kept - len(self.ids))
        self.ids = prompt.ids
        ids = torch.tensor([prompt.ids[kept:]])
        x = self.llm.get_input_embeddings()(ids.clamp(min=0))
        if IMAGE_TOKEN in prompt.ids[kept:]:
            span = prompt.spans[0]
            image_tokens = self.encode(self.processor.views([span.image]), [span.layout])
            x = x.masked_scatter((ids == IMAGE_TOKEN)[..., None], image_tokens)
        for remaining in range(count, 0, -1):
            logits = self.llm(inputs_embeds=x, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
            yield token
            if remaining > 1:
                self.ids.append(token)
                x = self.llm.get_input_embeddings()(torch.tensor([[token]]))


def export(model: Path, folder: Path) -> None:
    """Write the decoder as transformers reads it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours = load_native(model).model.llm
    c = ours.config
    config = LlamaConfig(
        **c.model_dump(include={"vocab_size", "hidden_size", "intermediate_size", "head_dim"}),
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_positions,
        tie_word_embeddings=c.tie_embeddings,
    )
    weights = {"lm_head.weight": ours.embed_tokens.weight}  # where they are tied; else the decoder has its own
    weights |= {k if k.startswith("lm_head") else f"model.{k}": tensor for k, tensor in ours.state_dict().items()}
    theirs = LlamaForCausalLM(config)
    theirs.load_state_dict(weights)
    theirs.save_pretrained(folder)


@dataclass(frozen=True)
class Lengths:
    """In tokens: a long prompt, and the answer to it."""

    prompt: int = 512
    decoded: int = 64


@dataclass(frozen=True)
class Round:
    """One round of one side: its figures by name, and the ids of each of its answers."""

    figures: dict[str, float]
    ids: list[list[int]]


@functools.cache
def load(name: str, model: Path, exported: Path) -> Ours | Theirs:
    """The side that this process measures."""
    return Theirs(model, exported) if name == SIDES[1] else Ours(model, "float32" if name == SIDES[0] else "float16")


def measure(name: str, model: Path, exported: Path, lengths: Lengths) -> Round:
    """Three conversations of two questions: a small picture, a phone's, and a long first prompt."""
    side, photo = load(name, model, exported), picture((640, 480))
    question = long_question(side.processor, photo, lengths.prompt)
    answers = [*converse(side, Message.user(Image(photo), QUESTIONS[0]), ANSWER)]
    answers += converse(side, question, lengths.decoded)
    answers += converse(side, Message.user(Image(picture((4000, 3000))), QUESTIONS[0]), ANSWER)
    first, second, long, later, large, after = (seconds for _, seconds in answers)
    megabyte = 2**20 if sys.platform == "darwin" else 2**10  # in the unit of ru_maxrss
    figures = {
        "prefill (tokens/s)": len(side.processor.prompt([question]).ids) / long[0],
        "decode (tokens/s)": (lengths.decoded - 1) / (long[-1] - long[0]),
        "first question (ms)": 1000 * first[0],
        "second question (ms)": 1000 * second[0],
        "second / first": second[0] / first[0],
        "12 megapixels: first question (ms)": 1000 * large[0],
        "12 megapixels: second / first": after[0] / large[0],
        "long prompt: second question (ms)": 1000 * later[0],
        "long prompt: second / first": later[0] / long[0],
        "peak memory (MB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / megabyte,
    }
    return Round(figures, [ids for ids, _ in answers])


def converse(side: Ours | Theirs, question: Message, count: int) -> tuple[Answer, Answer]:
    """The answers to `question`, of `count` ids, and to a second question after it. Nothing is kept from before."""
    side.reset()
    first = ask(side, [question], count)
    said, eos = first[0][:ANSWER], side.processor.tokenizer.eos_id
    answer = Message.assistant(side.processor.tokenizer.decode(said[: [*said, eos].index(eos)]).strip())
    return first, ask(side, [question, answer, Message.user(QUESTIONS[1])], ANSWER)


def ask(side: Ours | Theirs, messages: Sequence[Message], count: int) -> Answer:
    """An answer, timed id by id."""
    start = time.perf_counter()
    timed = [(token, time.perf_counter() - start) for token in side.stream(messages, count)]
    return [token for token, _ in timed], [seconds for _, seconds in timed]


@functools.cache
def picture(size: tuple[int, int]) -> bytes:
    """A JPEG of this width and height: COCO's pictures have 640 x 480."""
    file = io.BytesIO()
    PIL.Image.radial_gradient("L").resize(size).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def long_question(processor: Processor, photo: bytes, length: int) -> Message:
    """A question that makes a prompt of so many tokens, or a few less. Its picture is not yet opened."""
    image, words = Image(photo), [QUESTIONS[0], *(FILLER.split() * length)[:length]]
    while len(processor.prompt([Message.user(image, " ".join(words))]).ids) > length:
        words.pop()
    return Message.user(Image(photo), " ".join(words))


def run(model: Path, repeats: int, short: bool = False) -> dict[str, list[Round]]:
    """The counted rounds of both sides, measured in turns. short: without one that is not counted, and less in each."""
    lengths = Lengths(prompt=128, decoded=4) if short else Lengths()
    rounds: dict[str, list[Round]] = {name: [] for name in SIDES}
    new_process = functools.partial(ProcessPoolExecutor, 1, multiprocessing.get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, new_process() as a, new_process() as b, new_process() as c:
        print("writing the weights for transformers", file=sys.stderr)
        with new_process() as once:
            once.submit(export, model, Path(folder)).result()
        for count in range(int(short), repeats + 1):
            for name, process in zip(SIDES, (a, b, c), strict=True):
                print(f"round {count} of {repeats}{'' if count else ' (not counted)'}: {name}", file=sys.stderr)
                rounds[name].append(process.submit(measure, name, model, Path(folder), lengths).result())
    return {name: side[-repeats:] for name, side in rounds.items()}


def report(rounds: dict[str, list[Round]]) -> str:
    """The table in Markdown, with medians and how many times better ours is, and the checks."""
    lines = [f"| | {' | '.join(SIDES)} | times better | 16 bits: times better |", "| --- " * 6 + "|"]
    ours, theirs, half = rounds.values()
    for name in ours[0].figures:
        columns = [[one.figures[name] for one in side] for side in rounds.values()]
        cells = [f"{statistics.median(v):.4g} ({min(v):.4g} to {max(v):.4g})" for v in columns]
        for column in (columns[0], columns[2]):
            factor = statistics.median(column) / statistics.median(columns[1])
            cells.append(f"{factor if 'tokens/s' in name else 1 / factor:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for label, side in (("equal ids", (*ours, *theirs)), ("equal ids with 16 bits", half)):
        lines.append(f"{label}: {'yes' if all(one.ids == theirs[0].ids for one in side) else 'NO'}")
    for name in ("second / first", "12 megapixels: second / first", "long prompt: second / first"):
        for label, side in (("", ours), (" with 16 bits", half)):
            reached = statistics.median(one.figures[name] for one in side) <= TARGET
            lines.append(f"{name}{label} at most {TARGET}: {'yes' if reached else 'NO'}")
    return "\n".join(lines)


def main() -> None:
    """Measure as the command line says, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llava-smol", help="an embedded name, or a folder of the native layout")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count, at least 1")
    parser.add_argument("--short", action="store_true", help="to see that it runs: what it prints then says little")
    parser.add_argument("--output", type=Path, help="write every round here, as JSON")
    arguments = parser.parse_args()
    try:
        rounds = run(model_folder(arguments.model), max(1, arguments.repeats), arguments.short)
    except LlavaError as error:
        parser.error(str(error))
    versions = f"torch {version('torch')}, transformers {version('transformers')}"
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, {versions}"
    print(f"{arguments.model}: {machine}; medians (least to most)\n\n{report(rounds)}")
    if arguments.output:
        result = {"model": arguments.model, "machine": machine, **rounds}
        arguments.output.write_text(json.dumps(result, default=asdict, indent=1) + "\n")


if __name__ == "__main__":
    main()
