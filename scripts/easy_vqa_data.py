"""Make the embedded model's training data from the train split of easy-VQA, as LLaVA's JSON.

    python scripts/easy_vqa_data.py data/easy-vqa

writes align.json (a caption a picture, for stage 1), finetune.json (conversations of several turns, for stage 2) and
images/. Captions are made from the answers to "what" questions only: yes/no questions may be negated. A picture whose
questions leave its shape or its colour open is used in stage 2 alone.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

from llava.eval.benchmarks.easy_vqa import Question, load_questions
from llava.files import atomic_folder

CAPTIONS = (
    "a {colour} {shape}",
    "This is a {colour} {shape}.",
    "The image contains a {colour} {shape}.",
    "There is a {shape} in the image. Its color is {colour}.",
    "The {shape} is {colour}.",
    "A picture of a {colour} {shape}.",
)


def caption_row(image: Path, questions: list[Question], rng: random.Random) -> dict[str, object] | None:
    """A row with one caption, or None where the questions do not tell both shape and colour."""
    facts = {question.kind: question.answer for question in questions}
    if "shape" not in facts or "colour" not in facts:
        return None
    caption = rng.choice(CAPTIONS).format(shape=facts["shape"], colour=facts["colour"])
    turns = [{"from": "human", "value": "<image>\nDescribe the image."}, {"from": "gpt", "value": caption}]
    return {"id": f"caption-{image.stem}", "image": image.name, "conversations": turns}


def conversation_rows(
    image: Path, questions: list[Question], turns: int, rng: random.Random
) -> list[dict[str, object]]:
    """The picture's questions in random order, in conversations of at most `turns` turns each."""
    order = rng.sample(questions, len(questions))
    rows: list[dict[str, object]] = []
    for start in range(0, len(order), turns):
        conversation = []
        for index, question in enumerate(order[start : start + turns]):
            prefix = "<image>\n" if index == 0 else ""
            conversation += [
                {"from": "human", "value": prefix + question.text},
                {"from": "gpt", "value": question.answer},
            ]
        rows.append({"id": f"chat-{image.stem}-{start // turns}", "image": image.name, "conversations": conversation})
    return rows


def main() -> None:
    """Write the data set into the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=5, help="questions a conversation (default 5)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    by_image: dict[Path, list[Question]] = defaultdict(list)
    for question in load_questions("train"):
        by_image[question.image].append(question)
    captions = [row for image, questions in by_image.items() if (row := caption_row(image, questions, rng))]
    chats = [row for image, asked in by_image.items() for row in conversation_rows(image, asked, options.turns, rng)]
    with atomic_folder(options.folder) as folder:
        (folder / "images").mkdir()
        for image in by_image:
            shutil.copyfile(image, folder / "images" / image.name)
        (folder / "align.json").write_text(json.dumps(captions, indent=1))
        (folder / "finetune.json").write_text(json.dumps(chats, indent=1))
    print(f"{options.folder}: {len(captions)} captions, {len(chats)} conversations, {len(by_image)} images")


if __name__ == "__main__":
    main()
