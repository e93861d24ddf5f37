"""Options reach the segmenter alike from the command line, a cluster job, Python and napari."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import dinocell
from dinocell import segmentation
from dinocell.cli.app import run_app
from dinocell.cli.stages import STAGES
from dinocell.core.errors import ConfigError
from dinocell.napari.task import chosen_options
from dinocell.segmentation import Segmenter, SegmentOptions
from dinocell.segmentation.options import SegmentKwargs

TYPED = {  # what a user types after --, and the value it means
    "axes": ("CYX", "CYX"),
    "channel": ("DAPI", "DAPI"),
    "z": ("max", "max"),
    "diameter": ("30", 30.0),
    "pixel_size": ("0.5", 0.5),
    "threshold": ("0.4", 0.4),
    "min_size": ("12", 12),
    "flow_error": ("0.3", 0.3),
}


def test_keyword_arguments_are_the_fields() -> None:
    assert get_type_hints(SegmentKwargs) == get_type_hints(SegmentOptions)


def test_public_functions_name_the_types_of_their_options() -> None:
    for function, name in [
        (dinocell.segment, "options"),
        (segmentation.run, "changes"),
        (Segmenter.segment, "changes"),
        (Segmenter.segment_planes, "changes"),
    ]:
        assert "SegmentKwargs" in str(function.__annotations__[name]), function


@pytest.mark.parametrize("name", TYPED)
def test_text_and_value_mean_the_same(name: str) -> None:
    text, value = TYPED[name]
    assert SegmentOptions.parse({name: text}) == SegmentOptions(**{name: value})


def test_none_stands_for_the_default() -> None:
    assert SegmentOptions.parse(dict.fromkeys(get_type_hints(SegmentKwargs))) == SegmentOptions()
    assert SegmentOptions(diameter="own").changed({"diameter": None}).diameter == "model"
    assert SegmentOptions(threshold=0.2).changed({"diameter": "auto"}) == SegmentOptions(threshold=0.2, diameter="auto")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"diameter": "car"}, "diameter: must be a number, auto, own or model, got 'car'"),
        ({"diameter": "0"}, "diameter: must be above 0, got 0"),
        ({"diameter": "nan"}, "diameter: must be above 0, got nan"),
        ({"diameter": "inf"}, "diameter: must be finite, got inf"),
        ({"pixel_size": "1 µm"}, "pixel_size: must be a number, got '1 µm'"),
        ({"min_size": "2.5"}, "min_size: must be a whole number, got '2.5'"),
        ({"treshold": 0.3}, "treshold: no such option of segment; known: axes, channel, .*threshold, z"),
        ({"z": "deepest"}, "z: 'deepest' is not known"),
    ],
)
def test_what_is_not_an_option_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentOptions.parse(values)


@pytest.mark.parametrize("diameter", [None, "car", 0, -3.0])
def test_a_diameter_is_a_number_or_a_known_word(diameter: Any) -> None:
    with pytest.raises(ConfigError, match="diameter: must be"):
        SegmentOptions(diameter=diameter)


@pytest.fixture
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[SegmentOptions]:
    """Options that reach the network."""
    found: list[SegmentOptions] = []

    class Stop(Segmenter):
        def __init__(self, *_: Any, **__: Any) -> None:
            self.objective = dinocell.objectives.ObjectiveConfig()

        def describe(self) -> str:
            return "no network"

        def prepare(self, plane: Any, options: SegmentOptions) -> Any:
            found.append(options)
            raise ConfigError("far enough")

        def is_large(self, plane: Any, options: SegmentOptions) -> bool:
            return False

        def predict(self, jobs: Any) -> Any:
            assert list(jobs) == []
            return iter(())

    monkeypatch.setattr("dinocell.segmentation.folder.Segmenter", Stop)
    return found


def by_command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        run_app(["segment", *arguments])


def by_job(arguments: list[str]) -> None:
    stage = STAGES["segment"]
    stage.run(stage.parse(arguments))


@pytest.mark.parametrize("start", [by_command, by_job])
@pytest.mark.parametrize("name", sorted(set(TYPED) - {"axes", "channel", "z"}))
def test_command_and_job_give_the_same_options(
    name: str, start: Callable[[list[str]], None], segmented: list[SegmentOptions], tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", np.eye(70, dtype=np.uint8))
    text, value = TYPED[name]
    start([str(tmp_path / "a.npy"), "--out", str(tmp_path / "out"), f"--{name.replace('_', '-')}", text])
    assert segmented == [SegmentOptions(**{name: value})]


@pytest.mark.parametrize(
    ("estimate", "diameter", "meant"),
    [(False, 0.0, "own"), (False, 31.0, 31.0), (True, 0.0, "auto"), (True, 9, "auto")],
)
def test_the_form_of_napari_says_what_it_shows(estimate: bool, diameter: float, meant: float | str) -> None:
    """A diameter left "as it is" keeps the image's scale, also with a model that estimates unless told otherwise."""
    assert chosen_options(estimate=estimate, diameter=diameter, threshold=0.0) == SegmentOptions(diameter=meant)
