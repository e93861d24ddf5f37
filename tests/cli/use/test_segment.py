"""Every option of `dinocell segment` reaches the segmenter alike by command line, job and Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinocell import segmentation
from dinocell.cli.stages import STAGES
from dinocell.cli.use import segment
from dinocell.segmentation import SegmentOptions

OPTIONS: dict[str, Any] = {  # every option → a value that is not its default; `save` and the files stay as they are
    "model": "cells",
    "axes": "CYX",
    "channel": "DAPI",
    "z": "max",
    "device": "cpu",
    "batch_size": 3,
    "views": 2,
    "skip_existing": True,
    "diameter": 30.0,
    "pixel_size": 0.5,
    "threshold": 0.4,
    "min_size": 12,
    "flow_error": 0.3,
}


class Reached(Exception):
    """The segmenter would start now."""


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Arguments at the boundary of the segmenter."""
    found: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.zeros((8, 8), np.uint8))

    class Network:
        def __init__(self, model: Any, **settings: Any) -> None:
            found.update(settings, model=model)
            self.objective = None

        def describe(self) -> str:
            return "no network"

    class Pipeline:
        def __init__(self, model: Any, out: Path, formats: Any, options: SegmentOptions, keep_since: float) -> None:
            found.update(out=out, formats=formats, options=options, keep_since=keep_since)
            raise Reached

    monkeypatch.setattr("dinocell.segmentation.folder.Segmenter", Network)
    monkeypatch.setattr("dinocell.segmentation.folder.Pipeline", Pipeline)
    monkeypatch.setattr(SegmentOptions, "decoding", lambda *_: None)
    return found


def words(name: str) -> list[str]:
    option, value = f"--{name.replace('_', '-')}", OPTIONS[name]
    return ["a.npy", "--out", "out", option, *([] if value is True else [str(value)])]


def by_command(name: str) -> None:
    segment.main(words(name))


def by_job(name: str) -> None:
    STAGES["segment"].run(STAGES["segment"].parse(words(name)))


def by_python(name: str) -> None:
    segmentation.run(["a.npy"], "out", **{name: OPTIONS[name]})


def test_no_option_is_left_out() -> None:
    assert set(inspect.signature(segment._arguments).parameters) == {*OPTIONS, "inputs", "out", "save"}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_way_gives_the_segmenter_the_same(name: str, reached: dict[str, Any]) -> None:
    seen = []
    ways: tuple[Callable[[str], None], ...] = (by_python, by_command, by_job)
    for way in ways:
        with pytest.raises(Reached):
            way(name)
        seen.append(dict(reached))
    assert seen[1] == seen[0] and seen[2] == seen[0]
    given = OPTIONS[name]
    assert given in (seen[0].get(name), getattr(seen[0]["options"], name, None), seen[0]["keep_since"] == 0.0)
