"""Make tests/goldens/pipelines.json: what transformers' pipelines say of tiny random models.

Run by hand, in an environment with torch and transformers::

    python tests/support/make_pipeline_goldens.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from pipeline_cases import (
    AGGREGATIONS,
    CLAIMS,
    LABELS,
    MASKED,
    NLI,
    TEMPLATE,
    TEXTS,
    masks_folder,
    nli_folder,
    tags_folder,
    with_transformers_names,
)
from places import GOLDENS


def pipeline(task: Any, folder: Path) -> Any:
    """One over a folder, in float32."""
    path = str(with_transformers_names(folder))
    return transformers.pipeline(task, model=path, tokenizer=path, device="cpu", dtype="float32")


def main() -> None:
    """All of them."""
    found: dict[str, Any] = {"tags": {}, "zero_shot": {}}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for labels in LABELS:
            for blanks in (False, True):
                key = labels + ("_blanks" if blanks else "")
                ask = pipeline("ner", tags_folder(root / key, labels, blanks=blanks))
                found["tags"][key] = {
                    way: [tagged(ask(text, aggregation_strategy=way)) for text in TEXTS]
                    for way in AGGREGATIONS
                }
        ask = pipeline("fill-mask", masks_folder(root / "masks"))
        found["fill_mask"] = [filled(ask(text, top_k=4)) for text in MASKED]
        for labels in NLI:
            ask = pipeline("zero-shot-classification", nli_folder(root / f"n{labels}", labels))
            found["zero_shot"][labels] = {
                str(many): scored(
                    ask(TEXTS[0], CLAIMS, hypothesis_template=TEMPLATE, multi_label=many)
                )
                for many in (False, True)
            }
            one = ask(TEXTS[0], CLAIMS[:1], hypothesis_template=TEMPLATE)
            found["zero_shot"][labels]["one"] = scored(one)
    (GOLDENS / "pipelines.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def tagged(entities: Any) -> list[Any]:
    """Label, score and characters of each."""
    return [
        [e.get("entity_group", e.get("entity")), float(e["score"]), int(e["start"]), int(e["end"])]
        for e in entities
    ]


def filled(answer: Any) -> list[Any]:
    """Token and score of the candidates for each mask."""
    rows = answer if isinstance(answer[0], list) else [answer]
    return [[[e["token"], e["token_str"], e["score"]] for e in row] for row in rows]


def scored(answer: Any) -> list[Any]:
    """Labels with their scores."""
    return [list(pair) for pair in zip(answer["labels"], answer["scores"], strict=True)]


if __name__ == "__main__":
    main()
