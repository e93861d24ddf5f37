"""What is already done: one JSON line a finished file, appended as results arrive, so that a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from dinocell.curation.config import CurateConfig
from dinocell.curation.extract import CROPS, SET_ASIDE, STATE, Found, fingerprint, from_record, to_record
from dinocell.curation.sources import Source
from dinocell.data.files import atomic_write_text


class Journal:
    """Records of one output folder; each job of an array appends to a file of its own and reads all of them."""

    def __init__(self, config: CurateConfig) -> None:
        self.out = Path(config.out)
        self.fingerprint = fingerprint(config)
        self._path = self.out / STATE / f"journal-{config.shard_index}-of-{config.shard_count}.jsonl"
        self._lines: dict[str, dict[str, Any]] = {}
        for file in sorted((self.out / STATE).glob("journal-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                self._take(line)

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._lines[entry["key"]] = entry
        except (ValueError, KeyError, TypeError):  # the line that a kill cut short
            return

    def __enter__(self) -> Journal:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        self._file = self._path.open("a", encoding="utf-8")
        if torn:
            self._file.write("\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, source: Source, found: list[Found]) -> None:
        """Remember a finished file."""
        entry = {"key": source.key, "stamp": stamp(source, self.fingerprint), "found": to_record(found)}
        self._lines[source.key] = entry
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def finished(self, source: Source) -> list[Found] | None:
        """What a file gave in an earlier run, if file and config are unchanged and its crops are still there."""
        entry = self._lines.get(source.key)
        if entry is None or entry["stamp"] != stamp(source, self.fingerprint):
            return None
        found = from_record(entry["found"])
        return found if all(self._present(item) for item in found) else None

    def _present(self, item: Found) -> bool:
        return not item.row.crop or any(path.is_file() for path in places(self.out, item.row.crop))

    def crops_of_others(self, is_current: Callable[[str], bool]) -> list[str]:
        """Crops that earlier runs wrote for files that are no longer among the sources, or no longer give them."""
        listed = {item["row"]["crop"] for entry in self._lines.values() for item in entry["found"]}
        return sorted(crop for crop in listed if crop and not is_current(crop))

    def compact(self, sources: list[Source]) -> None:
        """Rewrite the journal with the newest line of each source only; not while other jobs of an array write."""
        kept = [self._lines[source.key] for source in sources if source.key in self._lines]
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
        atomic_write_text(self._path, text)
        for file in (self.out / STATE).glob("journal-*.jsonl"):
            if file != self._path:
                file.unlink()


def places(out: Path, crop: str) -> tuple[Path, Path]:
    """Where a crop lies when kept, and when set aside."""
    return out / crop, out / SET_ASIDE / crop.removeprefix(f"{CROPS}/")


def stamp(source: Source, config: str) -> list[Any]:
    """Changes whenever a file, its place in the run or the config does."""
    try:
        status = Path(source.path).stat()
        return [source.dataset, str(Path(source.path).resolve()), status.st_size, status.st_mtime_ns, config]
    except OSError:
        return [source.dataset, str(Path(source.path).resolve()), -1, -1, config]
