"""Draw answers of smol-suite under their pictures, right ones in green.

    python scripts/smol_sheet.py runs/eval/smol-suite-llava-smol photographs docs/photographs.jpg
    python scripts/smol_sheet.py runs/eval/smol-suite-llava-smol "naming, unseen emoji style" docs/emoji.jpg

Shows ten of a kind, chosen by a fixed seed, in the order of the suite: neither the best nor the worst.
"""

import argparse
import json
import random
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from llava.eval.benchmarks.smol_suite import load_suite
from llava.eval.question import shuffle_images
from llava.eval.runner import ANSWERS, SETTINGS, Answer

SHOWN, COLUMNS, SIDE, TEXT = 10, 5, 180, 58  # pictures, of them in a row; pixels of a picture, and of the text below


def sheet(answers: list[Answer], images: dict[int, Path]) -> PIL.Image.Image:
    """The pictures with question and answer below."""
    rows = -(-len(answers) // COLUMNS)
    canvas = PIL.Image.new("RGB", (COLUMNS * (SIDE + 10), rows * (SIDE + TEXT)), "white")
    draw, font = PIL.ImageDraw.Draw(canvas), PIL.ImageFont.load_default(13)
    for place, answer in enumerate(answers):
        x, y = place % COLUMNS * (SIDE + 10) + 5, place // COLUMNS * (SIDE + TEXT) + 5
        picture = PIL.Image.open(images[answer.index]).convert("RGB")
        picture.thumbnail((SIDE, SIDE))
        canvas.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        draw.text((x, y + SIDE + 2), shortened(answer.question, draw, font), "black", font)
        colour = "darkgreen" if answer.correct else "firebrick"
        draw.text((x, y + SIDE + 20), shortened(answer.answer, draw, font), colour, font)
        if not answer.correct:
            draw.text((x, y + SIDE + 36), shortened(f"({answer.expected})", draw, font), "gray", font)
    return canvas


def shortened(
    text: str, draw: PIL.ImageDraw.ImageDraw, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
) -> str:
    """As much of a text as fits under a picture."""
    if draw.textlength(text, font) <= SIDE:
        return text
    while draw.textlength(text + "...", font) > SIDE:
        text = text[:-1]
    return text + "..."


def main() -> None:
    """Draw as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output folder of llava eval smol-suite")
    parser.add_argument("kind", help="of the questions")
    parser.add_argument("output", type=Path, help="a .jpg or .png")
    options = parser.parse_args()
    rows = [Answer(**json.loads(line)) for line in (options.run / ANSWERS).read_text().splitlines()]
    answers = [answer for answer in rows if answer.kind == options.kind and answer.image]
    if not answers:
        parser.error(f"no question of kind '{options.kind}'; there are: {', '.join(sorted({a.kind for a in rows}))}")
    chosen = sorted(random.Random(0).sample(answers, min(SHOWN, len(answers))), key=lambda answer: answer.index)
    suite = load_suite()
    if json.loads((options.run / SETTINGS).read_text())["shuffle_images"]:
        suite = shuffle_images(suite)
    images = {i: question.image for i, question in enumerate(suite) if question.image}
    sheet(chosen, images).save(options.output, quality=88)
    print(options.output)


if __name__ == "__main__":
    main()
