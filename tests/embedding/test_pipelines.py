"""Tags, masks and zero-shot labels beside the pipelines of transformers, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
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
)
from places import GOLDENS

import slmq
from slmq import ContextOverflowError

WANTED = json.loads((GOLDENS / "pipelines.json").read_text("utf-8"))


def near(score: float) -> Any:
    return pytest.approx(score, abs=2e-6)


@pytest.mark.parametrize("blanks", [False, True])
@pytest.mark.parametrize("labels", LABELS)
def test_tags(labels: str, blanks: bool, tmp_path: Path) -> None:
    folder = tags_folder(tmp_path / "m", labels, blanks=blanks)
    want = WANTED["tags"][labels + ("_blanks" if blanks else "")]
    with slmq.load_encoder(folder, format="f32") as encoder:
        for way in AGGREGATIONS:
            for text, entities in zip(TEXTS, want[way], strict=True):
                found = encoder.tags(text, aggregation=way)
                shown = [e for e in entities if e[3] > e[2]]
                assert [(t.label, t.start, t.end) for t in found] == [
                    (label, start, end) for label, _, start, end in shown
                ], (way, text)
                for tag, (_, score, _, _) in zip(found, shown, strict=True):
                    assert tag.score == near(score)
                    assert tag.text == text[tag.start : tag.end]


def test_the_tags_tell_something() -> None:
    """Words of several pieces, groups of several words, and differences between ways."""
    for ways in WANTED["tags"].values():
        assert len({json.dumps(ways[way]) for way in AGGREGATIONS}) >= 4
    for way in AGGREGATIONS:
        labels = {tag[0] for ways in WANTED["tags"].values() for tags in ways[way] for tag in tags}
        assert len(labels) > 2


def test_masks(tmp_path: Path) -> None:
    with slmq.load_encoder(masks_folder(tmp_path / "m"), format="f32") as encoder:
        for text, rows in zip(MASKED, WANTED["fill_mask"], strict=True):
            found = encoder.fill_mask(text, top_k=4)
            assert [[(f.token, f.text) for f in row] for row in found] == [
                [(token, piece) for token, piece, _ in row] for row in rows
            ]
            for got, want in zip(found, rows, strict=True):
                assert [f.score for f in got] == [near(score) for _, _, score in want]


@pytest.mark.parametrize("labels", NLI)
def test_zero_shot(labels: str, tmp_path: Path) -> None:
    with slmq.load_encoder(nli_folder(tmp_path / "m", labels), format="f32") as encoder:
        for key, want in WANTED["zero_shot"][labels].items():
            claims = CLAIMS[:1] if key == "one" else CLAIMS
            many = key == "True"
            found = encoder.zero_shot(TEXTS[0], claims, template=TEMPLATE, multi_label=many)
            assert [s.label for s in found] == [label for label, _ in want]
            assert [s.score for s in found] == [near(score) for _, score in want]


def test_only_the_text_is_cut_and_never_the_label(tmp_path: Path) -> None:
    with slmq.load_encoder(nli_folder(tmp_path / "m", "usual"), format="f32") as encoder:
        long, label = "the cat eats " * 90, "dog " * 20
        with pytest.raises(ContextOverflowError, match="truncate=True"):
            encoder.zero_shot(long, [label])
        room = encoder.max_length - len(encoder.tokenizer.encode_parts("", f"is {label}"))
        cut = " ".join(long.split()[:room])
        given: Any = {"template": "is {}", "multi_label": True}
        whole = encoder.zero_shot(cut, [label], **given)
        assert encoder.zero_shot(long, [label], truncate=True, **given) == whole
        with pytest.raises(TypeError, match="labels: expected several labels, got one str"):
            encoder.zero_shot("the cat", "dog")
