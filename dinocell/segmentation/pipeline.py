"""Pipeline of a folder run: reading, network, decoding and writing overlap, and one bad image stops nothing.

    files ── open ──▶ planes ── prepare ──▶ jobs ── predict ──▶ maps ── finish ──▶ outcomes
          (readers)           (readers)         (this thread)        (writers)

Each stage works a few planes ahead of the next. A plane that is skipped or fails leaves the line as an `Outcome`; a
large one is segmented alone, in its turn, by the thread that runs the network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from dinocell import __version__
from dinocell.core import log
from dinocell.core.cpu import usable_cores
from dinocell.images.depth import choose_depth
from dinocell.images.planes import Plane, count_planes, iter_planes, open_image
from dinocell.predict.large.work_folder import KeptScratch
from dinocell.segmentation.options import SegmentOptions
from dinocell.segmentation.outputs.format import Format
from dinocell.segmentation.outputs.save import output_paths, save_result
from dinocell.segmentation.result import SegmentationResult
from dinocell.segmentation.segmenter import Job, Prepared, Segmenter
from dinocell.segmentation.summary import Outcome, Target

AHEAD_BYTES = 2**28
"""Files above are read when their turn comes: several large images must not be in memory at a time."""

Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True, kw_only=True)
class _File:
    """An opened file, its planes still to be read."""

    target: Target
    count: int
    planes: Iterator[Plane]


@dataclass(frozen=True, kw_only=True)
class _Unopened:
    """A file too large to be opened ahead."""

    target: Target


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """A plane to prepare, or a large one to segment alone."""

    target: Target
    plane: Plane


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A plane that the network can take."""

    target: Target
    prepared: Prepared


