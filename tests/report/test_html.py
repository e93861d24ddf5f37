"""A report is one valid file that needs nothing else."""

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from dinocell.report import Report

VOID = {"meta", "img", "source", "br", "link"}


class Checker(HTMLParser):
    """Collects tags and references; fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.anchors: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href"):
                self.references.append(value)
            if name == "id":
                self.anchors.append(value)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _parse(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.stack
    return checker


@pytest.fixture
def full_report(tmp_path: Path) -> Path:
    report = Report("Run <7> & more", "ViT-Ti/8, `runs/a`")
    report.heading("Scores")
    report.text("First paragraph.\n\nSecond, with `code` and <b>no markup</b>.")
    report.figures({"MMA": 0.8125, "cells": 12345, "time": "3 min"})
    report.table([["phase", 0.5, 3], ["fluorescence", float("nan"), 12000]], ["modality", "MMA", "cells"], "held out")
    report.heading("Curves")
    report.line_chart({"train": ([0, 1, 2], [3.0, 2.0, 1.0]), "val": ([0, 2], [3.5, 1.5])}, "Loss", "step", "MSE")
    report.bars({"ours": 0.8, "baseline": 0.4}, "MMA", "MMA (0–1)")
    report.bars({"phase": {"ours": 0.8, "baseline": 0.4}, "dark": {"ours": 0.7}}, "By modality", "MMA (0–1)")
    report.heading("Pictures")
    report.heading("One", level=3)
    report.image(np.zeros((20, 30), np.uint16), "an image")
    report.gallery([(np.ones((10, 10, 3), np.uint8), "a"), (np.ones((10, 10), np.float32), "b")], "two")
    report.code("dinocell demo --out <dir>")
    return report.write(tmp_path / "deep" / "report.html")


def test_file_is_well_formed_and_refers_only_to_itself(full_report: Path):
    page = _parse(full_report)
    assert page.tags.count("main") == 1 and page.tags.count("table") == 1
    for reference in page.references:
        assert reference.startswith("data:image/png;base64,") or reference[1:] in page.anchors
    source = full_report.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|<script|<link", source)


def test_page_has_what_a_phone_and_a_dark_room_need(full_report: Path):
    source = full_report.read_text(encoding="utf-8")
    assert 'name="viewport"' in source and "prefers-color-scheme:dark" in source
    # Each of the three charts comes in two versions, and wide tables scroll on their own.
    assert source.count('<source media="(prefers-color-scheme: dark)"') == 3
    assert "overflow-x:auto" in source


def test_text_is_escaped(full_report: Path):
    page = _parse(full_report)
    assert "b" not in page.tags
    text = "".join(page.text)
    assert "Run <7> & more" in text and "<b>no markup</b>" in text and "--out <dir>" in text
    assert "12,345" in text and "0.812" in text and "nan" not in text


def test_pictures_decode_to_the_pixels_given(tmp_path: Path):
    rgb = np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    report = Report("x")
    report.image(rgb)
    file = tmp_path / "p.png"
    cv2.imwrite(str(file), rgb[..., ::-1])
    report.image(file)
    report.image(file.read_bytes())
    page = _parse(report.write(tmp_path / "r.html"))
    assert len(page.references) == 3
    for reference in page.references:
        content = base64.b64decode(reference.partition(",")[2])
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.array_equal(decoded, rgb)


def test_large_pictures_are_scaled_down(tmp_path: Path):
    report = Report("x")
    report.image(np.zeros((3000, 1500), np.uint8))
    reference = _parse(report.write(tmp_path / "r.html")).references[0]
    content = np.frombuffer(base64.b64decode(reference.partition(",")[2]), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_UNCHANGED).shape[:2] == (1024, 512)


def test_charts_cope_with_one_point_gaps_and_nothing():
    report = Report("x")
    report.line_chart({"a": ([1], [2.0])}, "t", "x", "y")
    report.line_chart({"a": ([1, 2, 3], [2.0, float("nan"), 3.0])}, "t", "x", "y", log_y=True)
    report.line_chart({}, "t", "x", "y")
    assert report.to_html().count("<picture>") == 3


def test_charts_leave_pyplot_alone():
    before = "matplotlib.pyplot" in sys.modules
    report = Report("x")
    report.bars({"a": 1.0}, "t", "y")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_mistakes_are_named():
    report = Report("x")
    with pytest.raises(ValueError, match="row 1 has 1 cells"):
        report.table([[1, 2], [3]], ["a", "b"])
    with pytest.raises(ValueError, match="'loss'"):
        report.line_chart({"loss": ([1, 2], [1.0])}, "t", "x", "y")
    with pytest.raises(ValueError, match="PNG or JPEG"):
        report.image(b"not a picture")
    with pytest.raises(ValueError, match="level"):
        report.heading("x", level=4)
