"""The curation run: extract every file in parallel, then judge duplicates in order, then write the tables."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dinocell.core import log
from dinocell.core.cpu import usable_cores
from dinocell.core.errors import ConfigError, DataError
from dinocell.curation.config import CurateConfig
from dinocell.curation.contact_sheet import write_contact_sheet
from dinocell.curation.duplicates import DuplicateIndex, appearance, thumbnail_from_text
from dinocell.curation.extract import extract_source
from dinocell.curation.journal import Journal, places
from dinocell.curation.manifest import Row, write_rows
from dinocell.curation.records import CROPS, SET_ASIDE, Found
from dinocell.curation.sources import Source, find_sources

EXCLUDE = "exclude.txt"


def run(config: CurateConfig) -> None:
    """Curate: OUT/crops, manifest.csv, rejected.csv, contact_sheet.html; a second call does only what is missing.

    A job of an array (`shard_count` above 1) extracts its share of the files; the tables are written by a last run
    with `merge`, which reads no images. The result is that of a single process.

    Raises:
        ConfigError: no images, or an output folder that cannot be made.
        DataError: `merge`, and a shard is not done.
    """
    start = time.monotonic()
    sources = find_sources(config)
    out = Path(config.out)
    try:
        (out / CROPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be made: {error.strerror}") from error
    mine = sources[config.shard_index :: config.shard_count]
    journal = Journal(config)
    todo = journal.unfinished(mine)
    if config.merge:
        _refuse_unfinished(todo, len(mine), out)
    elif len(todo) < len(mine):
        log.info(f"{len(mine) - len(todo)} of {len(mine)} files were finished by an earlier run")
    with journal:
        for source, found in log.progress(_extract_all(todo, config), "curate", total=len(todo), unit="files"):
            journal.add(source, found)
    if config.shard_count > 1:
        log.info(f"shard {config.shard_index} of {config.shard_count} is done; curate … --merge joins them")
        return
    results = [(source, journal.found(source)) for source in sources]
    final = judge(results, config, read_exclude(out))
    _settle(final, journal, out)
    kept = [item.row for item in final if item.row.status == "kept"]
    rejected = [item.row for item in final if item.row.status != "kept"]
    write_rows(out / "manifest.csv", kept)
    write_rows(out / "rejected.csv", rejected)
    with journal.pictures() as pictures:
        write_contact_sheet(out, final, pictures, config.sheet_limit)
    journal.compact(sources)
    _tell(kept, rejected, len(sources), out, time.monotonic() - start)


def shards(config: CurateConfig, count: int) -> list[CurateConfig]:
    """Split a run into the configs of an array's jobs, to run in any order on machines that see the same files.

    When all are done, `merge` joins them.
    """
    return [replace(config, shard_index=index, shard_count=count, merge=False) for index in range(count)]


def merge(config: CurateConfig) -> None:
    """Join the results of the `shards` of a config; errors as `run`."""
    run(replace(config, shard_index=0, shard_count=1, merge=True))


def _refuse_unfinished(todo: list[Source], total: int, out: Path) -> None:
    if todo:
        raise DataError(
            f"{out}: {len(todo)} of {total} files are unfinished, first {todo[0].path}: run the unfinished shards "
            "again with the same settings, or leave out merge to process them here"
        )


def read_exclude(out: Path) -> set[str]:
    """Read the crops ticked on a contact sheet: lines of exclude.txt and exclude-*.txt, # starts a comment."""
    files = [out / EXCLUDE, *sorted(out.glob("exclude-*.txt"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line.removeprefix("./") for line in lines if line}


def judge(results: list[tuple[Source, list[Found]]], config: CurateConfig, excluded: set[str]) -> list[Found]:
    """Apply the rules that need the whole run: exclude.txt and duplicates. The first of equals, in order, is kept."""
    unknown = excluded - {item.row.crop for _, found in results for item in found}
    if unknown:
        log.warning(f"{EXCLUDE}: {len(unknown)} line(s) name no crop of this run, first {min(unknown)!r}")
    index = DuplicateIndex(config.filters.max_hash_distance, config.filters.min_correlation)
    files: dict[str, str] = {}
    final = []
    for source, found in results:
        original = files.setdefault(found[0].row.source_sha256, source.path) if found else source.path
        for item in found:
            if item.row.status != "kept":
                final.append(item)
                continue
            verdict: tuple[str, str] | None = None
            if config.filters.duplicates and original != source.path:
                verdict = "exact duplicate", original
            elif config.filters.duplicates:
                picture = appearance(thumbnail_from_text(item.small))
                earlier = index.find(picture)
                if earlier is None:
                    index.add(item.row.crop, picture)
                else:
                    equal = _bytes_of(item.row.crop, config) == _bytes_of(earlier, config)
                    verdict = ("exact" if equal else "near") + " duplicate", earlier
            if item.row.crop in excluded:
                verdict = "excluded by hand", ""
            final.append(item if verdict is None else _rejected(item, *verdict))
    return final


def _bytes_of(crop: str, config: CurateConfig) -> bytes:
    """Read the PNG of a crop, kept or set aside: equal bytes are equal pixels."""
    kept, aside = places(Path(config.out), crop)
    return (kept if kept.is_file() else aside).read_bytes()


def _rejected(item: Found, reason: str, of: str) -> Found:
    detail = f"same as {of}" if of else f"listed in {EXCLUDE}"
    return replace(item, row=replace(item.row, status="rejected", reason=reason, detail=detail, duplicate_of=of))


def _settle(final: list[Found], journal: Journal, out: Path) -> None:
    """Move every crop to the folder of its status; only half-written files are ever deleted."""
    statuses = {item.row.crop: item.row.status for item in final if item.row.crop}
    present, put_aside = _files_in(out / CROPS), _files_in(out / SET_ASIDE)
    for crop, status in statuses.items():
        name = crop.removeprefix(f"{CROPS}/")
        if status != "kept" and name in present:  # the newer one, if it is in both places
            _move(*places(out, crop))
        elif status == "kept" and name in put_aside:
            kept, aside = places(out, crop)
            aside.unlink() if name in present else _move(aside, kept)
    stale = journal.crops_of_others(lambda crop: crop in statuses)
    moved = [crop for crop in stale if crop.removeprefix(f"{CROPS}/") in present]
    for crop in moved:
        _move(*places(out, crop))
    if moved:
        log.warning(f"{len(moved)} crops of earlier runs are not part of this one: moved to {out / SET_ASIDE}")
    for name in present:
        if name.endswith(".tmp"):
            (out / CROPS / name).unlink(missing_ok=True)


def _files_in(folder: Path) -> set[str]:
    """Paths of all files below a folder, with slashes."""
    found: set[str] = set()
    for root, _, files in os.walk(folder):
        below = root[len(str(folder)) + 1 :].replace(os.sep, "/")
        found.update(f"{below}/{name}" if below else name for name in files)
    return found


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _tell(kept: list[Row], rejected: list[Row], files: int, out: Path, seconds: float) -> None:
    with_crops = len({row.source for row in kept})
    log.info(f"{len(kept)} crops of {with_crops} of {files} files in {log.format_duration(seconds)}: {out / CROPS}")
    reasons = Counter(row.reason for row in rejected)
    if reasons:
        log.info("rejected: " + ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()))
    log.info(f"look at {out / 'contact_sheet.html'}: ticked crops go to {EXCLUDE}, which the next run honours")


def _extract_all(todo: list[Source], config: CurateConfig) -> Iterator[tuple[Source, list[Found]]]:
    """Results in the order in which they are ready."""
    workers = min(config.workers or usable_cores(), len(todo))
    if workers <= 1:
        for source in todo:
            yield source, extract_source(source, config)
        return
    waiting = list(reversed(todo))
    while waiting:
        suspects = yield from _pool(waiting, config, workers)
        for source in suspects:  # one of them took its process down: each gets its own process
            yield source, _alone(source, config)


def _pool(
    waiting: list[Source], config: CurateConfig, workers: int
) -> Generator[tuple[Source, list[Found]], None, list[Source]]:
    """Process `waiting` from its end; after a crash, return the files that were in progress."""
    with _executor(workers) as pool:
        running: dict[Future[list[Found]], Source] = {}
        try:
            while waiting or running:
                while waiting and len(running) < 2 * workers:
                    source = waiting.pop()
                    with _interrupts_held():
                        running[pool.submit(extract_source, source, config)] = source
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    found = future.result()
                    yield running.pop(future), found
        except BrokenProcessPool:
            return list(running.values())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # the images in progress finish first
            raise
    return []


def _alone(source: Source, config: CurateConfig) -> list[Found]:
    with _executor(1) as pool:
        try:
            return pool.submit(extract_source, source, config).result()
        except BrokenProcessPool:
            _check_workers()
            row = Row(source=source.path, dataset=source.dataset, status="rejected", reason="unreadable")
            return [
                Found(row=replace(row, detail="reading it killed the process: damaged, or too large for the memory"))
            ]


def _check_workers() -> None:
    """Distinguish an image that kills its process from processes that cannot start at all.

    Raises:
        DataError: they cannot start.
    """
    with _executor(1) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool as error:
            raise DataError(
                "curate: worker processes cannot start; a script that calls it must be a file and contain "
                'if __name__ == "__main__":, or set workers=1'
            ) from error


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits a moment: workers started meanwhile inherit the block, so that only the parent answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _executor(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # forking a process with threads can hang
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on systems without a signal mask to inherit
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: one killed with -9 cannot stop its workers itself."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
