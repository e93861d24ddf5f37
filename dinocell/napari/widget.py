"""Dock widget: choose layer, model and settings; run in a worker thread with progress and cancel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSpinBox,
    Label,
    ProgressBar,
    PushButton,
    create_widget,
)
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Qt, Signal

from dinocell.core.errors import DinoCellError, first_line
from dinocell.models.packaged import default_model, find_model, packaged_models
from dinocell.napari.task import (
    Cancelled,
    Index,
    LayerCells,
    chosen_options,
    estimates_by_default,
    plane_indices,
    segment_layer,
)
from dinocell.segmentation.options import SegmentOptions
from dinocell.segmentation.segmenter import Segmenter

FOLDER = "a model folder …"
EVERY, SHOWN = "every plane", "the plane shown"
STEPS = 1000


class _Signals(QObject):  # emitted in the worker's thread, received in napari's
    progressed = Signal(float)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Input of the worker; nothing of it belongs to Qt."""

    layer: Any
    data: Any
    rgb: bool
    model: Path
    options: SegmentOptions
    pixel_size: float | None
    planes: Sequence[Index] | None


@dataclass(kw_only=True)
class _Outcome:
    cells: LayerCells | None = None
    seconds: float = 0.0
    device: str = ""
    error: str = ""


class SegmentWidget(Container):
    """Segment the cells of an image layer; the labels layer carries one row of measurements per cell.

    Args:
        napari_viewer: where the layers are; napari passes it by this name.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self._worker: Any = None
        self._gone = False
        self._segmenter: tuple[tuple[Path, int], Segmenter] | None = None
        self._signals = _Signals()
        self._signals.progressed.connect(self._show_progress)
        self._build()
        self.native.destroyed.connect(self._leave)
        self._show_running(False)
        if not packaged_models():
            self.status.value = "No packaged model is in this installation: choose a model folder."

    def _build(self) -> None:
        names = packaged_models()
        self.image = create_widget(label="image", annotation="napari.layers.Image")
        self.model = ComboBox(label="model", choices=[*names, FOLDER], value=default_model() or [*names, FOLDER][0])
        self.folder = FileEdit(label="folder", mode="d", tooltip="a folder with model.safetensors and config.json")
        self.diameter = FloatSpinBox(
            label="diameter (px)",
            max=4096.0,
            step=1.0,
            tooltip="Typical cell diameter; the image is scaled to what the model was trained on. 0: not scaled.",
        )
        self.estimate = CheckBox(
            text="estimate the diameter", tooltip="The model looks for the scale that fits it best."
        )
        self.threshold = FloatSpinBox(
            label="threshold",
            max=1.0,
            step=0.05,
            tooltip="Probability above which a pixel belongs to a cell. 0: the model's own.",
        )
        self.planes = ComboBox(label="stacks", choices=[EVERY, SHOWN], tooltip="Planes are segmented one by one.")
        self.run = PushButton(text="Segment")
        self.cancel = PushButton(text="Cancel")
        self.progress = ProgressBar(max=STEPS, label="")
        self.table = PushButton(text="Show the table")
        self.status = Label(value="")
        self.status.native.setWordWrap(True)
        self.diameter.native.setSpecialValueText("as it is")
        self.threshold.native.setSpecialValueText("the model's")
        self.extend([self.image, self.model, self.folder, self.diameter, self.estimate, self.threshold, self.planes])
        self.extend([self.run, self.cancel, self.progress, self.table, self.status])
        self.model.changed.connect(self._show_folder)
        self._show_folder()
        self.estimate.changed.connect(lambda wanted: setattr(self.diameter, "enabled", not wanted))
        self.model.changed.connect(self._follow_model)
        self.folder.changed.connect(self._follow_model)
        self._follow_model()
        self.run.changed.connect(self.start)
        self.cancel.changed.connect(self.stop)
        self.table.changed.connect(self._show_table)

    def _show_folder(self) -> None:
        self.folder.visible = self.model.value == FOLDER

    def _chosen_model(self) -> Path:
        return find_model(self.folder.value if self.model.value == FOLDER else self.model.value)

    def _follow_model(self) -> None:
        """Tick the estimate for models that are trained on rescaled images, which otherwise segment poorly."""
        try:
            folder = self._chosen_model()
        except DinoCellError:
            return
        self.estimate.value = estimates_by_default(folder)

    def start(self) -> None:
        """Begin to segment the chosen layer; one run at a time."""
        if self._worker is not None:
            return
        try:
            task = self._task()
        except DinoCellError as error:
            self._fail(str(error))
            return
        if task is None:
            self.status.value = "Open an image first."
            return
        self._show_running(True)
        self._show_progress(0.0)
        self.status.value = "Segmenting …"
        outcome = _Outcome()
        self._worker = create_worker(self._work, task, outcome, _start_thread=False)
        self._worker.finished.connect(lambda: self._finish(task, outcome))
        self._worker.start()

    def stop(self) -> None:
        """Cancel; the window that is being computed is still finished."""
        if self._worker is not None:
            self.status.value = "Cancelling …"
            self._worker.quit()

    def _leave(self) -> None:
        """Cancel when the viewer or the dock is closed: Qt objects are gone, and the result is no longer needed."""
        self._gone = True
        if self._worker is not None:
            self._worker.quit()

    def _task(self) -> _Task | None:
        layer = self.image.value
        if layer is None:
            return None
        data = layer.data[0] if layer.multiscale else layer.data  # the finest level
        shown = None
        if self.planes.value == SHOWN and len(plane_indices(data.shape, layer.rgb)[0]):
            shown = [self._shown_plane(layer, data.shape)]
        return _Task(
            layer=layer,
            data=data,
            rgb=layer.rgb,
            model=self._chosen_model(),
            options=chosen_options(
                estimate=self.estimate.value, diameter=self.diameter.value, threshold=self.threshold.value
            ),
            pixel_size=pixel_size(layer),
            planes=shown,
        )

    def _shown_plane(self, layer: Any, shape: Sequence[int]) -> Index:
        """Return the indices of the plane shown along the layer's leading axes."""
        point = layer.world_to_data(self._viewer.dims.point)
        return tuple(
            min(max(round(float(at)), 0), length - 1)
            for at, length in zip(point[: layer.ndim - 2], shape, strict=False)
        )

    def _work(self, task: _Task, outcome: _Outcome) -> None:
        """Segment in the worker's thread; errors are shown in the widget, so nothing is raised."""
        started = time.monotonic()
        try:
            segmenter = self._loaded(task.model)
            outcome.device = f"{segmenter.runner.device} ({segmenter.device_reason})"
            outcome.cells = segment_layer(
                segmenter,
                task.data,
                rgb=task.rgb,
                options=task.options,
                pixel_size=task.pixel_size,
                planes=task.planes,
                report=self._signals.progressed.emit,
                cancelled=lambda: self._gone or self._worker is None or bool(self._worker.abort_requested),
            )
        except Cancelled:
            pass
        except Exception as error:  # a person at the viewer sees no console
            outcome.error = first_line(error, named=True)
        outcome.seconds = time.monotonic() - started

    def _loaded(self, folder: Path) -> Segmenter:
        """Load the model; it is kept until another one is chosen or its weights change."""
        weights = folder / "model.safetensors"
        key = folder, weights.stat().st_mtime_ns if weights.is_file() else 0
        if self._segmenter is None or self._segmenter[0] != key:
            self._segmenter = key, Segmenter(folder)
        return self._segmenter[1]

    def _finish(self, task: _Task, outcome: _Outcome) -> None:
        self._worker = None
        if self._gone:
            return
        self._show_running(False)
        if outcome.error:
            self._fail(outcome.error)
        elif outcome.cells is None:
            self.status.value = "Cancelled."
        else:
            self._add_labels(task, outcome.cells)
            lines = [f"{len(outcome.cells.features):,} cells in {outcome.seconds:.1f} s on {outcome.device}"]
            self.status.value = "\n".join([*lines, *map(str, outcome.cells.notes[:3])])

    def _add_labels(self, task: _Task, cells: LayerCells) -> None:
        layer = task.layer
        self._viewer.add_labels(
            cells.labels,
            name=f"{layer.name} cells",
            features=cells.features,
            scale=layer.scale,
            translate=layer.translate,
            rotate=layer.rotate,
            shear=layer.shear,
            affine=layer.affine,
            units=layer.units,
        )

    def _show_table(self) -> None:
        """Open napari's own table of the selected layer's features, which also saves it as CSV."""
        dock, _ = self._viewer.window.add_plugin_dock_widget("napari", "Features table widget")
        dock.parentWidget().addDockWidget(Qt.DockWidgetArea.BottomDockWidgetArea, dock)  # many columns need the width

    def _fail(self, message: str) -> None:
        self.status.value = message
        show_error(message)

    def _show_running(self, running: bool) -> None:
        self.run.enabled = not running
        self.cancel.enabled = running
        self.progress.visible = running

    def _show_progress(self, part: float) -> None:
        if not self._gone:
            self.progress.value = round(part * STEPS)


def pixel_size(layer: Any) -> float | None:
    """Return the µm per pixel where the layer's units are a length and its pixels are square, else None."""
    units, scale = layer.units[-2:], layer.scale[-2:]
    sizes = [float(step) * _micrometres(unit) for unit, step in zip(units, scale, strict=True)]
    return sizes[0] if sizes[0] > 0 and abs(sizes[0] - sizes[1]) < 1e-3 * sizes[0] else None


def _micrometres(unit: Any) -> float:
    """Return a unit of length in µm; 0 for other units, such as pixels."""
    try:
        return float((1 * unit).to("micrometer").magnitude)
    except Exception:  # pint's errors for other dimensions; pint itself need not be imported
        return 0.0
