"""The plugin in a real napari viewer: `make test-napari`. Needs napari, pytest-qt, OpenGL and a screen (xvfb-run)."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pytestqt", reason="run by make test-napari")
napari = pytest.importorskip("napari", reason="run by make test-napari")
npe2 = pytest.importorskip("npe2", reason="run by make test-napari")

from dinocell.models import packaged  # noqa: E402
from dinocell.napari import widget as plugin  # noqa: E402
from dinocell.segmentation import Segmenter  # noqa: E402

Make = Callable[..., Any]
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.napari
if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
    pytest.skip("no display: run by make test-napari, under xvfb-run", allow_module_level=True)


@pytest.fixture
def installed(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(model_folder, tmp_path / "packaged" / "cells")
    monkeypatch.setattr(packaged, "PACKAGED", tmp_path / "packaged")
    return tmp_path / "packaged" / "cells"


@pytest.fixture
def dock(make_napari_viewer: Make, installed: Path, qtbot: Any) -> Iterator[Make]:
    """(viewer, widget) with images open; the widget is docked as napari does it."""
    viewer = make_napari_viewer()

    def with_images(*layers: dict[str, Any]) -> tuple[Any, Any]:
        for layer in layers:
            viewer.add_image(**layer)
        widget = plugin.SegmentWidget(viewer)
        viewer.window.add_dock_widget(widget, name="DINOCell")
        return viewer, widget

    yield with_images


def finished(widget: Any, qtbot: Any) -> str:
    qtbot.waitUntil(lambda: widget._worker is None, timeout=60_000)
    return str(widget.status.value)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def test_manifest_is_valid(repository: Path) -> None:
    manifest = repository / "dinocell" / "napari" / "napari.yaml"
    command = [sys.executable, "-m", "npe2", "validate", str(manifest)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0 and "valid" in done.stdout, done.stdout + done.stderr


def test_napari_finds_widget_and_sample(
    npe2pm: Any, make_napari_viewer: Make, installed: Path, repository: Path
) -> None:
    manifest = npe2.PluginManifest.from_file(repository / "dinocell" / "napari" / "napari.yaml")
    with npe2pm.tmp_plugin(manifest=manifest):
        viewer = make_napari_viewer()
        _, widget = viewer.window.add_plugin_dock_widget("dinocell", "Segment cells")
        assert isinstance(widget, plugin.SegmentWidget) and widget.model.value == "cells"
        opened = viewer.open_sample("dinocell", "synthetic")
        assert [layer.data.shape for layer in opened] == [(384, 384)] * 3
        assert widget.image.value in opened


def test_a_plain_image(dock: Make, installed: Path, qtbot: Any) -> None:
    image = noise(100, 150)
    viewer, widget = dock({"data": image, "name": "field", "scale": (0.5, 0.5), "translate": (3, 4), "units": "um"})
    widget.run.native.click()
    assert not widget.run.enabled and widget.cancel.enabled
    said = finished(widget, qtbot)
    layer = viewer.layers["field cells"]
    expected = Segmenter(installed).segment(image)
    np.testing.assert_array_equal(layer.data, expected.labels)
    np.testing.assert_array_equal(layer.scale, [0.5, 0.5])
    np.testing.assert_array_equal(layer.translate, [3, 4])
    assert len(layer.features) == expected.count and said.startswith(f"{expected.count:,} cells in ")
    np.testing.assert_allclose(layer.features["area_um2"], layer.features["area_px"] / 4)
    # what napari shows under the pointer comes from these features
    at = np.argwhere(expected.labels == 7)[0]
    area = int((expected.labels == 7).sum())
    assert f"area_px: {area}" in layer.get_status(layer.data_to_world(at), world=True)["coordinates"]
    assert widget.run.enabled and not widget.cancel.enabled


def test_colour_stack_and_shown_plane(dock: Make, installed: Path, qtbot: Any) -> None:
    colour, stack = noise(64, 80, 3), noise(3, 64, 80)
    viewer, widget = dock({"data": colour, "name": "colour"}, {"data": stack, "name": "stack", "scale": (2, 1, 1)})
    segmenter = Segmenter(installed)
    widget.image.value = viewer.layers["colour"]
    widget.start()
    finished(widget, qtbot)
    np.testing.assert_array_equal(viewer.layers["colour cells"].data, segmenter.segment(colour, axes="YXS").labels)
    widget.image.value = viewer.layers["stack"]
    widget.start()
    finished(widget, qtbot)
    labels = viewer.layers["stack cells"]
    assert labels.data.shape == stack.shape and sorted(set(labels.features["plane"])) == [0, 1, 2]
    widget.planes.value = plugin.SHOWN
    viewer.dims.set_point(0, 2.0)  # world: the second plane
    widget.start()
    finished(widget, qtbot)
    shown = viewer.layers["stack cells [1]"]
    np.testing.assert_array_equal(shown.data[1], segmenter.segment(stack[1]).labels)
    assert not shown.data[[0, 2]].any()


def test_a_pyramid_is_segmented_at_full_size(dock: Make, qtbot: Any) -> None:
    image = noise(128, 128)
    viewer, widget = dock({"data": [image, image[::2, ::2]], "multiscale": True, "name": "pyramid"})
    widget.start()
    finished(widget, qtbot)
    assert viewer.layers["pyramid cells"].data.shape == (128, 128)


def test_cancel_keeps_the_viewer_as_it_was(dock: Make, qtbot: Any) -> None:
    viewer, widget = dock({"data": noise(640, 640), "name": "field"})
    seen: list[float] = []

    def stop_at_the_third_window(part: float) -> None:
        seen.append(part)
        if len(seen) == 3:
            widget.cancel.native.click()

    widget._signals.progressed.connect(stop_at_the_third_window)
    widget.start()
    assert finished(widget, qtbot) == "Cancelled."
    assert [layer.name for layer in viewer.layers] == ["field"]
    assert 0 < seen[-1] < 0.9, "stopped long before the last of 169 windows"
    widget._signals.progressed.disconnect(stop_at_the_third_window)
    widget.start()
    assert "cells in" in finished(widget, qtbot)


def test_a_widget_that_is_destroyed_cancels_in_peace(dock: Make, qtbot: Any) -> None:
    viewer, widget = dock({"data": noise(640, 640), "name": "field"})
    seen: list[float] = []
    widget._signals.progressed.connect(seen.append)
    widget.start()
    qtbot.waitUntil(lambda: len(seen) > 1, timeout=60_000)
    viewer.window.remove_dock_widget(widget.native)
    widget.native.deleteLater()  # as when the viewer is closed
    qtbot.waitUntil(lambda: widget._worker is None, timeout=60_000)
    assert widget._gone and seen[-1] < 0.9
    assert [layer.name for layer in viewer.layers] == ["field"]


def test_what_goes_wrong_is_said_in_the_widget(dock: Make, installed: Path, qtbot: Any, tmp_path: Path) -> None:
    viewer, widget = dock()
    widget.start()
    assert widget.status.value == "Open an image first."
    viewer.add_image(noise(64, 64), name="field")
    widget.model.value = plugin.FOLDER
    assert widget.folder.visible or not widget.native.isVisible()
    widget.folder.value = tmp_path
    widget.start()
    assert "config.json: no such file" in finished(widget, qtbot)
    widget.folder.value = installed
    (installed / "model.safetensors").write_bytes(b"damaged")
    widget.start()
    assert "not a readable safetensors file" in finished(widget, qtbot)
    assert len(viewer.layers) == 1


def test_the_scale_is_estimated_where_the_box_is_ticked_and_only_there(dock: Make, installed: Path) -> None:
    """A model of rescaled images ticks it; unticked, a diameter "as it is" keeps the image's scale with it, too."""
    _, widget = dock({"data": noise(64, 64), "name": "field"})
    assert not widget.estimate.value and widget._task().options.diameter == "own"
    card = json.loads((installed / "config.json").read_text())
    (installed / "config.json").write_text(json.dumps({**card, "rescale": "auto"}))
    widget.model.value = plugin.FOLDER
    widget.folder.value = installed
    assert widget.estimate.value and not widget.diameter.enabled
    assert widget._task().options.diameter == "auto"
    widget.estimate.value = False
    assert widget.diameter.enabled and widget._task().options.diameter == "own"
    widget.diameter.value = 31
    assert widget._task().options.diameter == 31


def test_the_table_is_naparis_own(dock: Make, qtbot: Any) -> None:
    viewer, widget = dock({"data": noise(64, 64), "name": "field"})
    widget.start()
    finished(widget, qtbot)
    widget.table.native.click()
    table = viewer.window.dock_widgets["Features table widget (napari)"]
    viewer.layers.selection.active = viewer.layers["field cells"]
    model = table.table.model()
    assert model.rowCount() == len(viewer.layers["field cells"].features)


@pytest.mark.parametrize(
    ("units", "scale", "expected"),
    [("um", (0.5, 0.5), 0.5), ("nm", (250, 250), 0.25), ("pixel", (1, 1), None), ("um", (0.5, 0.7), None)],
)
def test_pixel_size_is_taken_from_units(units: str, scale: tuple[float, float], expected: float | None) -> None:
    layer = napari.layers.Image(noise(8, 8), units=units, scale=scale)
    assert plugin.pixel_size(layer) == (None if expected is None else pytest.approx(expected))
