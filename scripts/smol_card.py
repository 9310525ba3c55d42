"""The data card of llava-smol: one HTML page with what the training data is made of, and examples to look at."""

import base64
import html
import random
from collections import Counter
from pathlib import Path
from typing import Any

from llava.files import write_text
from llava.pictures.catalogue import Catalogue
from llava.registry import PARTS, PICTURES

_SHOWN = 40  # examples of each file
_PACKAGES = {**PICTURES, "shapes": PARTS["easy-vqa"], "replies without a picture": PARTS["smollm2-135m-instruct"]}


def write_card(path: Path, catalogue: Catalogue, data: dict[str, list[dict[str, Any]]], images: Path) -> None:
    """Write the page: sources, licences and counts; then rows of each file of `data`, chosen by a fixed seed."""
    held = Counter((entry.source, entry.split == "train") for entry in catalogue.entries)
    sources = []
    for name, part in _PACKAGES.items():
        numbers = [held[name, train] or "" for train in (True, False)]
        sources.append(_cells(name, f"{part.package} {part.version}", part.licence, *numbers))
    sections = []
    for name, rows in data.items():
        examples = "".join(_example(row, images) for row in _some(rows))
        sections.append(f"<h2>{name}.json: {len(rows):,} rows</h2><table>{examples}</table>")
    head = _cells("source", "package", "licence", "pictures in training", "held out")
    write_text(
        path,
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Training data of llava-smol</title>'
        "<style>body{font-family:sans-serif} td{padding:4px 12px; vertical-align:top}</style>"
        f"<h1>Training data of llava-smol</h1><table>{head}{''.join(sources)}</table>{''.join(sections)}</html>\n",
    )


def _cells(*texts: object) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(str(text))}</td>' for text in texts)}</tr>"


def _some(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return random.Random(0).sample(rows, min(_SHOWN, len(rows)))


def _example(row: dict[str, Any], images: Path) -> str:
    said = "<br>".join(
        html.escape(f"{'>' if turn['from'] == 'human' else '-'} {turn['value'].removeprefix('<image>').strip()}")
        for turn in row["conversations"]
    )
    if "imagined_class" in row:
        said = f"(the picture is to be taken for class {row['imagined_class']} of ImageNet)<br>{said}"
    picture = ""
    if "image" in row:
        encoded = base64.b64encode((images / row["image"]).read_bytes()).decode()
        kind = "png" if row["image"].endswith("png") else "jpeg"
        picture = f'<img width="112" alt="" src="data:image/{kind};base64,{encoded}">'
    return f"<tr><td>{picture}</td><td>{said}</td></tr>"
