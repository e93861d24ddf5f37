"""Many images into one folder of results: reading, network, decoding and writing overlap; a bad image stops nothing."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, Unpack

from dinocell import __version__
from dinocell.core import log
from dinocell.core.device import Precision
from dinocell.core.errors import ConfigError, DinoCellError
from dinocell.core.files import atomic_write_bytes
from dinocell.images.depth import choose_depth
from dinocell.images.listing import list_images
from dinocell.images.planes import Plane, count_planes, iter_planes, open_image
from dinocell.predict.large.work_folder import KeptScratch
from dinocell.segmentation.job import Job
from dinocell.segmentation.naming import unique_stems
from dinocell.segmentation.notes import Severity, severity_of, tell
from dinocell.segmentation.options import SegmentKwargs, SegmentOptions
from dinocell.segmentation.outputs.format import Format
from dinocell.segmentation.outputs.save import check_formats, output_paths, save_result
from dinocell.segmentation.result import SegmentationResult
from dinocell.segmentation.segmenter import Segmenter
from dinocell.segmentation.shards import SUMMARY_NAME, Shard

AHEAD_BYTES = 2**28
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one plane, or of a whole file that could not be read; the reason and how severe it is."""

    file: Path
    plane: str
    stem: str
    status: str  # done, skipped or failed
    cells: int | None = None
    reason: str = ""
    severity: Severity = "warning"
    last: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did.

    Attributes:
        outcomes: one a plane, and one for each file that could not be read.
        seconds: wall time of the run without loading the model.
    """

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """What could not be segmented, with the reason."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def cells(self) -> int:
        """Cells found in this run."""
        return sum(outcome.cells or 0 for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 when nothing failed, else 1."""
        return 1 if self.failed else 0

    def count(self, status: str) -> int:
        """Planes with a status: done, skipped or failed."""
        return sum(outcome.status == status for outcome in self.outcomes)


def run(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str] | Segmenter | None = None,
    *,
    save: str | Sequence[str] = "labels",
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    views: int | None = None,
    skip_existing: bool = False,
    shard: Shard | None = None,
    options: SegmentOptions | None = None,
    **changes: Unpack[SegmentKwargs],
) -> RunSummary:
    """Segment images, folders and patterns; results go to `out` as `STEM_labels.tif` and what else `save` names.

    Planes of stacks are segmented each on its own, as `STEM_t003_z012_labels.tif`. Inputs with the same stem get their
    folder or extension in the name (`naming.unique_stems`). `summary.csv` lists every plane with its number of cells
    or the reason why it failed.

    Args:
        inputs: files, folders (recursively; masks and earlier results in them are left out) and glob patterns.
        out: folder of the results, made if absent.
        model: a model folder, a packaged name, or a `Segmenter`; default: the packaged model.
        save: names out of `outputs.save.FORMATS`, or one text with commas between them.
        device: see `Segmenter`; not used with a `Segmenter`, as precision, batch_size and views.
        precision: see `Segmenter`.
        batch_size: windows per forward, across images.
        views: see `Segmenter`.
        skip_existing: leave planes whose results are all there.
        shard: only this share of the files, as a task of a job array; `merge_shards` then writes summary.csv.
        options: reading and decoding options.
        **changes: single fields of `SegmentOptions`, e.g. `channel=0`.

    Raises:
        ConfigError: an unknown format or option, inputs that match nothing, no model.
    """
    formats, options = check_formats(save), (options or SegmentOptions()).changed(changes)
    if any(one.needs_embeddings for one in formats):
        options = options.changed({"embeddings": True})
    files = image_files(inputs)
    if not isinstance(model, Segmenter):
        model = Segmenter(model, device=device, precision=precision, batch_size=batch_size, views=views)
    options.decoding(model.objective)  # an impossible threshold is an error of the command, not of every image
    log.info(model.describe())
    started = time.monotonic()
    keep_since = shard.since if shard is not None else 0.0 if skip_existing else math.inf
    task = _Run(model, Path(out), formats, options, keep_since)
    named = list(zip(files, unique_stems(files), strict=True))  # of all files, or two shards could meet in one name
    share = named[shard.index :: shard.count] if shard is not None else named
    outcomes = list(task.outcomes(share)) if share else []
    summary = RunSummary(outcomes=tuple(outcomes), seconds=time.monotonic() - started)
    target = Path(out) / SUMMARY_NAME if shard is None else shard.summary(Path(out))
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(target, _summary_csv(summary))
    _tell(summary, Path(out))
    return summary


def image_files(inputs: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the files that `run` would segment.

    Raises:
        ConfigError: there are none.
    """
    files = list_images(inputs)
    if not files:
        raise ConfigError(f"{', '.join(os.fspath(entry) for entry in inputs)}: no images there")
    return files


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A file whose planes can be taken, or what became of it."""

    file: Path
    stem: str
    planes: int
    images: Iterator[Plane]
    outcome: Outcome | None = None
    deferred: bool = False


@dataclasses.dataclass(frozen=True)
class _Large:
    """A plane for `Segmenter.segment_large`, alone and in its turn."""

    plane: Plane
    about: dict[str, Any]


class _Run:
    """The stages of one run; each works a few planes ahead of the next."""

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path,
        formats: Sequence[Format],
        options: SegmentOptions,
        keep_since: float,
    ) -> None:
        self.segmenter, self.out, self.formats, self.options = segmenter, out, formats, options
        self.keep_since = keep_since  # results written after this time stay: 0 keeps all, infinity none
        self.workers = max(2, min(8, os.cpu_count() or 2))
        self.settled: deque[Outcome] = deque()
        self.writing: deque[Future[Outcome]] = deque()

    def outcomes(self, files: Sequence[tuple[Path, str]]) -> Iterator[Outcome]:
        """Segment the files; yields each plane's outcome once its results are on disk, with progress and time left."""
        with ThreadPoolExecutor(self.workers, "read") as readers, ThreadPoolExecutor(self.workers, "write") as writers:
            opened = self._opened(files, readers)
            if len(files) > 1:
                groups, total, unit = _by_file(self._pump(opened, readers, writers)), len(files), "images"
            else:  # a single file is most often a stack: followed plane by plane
                only = next(opened)
                groups = ([outcome] for outcome in self._pump(iter([only]), readers, writers))
                total, unit = only.planes, "planes"
            try:
                for group in log.progress(groups, "segmenting", total, unit):
                    yield from group
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)
                raise

    def _opened(self, files: Sequence[tuple[Path, str]], pool: ThreadPoolExecutor) -> Iterator[_Opened]:
        tasks = (partial(self._open, file, stem) for file, stem in files)
        yield from _ahead(pool, tasks, self.workers)

    def _open(self, file: Path, stem: str, now: bool = False) -> _Opened:
        about: dict[str, Any] = {"file": file, "plane": "", "stem": stem}
        if self._skips(stem):
            return _Opened(file, stem, 1, iter(()), Outcome(**about, status="skipped"))
        try:
            if file.stat().st_size > AHEAD_BYTES and not now:
                return _Opened(file, stem, 1, iter(()), deferred=True)
            image = choose_depth(open_image(file, self.options.axes), self.options.z, self.options.channel)
            planes = iter_planes(image, self.options.channel)
            first = next(planes)  # most files hold one: its gray picture is made here, not while the network waits
            return _Opened(file, stem, count_planes(image), chain([first], planes))
        except Exception as error:  # whatever a reader raises on a bad file must not stop the others
            return _Opened(file, stem, 1, iter(()), Outcome(**about, status="failed", reason=_reason(error)))

    def _skips(self, stem: str) -> bool:
        paths = output_paths(self.out, stem, self.formats)
        return self.keep_since < math.inf and all(
            path.exists() and path.stat().st_mtime >= self.keep_since for path in paths
        )

    def _pump(
        self, opened: Iterable[_Opened], readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
    ) -> Iterator[Outcome]:
        prepared = _ahead(readers, self._preparations(opened), self.workers)
        for job, maps in self.segmenter.predict(self._jobs(prepared)):
            self.writing.append(writers.submit(self._finish, job, maps))
            yield from self._collect(2 * self.workers)
        yield from self._collect(0)

    def _preparations(self, opened: Iterable[_Opened]) -> Iterator[Callable[[], Job | _Large | Outcome]]:
        for found in opened:
            # Several large images must not be in memory at a time: they are read when their turn comes.
            entry = self._open(found.file, found.stem, now=True) if found.deferred else found
            if entry.outcome is not None:
                yield partial(_same, entry.outcome)
                continue
            for index in range(entry.planes):
                about: dict[str, Any] = {"file": entry.file, "last": index == entry.planes - 1}
                try:
                    plane = next(entry.images)
                except Exception as error:  # as in _open
                    about |= {"plane": "", "stem": entry.stem, "last": True}
                    yield partial(_same, Outcome(**about, status="failed", reason=_reason(error)))
                    break
                about |= {"plane": plane.name, "stem": f"{entry.stem}_{plane.name}" if plane.name else entry.stem}
                yield partial(self._prepare, plane, about)

    def _prepare(self, plane: Plane, about: dict[str, Any]) -> Job | _Large | Outcome:
        if self._skips(about["stem"]):
            return Outcome(**about, status="skipped")
        if self.segmenter.is_large(plane, self.options):
            return _Large(plane, about)
        try:
            return dataclasses.replace(self.segmenter.prepare(plane, self.options), tag=about)
        except Exception as error:  # as in _open
            return Outcome(**about, status="failed", reason=_reason(error))

    def _jobs(self, prepared: Iterable[Job | _Large | Outcome]) -> Iterator[Job]:
        for entry in prepared:
            if isinstance(entry, Outcome):
                self.settled.append(entry)
            elif isinstance(entry, _Large):
                self.settled.append(self._finish_large(entry))
            else:
                yield entry

    def _finish(self, job: Job, maps: Any) -> Outcome:
        return self._save(job.tag, lambda: self.segmenter.finish(job, maps, self.options))

    def _finish_large(self, entry: _Large) -> Outcome:
        """One large plane, start to end; a killed run leaves a hidden folder that the next one goes on from."""
        log.info(f"{entry.about['file']}: {' × '.join(map(str, entry.plane.size))} px, in bounded memory")
        try:
            scratch = KeptScratch(self.out / f".{entry.about['stem']}.partial", self._key(entry))
        except Exception as error:  # as in _open
            return Outcome(**entry.about, status="failed", reason=_reason(error))
        outcome = self._save(entry.about, lambda: self.segmenter.segment_large(entry.plane, self.options, scratch))
        scratch.close(keep=outcome.status == "failed")  # hours of work are not lost to a full disk
        return outcome

    def _key(self, entry: _Large) -> str:
        """What the cells of a large plane depend on."""
        file: Path = entry.about["file"]
        status = file.stat()
        parts = (file.absolute(), status.st_size, status.st_mtime_ns, entry.plane.name, __version__)
        return " | ".join(map(str, (*parts, self.segmenter.fingerprint(), self.options)))

    def _save(self, about: dict[str, Any], segment: Callable[[], SegmentationResult]) -> Outcome:
        try:
            result = segment()
            save_result(result, self.out, about["stem"], self.formats, str(about["file"].absolute()))
            reason, severity = "; ".join(map(str, result.notes)), severity_of(result.notes)
            return Outcome(**about, status="done", cells=result.count, reason=reason, severity=severity)
        except Exception as error:  # as in _open
            return Outcome(**about, status="failed", reason=_reason(error))

    def _collect(self, allowed: int) -> Iterator[Outcome]:
        """Outcomes that are there; waits while more than `allowed` planes are being decoded and written."""
        while self.settled:
            yield _said(self.settled.popleft())
        while self.writing and (len(self.writing) > allowed or self.writing[0].done()):
            yield _said(self.writing.popleft().result())