class Pipeline:
    """The stages of one run.

    Args:
        segmenter: the model.
        out: folder of the results.
        formats: what is written there.
        options: reading and decoding options.
        keep_since: results written after this time (seconds since 1970) stay: 0 keeps all, infinity none.
    """

    def __init__(
        self, segmenter: Segmenter, out: Path, formats: Sequence[Format], options: SegmentOptions, keep_since: float
    ) -> None:
        self.segmenter, self.out, self.formats, self.options = segmenter, out, formats, options
        self.keep_since = keep_since
        self.workers = max(2, min(8, usable_cores()))
        self.in_network: deque[Target] = deque()
        self.writing: deque[Future[Outcome]] = deque()
        self.settled: deque[Outcome] = deque()

    def outcomes(self, files: Sequence[Target]) -> Iterator[Outcome]:
        """Segment the files; yields each plane's outcome once its results are on disk, with progress and time left."""
        if not files:
            return
        with ThreadPoolExecutor(self.workers, "read") as readers, ThreadPoolExecutor(self.workers, "write") as writers:
            opened = _ahead(readers, self._open, files, self.workers)
            if len(files) > 1:
                groups, total, unit = _by_file(self._flow(opened, readers, writers)), len(files), "images"
            else:  # a single file is most often a stack: followed plane by plane
                only = next(opened)
                groups = ([outcome] for outcome in self._flow([only], readers, writers))
                total, unit = only.count if isinstance(only, _File) else 1, "planes"
            try:
                for group in log.progress(groups, "segmenting", total, unit):
                    yield from group
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)
                writers.shutdown(wait=False, cancel_futures=True)
                raise

    def _flow(
        self, opened: Iterable[_File | _Unopened | Outcome], readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
    ) -> Iterator[Outcome]:
        """Prepare, predict and finish; yields outcomes as they come."""
        entries = _ahead(readers, self._prepare, self._planes(opened), self.workers)
        for job, maps in self.segmenter.predict(self._for_network(entries)):  # in the order given
            self.writing.append(writers.submit(self._finish, self.in_network.popleft(), job, maps))
            yield from self._collect(2 * self.workers)
        yield from self._collect(0)

    def _open(self, target: Target) -> _File | _Unopened | Outcome:
        """Open a file ahead of its turn, unless it is large."""
        if self._is_kept(target):
            return target.skipped()
        try:
            large = target.file.stat().st_size > AHEAD_BYTES
        except OSError as error:
            return target.failed(error)
        return _Unopened(target=target) if large else self._read(target)

    def _read(self, target: Target) -> _File | Outcome:
        channel = self.options.channel
        try:
            image = choose_depth(open_image(target.file, self.options.axes), self.options.z, channel)
            planes = iter_planes(image, channel)
            first = next(planes)  # most files contain one: its gray plane is made here, not while the network waits
            return _File(target=target, count=count_planes(image), planes=chain([first], planes))
        except Exception as error:  # whatever a reader raises on a bad file must not stop the others
            return target.failed(error)

    def _planes(self, opened: Iterable[_File | _Unopened | Outcome]) -> Iterator[_Plane | Outcome]:
        """The planes of all files, in order."""
        for entry in opened:
            file = self._read(entry.target) if isinstance(entry, _Unopened) else entry
            if isinstance(file, Outcome):
                yield file
            else:
                yield from _planes_of(file)

    def _prepare(self, entry: _Plane | Outcome) -> _Ready | _Plane | Outcome:
        """Preprocess a plane for the network; a large one stays as it is."""
        if isinstance(entry, Outcome):
            return entry
        if self._is_kept(entry.target):
            return entry.target.skipped()
        if self.segmenter.is_large(entry.plane, self.options):
            return entry
        try:
            return _Ready(target=entry.target, prepared=self.segmenter.prepare(entry.plane, self.options))
        except Exception as error:  # as in _read
            return entry.target.failed(error)

    def _for_network(self, entries: Iterable[_Ready | _Plane | Outcome]) -> Iterator[Prepared]:
        """Hand planes to the network; everything else is settled here, in its turn."""
        for entry in entries:
            match entry:
                case Outcome():
                    self.settled.append(entry)
                case _Plane():
                    self.settled.append(self._segment_large(entry))
                case _Ready():
                    self.in_network.append(entry.target)
                    yield entry.prepared

    def _finish(self, target: Target, job: Job, maps: NDArray[Any] | None) -> Outcome:
        return self._save(target, lambda: self.segmenter.finish(job, maps, self.options))

    def _segment_large(self, entry: _Plane) -> Outcome:
        """Segment one large plane; an interrupted run leaves a hidden folder, and the next run resumes from it."""
        log.info(f"{entry.target.file}: {' × '.join(map(str, entry.plane.size))} px, in bounded memory")
        try:
            scratch = KeptScratch(self.out / f".{entry.target.stem}.partial", self._key(entry))
        except Exception as error:  # as in _read
            return entry.target.failed(error)
        outcome = self._save(entry.target, lambda: self.segmenter.segment_large(entry.plane, self.options, scratch))
        scratch.close(keep=outcome.status == "failed")  # hours of work are not lost to a full disk
        return outcome

    def _key(self, entry: _Plane) -> str:
        """Everything that the cells of a large plane depend on."""
        file = entry.target.file
        status = file.stat()
        parts = (file.absolute(), status.st_size, status.st_mtime_ns, entry.plane.name, __version__)
        return " | ".join(map(str, (*parts, self.segmenter.fingerprint(), self.options)))

    def _save(self, target: Target, segment: Callable[[], SegmentationResult]) -> Outcome:
        try:
            result = segment()
            save_result(result, self.out, target.stem, self.formats, str(target.file.absolute()))
            return target.done(result)
        except Exception as error:  # as in _read
            return target.failed(error)

    def _is_kept(self, target: Target) -> bool:
        """Report whether all results of a plane are there and recent enough to stay."""
        paths = output_paths(self.out, target.stem, self.formats)
        return all(path.exists() and path.stat().st_mtime >= self.keep_since for path in paths)

    def _collect(self, allowed: int) -> Iterator[Outcome]:
        """Report the outcomes that are there; waits while more than `allowed` planes are decoded and written."""
        while self.settled:
            yield _told(self.settled.popleft())
        while self.writing and (len(self.writing) > allowed or self.writing[0].done()):
            yield _told(self.writing.popleft().result())


def _told(outcome: Outcome) -> Outcome:
    outcome.tell()
    return outcome


def _planes_of(file: _File) -> Iterator[_Plane | Outcome]:
    """The planes of one file; where one cannot be read, that is the outcome of all that are left."""
    for index in range(file.count):
        try:
            plane = next(file.planes)
        except Exception as error:  # as in Pipeline._read
            yield file.target.failed(error)
            return
        yield _Plane(target=file.target.of_plane(plane.name, last=index == file.count - 1), plane=plane)


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Done], items: Iterable[Item], depth: int
) -> Iterator[Done]:
    """Apply a function to items in other threads, in order, `depth` results ahead of the one that is asked for."""
    futures: deque[Future[Done]] = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > depth:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _by_file(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Group outcomes up to the last plane of each file, so that progress counts files."""
    group: list[Outcome] = []
    for outcome in outcomes:
        group.append(outcome)
        if outcome.target.last:
            yield group
            group = []
