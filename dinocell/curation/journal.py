"""Progress journal: one JSON line per finished file, appended as results arrive, so that an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from dinocell.core.files import atomic_write_text
from dinocell.curation.config import CurateConfig
from dinocell.curation.extract import fingerprint
from dinocell.curation.records import CROPS, SET_ASIDE, STATE, Found, from_record, to_record
from dinocell.curation.sources import Source
from dinocell.curation.thumbnails import ThumbnailReader, ThumbnailWriter


class Journal:
    """Records of one output folder; each job of an array appends to its own files and reads those of all.

    A file that is changed while it is read is processed again by the next run: its record contains its
    stamp from when `unfinished` saw it.
    """

    def __init__(self, config: CurateConfig) -> None:
        self.out = Path(config.out)
        self._state = self.out / STATE
        self._fingerprint = fingerprint(config)
        job = f"{config.shard_index}-of-{config.shard_count}"
        self._path = self._state / f"journal-{job}.jsonl"
        # One file of thumbnails per set of settings: those of the last settings are deleted as a whole.
        self._pictures_path = self._state / f"pictures-{self._fingerprint}-{job}.bin"
        self._lines: dict[str, dict[str, Any]] = {}
        self._stamps: dict[str, list[Any]] = {}
        for file in sorted(self._state.glob("journal-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._lines[entry["key"]] = entry
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            return

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        self._file = self._path.open("a", encoding="utf-8")
        self._pictures = ThumbnailWriter(self._pictures_path)
        if torn:
            self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._pictures.close()

    def add(self, source: Source, found: list[Found]) -> None:
        """Record a finished file."""
        records = [to_record(item, self._pictures.add(item.picture)) for item in found]
        self._pictures.flush()
        entry = {"key": source.key, "stamp": self._stamps[source.key], "found": records}
        self._lines[source.key] = entry
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def unfinished(self, sources: list[Source]) -> list[Source]:
        """Files that no earlier run finished, that changed since, or whose crops are gone."""
        self._stamps = {source.key: stamp(source, self._fingerprint) for source in sources}
        return [source for source in sources if not self._is_done(source)]

    def _is_done(self, source: Source) -> bool:
        entry = self._lines.get(source.key)
        if entry is None or entry["stamp"] != self._stamps[source.key]:
            return False
        crops = [item["row"]["crop"] for item in entry["found"]]
        return all(any(path.is_file() for path in places(self.out, crop)) for crop in crops if crop)

    def found(self, source: Source) -> list[Found]:
        """Results of a file, from this run or an earlier one."""
        entry = self._lines.get(source.key)
        return from_record(entry["found"]) if entry else []

    def pictures(self) -> ThumbnailReader:
        """Reader of the contact sheet's images."""
        return ThumbnailReader(self._state)

    def crops_of_others(self, is_current: Callable[[str], bool]) -> list[str]:
        """Crops that earlier runs wrote for files that are no longer among the sources, or no longer give them."""
        listed = {item["row"]["crop"] for entry in self._lines.values() for item in entry["found"]}
        return sorted(crop for crop in listed if crop and not is_current(crop))

    def compact(self, sources: list[Source]) -> None:
        """Rewrite the journal with the newest line of each source only; not while other jobs of an array write."""
        kept = [self._lines[source.key] for source in sources if source.key in self._lines]
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
        atomic_write_text(self._path, text)
        for file in self._state.glob("journal-*.jsonl"):
            if file != self._path:
                file.unlink()
        used = {item["sheet"].partition(":")[0] for entry in kept for item in entry["found"]}
        for file in self._state.glob("pictures-*.bin"):
            if file.name not in used:
                file.unlink()


def places(out: Path, crop: str) -> tuple[Path, Path]:
    """Paths of a crop when kept, and when set aside."""
    return out / crop, out / SET_ASIDE / crop.removeprefix(f"{CROPS}/")


def stamp(source: Source, config: str) -> list[Any]:
    """Changes whenever a file, its place in the run or the config does."""
    path = os.path.abspath(source.path)  # noqa: PTH100  # pathlib takes several times as long for millions of files
    try:
        status = os.stat(path)  # noqa: PTH116
        return [source.dataset, path, status.st_size, status.st_mtime_ns, config]
    except OSError:
        return [source.dataset, path, -1, -1, config]