def _ahead(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], T]], depth: int) -> Iterator[T]:
    """Results of the tasks in order, `depth` of them running or waiting ahead of the one that is asked for."""
    futures: deque[Future[T]] = deque()
    for task in tasks:
        futures.append(pool.submit(task))
        if len(futures) > depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _same(outcome: Outcome) -> Outcome:
    return outcome


def _by_file(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes in groups that end with the last plane of a file, so that progress counts files."""
    group: list[Outcome] = []
    for outcome in outcomes:
        group.append(outcome)
        if outcome.last:
            yield group
            group = []


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, DinoCellError) else f"{type(error).__name__}: {text}"


def _said(outcome: Outcome) -> Outcome:
    """Report an outcome, then pass it on."""
    if outcome.reason:
        where = f"{outcome.file}{' ' + outcome.plane if outcome.plane else ''}"
        reason = outcome.reason.removeprefix(f"{outcome.file}: ")
        tell(f"{where}: {'failed: ' if outcome.status == 'failed' else ''}{reason}", outcome.severity)
    return outcome


def _summary_csv(summary: RunSummary) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "plane", "stem", "status", "cells", "note"])
    for one in summary.outcomes:
        cells = "" if one.cells is None else one.cells
        writer.writerow([one.file, one.plane, one.stem, one.status, cells, one.reason])
    return text.getvalue().encode()


def _tell(summary: RunSummary, out: Path) -> None:
    done, skipped, failed = (summary.count(status) for status in ("done", "skipped", "failed"))
    rate = f" ({done / summary.seconds:.3g} images/s)" if done and summary.seconds else ""
    kept = f", {skipped} skipped: their results are there" if skipped else ""
    log.info(f"{done} segmented, {summary.cells:,} cells in {log.format_duration(summary.seconds)}{rate}{kept} → {out}")
    if failed:
        log.warning(f"{failed} failed:")
        for outcome in summary.failed:
            log.warning(f"  {outcome.file}: {outcome.reason.removeprefix(f'{outcome.file}: ')}")
