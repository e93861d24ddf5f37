"""The run: everything is accounted for, and neither workers nor kills change the result."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from dinocell.cli.train.curate import parse
from dinocell.core.errors import ConfigError, DataError
from dinocell.curation import CurateConfig, FilterConfig, best_crop, merge, run, shards
from dinocell.curation import curate as curate_module
from dinocell.curation.manifest import COLUMNS, read_rows

CONTRACT = ["crop", "source", "source_sha256", "dataset", "modality", "channel", "y", "x", "height", "width"]
CONTRACT += ["laplacian_variance", "status"]
ROOT = Path(__file__).parents[2]


def cells(seed: int, shape: tuple[int, int] = (150, 180)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full(shape, 30, np.float32)
    for _ in range(40):
        centre = int(rng.integers(shape[1])), int(rng.integers(shape[0]))
        cv2.circle(image, centre, int(rng.integers(4, 12)), float(rng.integers(80, 200)), -1)
    return cv2.GaussianBlur(image, (0, 0), 1) + rng.normal(0, 2, shape).astype(np.float32)


def to8(image: np.ndarray) -> np.ndarray:
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def pile(tmp_path: Path) -> Path:
    """A folder as a laboratory might hand it over."""
    root = tmp_path / "pile"
    for folder in ("phase", "dyes", "odd"):
        (root / folder).mkdir(parents=True)
    for number in range(4):
        cv2.imwrite(str(root / "phase" / f"im {number}.png"), to8(cells(number)))
    tifffile.imwrite(root / "phase" / "im 0.tif", (cells(9) * 50).astype(np.uint16))
    stack = np.stack([cells(20), cells(21)]).astype(np.uint16) * 9
    tifffile.imwrite(root / "dyes" / "two.ome.tif", stack, metadata={"axes": "CYX"}, ome=True)
    tifffile.imwrite(root / "dyes" / "float.tif", cells(30) - 100)
    (root / "odd" / "copy.png").write_bytes((root / "phase" / "im 1.png").read_bytes())
    cv2.imwrite(str(root / "odd" / "recompressed.jpg"), to8(cells(2)))
    (root / "odd" / "broken.png").write_bytes((root / "phase" / "im 1.png").read_bytes()[:900])
    cv2.imwrite(str(root / "odd" / "black.png"), np.zeros((100, 100), np.uint8))
    cv2.imwrite(str(root / "odd" / "icon.png"), to8(cells(5))[:20, :20])
    return root


def contents(out: Path) -> dict[str, bytes]:
    names = [path for path in out.rglob("*") if path.is_file() and ".curation" not in path.parts]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(names)}


def curate(pile: Path, out: Path, **settings: object) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    run(CurateConfig(**{"sources": (str(pile),), "out": str(out), "size": 128, "workers": 1, **settings}))  # type: ignore[arg-type]
    return read_rows(out / "manifest.csv"), read_rows(out / "rejected.csv")


def kill_after(command: list[str], environment: dict[str, str], out: Path, crops: int) -> None:
    """Run a command and end it with kill -9 once it has written that many crops."""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list((out / "crops").rglob("*.png"))) < crops and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def test_every_file_is_kept_or_rejected_with_a_reason(pile: Path, tmp_path: Path) -> None:
    kept, rejected = curate(pile, tmp_path / "out")
    assert list(COLUMNS[: len(CONTRACT)]) == CONTRACT
    assert {Path(row["source"]) for row in kept + rejected} == {path for path in pile.rglob("*") if path.is_file()}
    assert {row["status"] for row in kept} == {"kept"}
    assert {Path(row["source"]).name: row["reason"] for row in rejected} == {
        "broken.png": "unreadable",
        "black.png": "constant",
        "icon.png": "too small",
        "im 1.png": "exact duplicate",  # the first in the order of paths is the one that stays
        "im 2.png": "near duplicate",
    }
    originals = {Path(row["source"]).name: Path(row["duplicate_of"]).name for row in rejected if row["duplicate_of"]}
    assert originals == {"im 1.png": "copy.png", "im 2.png": "recompressed__gray.png"}
    assert {row["channel"] for row in kept if row["source"].endswith("two.ome.tif")} == {"c0", "c1", "combined"}


def test_crops_can_be_made_again_from_the_manifest(pile: Path, tmp_path: Path) -> None:
    kept, _ = curate(pile, tmp_path / "out")
    crops = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "crops").rglob("*.png")}
    assert crops == {row["crop"] for row in kept}
    for row in kept:
        crop = cv2.imread(str(tmp_path / "out" / row["crop"]), cv2.IMREAD_UNCHANGED)
        assert (crop.dtype, crop.shape) == (np.uint8, (int(row["height"]), int(row["width"])))
        if row["channel"] == "gray":
            plane = cv2.imread(row["source"], cv2.IMREAD_UNCHANGED).astype(np.float64)
            scaled = (plane - float(row["low"])) * 255 / (float(row["high"]) - float(row["low"]))
            whole = np.floor(scaled + 0.5).clip(0, 255).astype(np.uint8)
            y, x, variance = best_crop(whole, 128)
            assert (y, x) == (int(row["y"]), int(row["x"]))
            assert variance == pytest.approx(float(row["laplacian_variance"]), rel=0.01)
            part = whole[y : y + 128, x : x + 128].astype(int)
            assert np.abs(part - crop).max() <= 1


def test_workers_do_not_change_the_result(pile: Path, tmp_path: Path) -> None:
    curate(pile, tmp_path / "one", workers=1)
    curate(pile, tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_run_goes_on(pile: Path, tmp_path: Path) -> None:
    for number in range(60):
        cv2.imwrite(str(pile / "phase" / f"more{number}.png"), to8(cells(100 + number, (400, 400))))
    command = [sys.executable, "data_curation/curate.py", str(pile), "--out", str(tmp_path / "out"), "--size", "128"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kill_after([*command, "--workers", "1"], environment, tmp_path / "out", 10)
    done = len((tmp_path / "out/.curation/journal-0-of-1.jsonl").read_text().splitlines())
    assert not (tmp_path / "out" / "manifest.csv").exists() and done >= 5
    with (tmp_path / "out/.curation/journal-0-of-1.jsonl").open("a") as journal:
        journal.write('{"key": "phase/torn", "sta')  # what a kill in mid-write leaves
    curate(pile, tmp_path / "out")
    curate(pile, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_second_run_reads_nothing_again(pile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curate(pile, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(curate_module, "extract_source", lambda *_: pytest.fail("read again"))
    curate(pile, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_changed_files_and_settings_are_done_again(pile: Path, tmp_path: Path) -> None:
    curate(pile, tmp_path / "out")
    cv2.imwrite(str(pile / "phase" / "im 3.png"), to8(cells(77)))
    curate(pile, tmp_path / "out")
    curate(pile, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    kept, _ = curate(pile, tmp_path / "out", size=64)
    assert {row["height"] for row in kept} == {"64"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_merge_to_the_same_result(pile: Path, tmp_path: Path, count: int) -> None:
    config = CurateConfig(sources=(str(pile),), out=str(tmp_path / "out"), size=128, workers=1)
    for shard in reversed(shards(config, count)):
        run(shard)
        assert count == 1 or not (tmp_path / "out" / "manifest.csv").exists()
    merge(config)
    _, rejected = curate(pile, tmp_path / "fresh")
    assert {"exact duplicate", "near duplicate"} <= {row["reason"] for row in rejected}  # of files in other shards too
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_killed_shard_is_missed_by_the_merge_and_goes_on(pile: Path, tmp_path: Path) -> None:
    for number in range(40):
        cv2.imwrite(str(pile / "phase" / f"more{number}.png"), to8(cells(100 + number, (400, 400))))
    command = [sys.executable, "-m", "dinocell", "curate", str(pile), "--out", str(tmp_path / "out"), "--size", "128"]
    command += ["--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kill_after([*command, "shard_index=1", "shard_count=2"], environment, tmp_path / "out", 5)
    config = CurateConfig(sources=(str(pile),), out=str(tmp_path / "out"), size=128, workers=1)
    first, second = shards(config, 2)
    run(first)
    with pytest.raises(DataError, match=r"files are unfinished, first .*run the unfinished shards again"):
        merge(config)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    run(second)
    merge(config)
    curate(pile, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_more_shards_than_files(pile: Path, tmp_path: Path) -> None:
    source = pile / "phase" / "im 1.png"
    config = CurateConfig(sources=(str(source),), out=str(tmp_path / "out"), size=128, workers=1)
    for shard in shards(config, 3):
        run(shard)
    merge(config)
    assert [row["source"] for row in read_rows(tmp_path / "out" / "manifest.csv")] == [str(source)]
    with pytest.raises(ConfigError, match="leave out shard_count=3"):
        CurateConfig(sources=("a",), out="o", shard_count=3, merge=True)


def test_ticked_crops_leave_and_come_back(pile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept, _ = curate(pile, out)
    before = contents(out)
    page = (out / "contact_sheet.html").read_text()
    crop = kept[0]["crop"]
    assert f'data-crop="{crop}"' in page
    (out / "exclude.txt").write_text(f"# blurred\n{crop}\n")
    kept, rejected = curate(pile, out)
    assert crop not in {row["crop"] for row in kept} and not (out / crop).exists()
    assert [row["reason"] for row in rejected if row["crop"] == crop] == ["excluded by hand"]
    assert f'data-crop="{crop}" checked' in (out / "contact_sheet.html").read_text()
    (out / "exclude.txt").unlink()
    curate(pile, out)
    assert contents(out) == before


def test_pages_of_a_large_sheet_have_ticks_of_their_own(pile: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kept, _ = curate(pile, out, sheet_limit=3)
    pages = [file.read_text() for file in sorted((out / "contact_sheets").glob("*.html"))]
    names = [re.findall(r'link.download = "(exclude-\w+.txt)"', page)[0] for page in pages]
    assert names == ["exclude-dyes.txt", "exclude-odd.txt", "exclude-phase.txt"]
    ticked = [next(row["crop"] for row in kept if row["dataset"] == dataset) for dataset in ("dyes", "phase")]
    for crop in ticked:
        (out / f"exclude-{crop.split('/')[1]}.txt").write_text(f"{crop}\n")
    _, rejected = curate(pile, out, sheet_limit=3)
    assert {row["crop"] for row in rejected if row["reason"] == "excluded by hand"} == set(ticked)


def test_the_contact_sheet_needs_no_other_file_for_its_pictures(pile: Path, tmp_path: Path) -> None:
    kept, rejected = curate(pile, tmp_path / "out")
    page = (tmp_path / "out" / "contact_sheet.html").read_text()
    assert page.count("<figure") == len(kept) + len(rejected)
    assert not re.findall(r'<(?:img|script|link)[^>]+(?:src|href)="(?!data:)', page)
    curate(pile, tmp_path / "out", sheet_limit=3)
    pages = sorted((tmp_path / "out" / "contact_sheets").glob("*.html"))
    assert sum(file.read_text().count("<figure") for file in pages) == len(kept) + len(rejected)


def test_small_images_are_kept_whole(pile: Path, tmp_path: Path) -> None:
    kept, _ = curate(pile, tmp_path / "out", size=1024)
    assert {(row["height"], row["width"]) for row in kept} == {("150", "180")}


def test_crop_names_are_unique_and_plain(pile: Path, tmp_path: Path) -> None:
    kept, _ = curate(pile, tmp_path / "out")
    names = [row["crop"] for row in kept]
    assert len({name.lower() for name in names}) == len(names)
    assert sum("im_0" in name for name in names) == 2  # im 0.png and im 0.tif
    assert all(re.fullmatch(r"crops/[\w./-]+\.png", name) for name in names)


def test_axes_can_be_given(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.stack([cells(seed) for seed in range(5)]))
    kept, _ = curate(tmp_path / "a.npy", tmp_path / "out", axes="CYX")
    assert [row["channel"] for row in kept] == ["c0", "c1", "c2", "c3", "c4", "combined"]
    assert {(row["axes"], row["axes_source"]) for row in kept} == {("CYX", "given")}


def test_modality_follows_the_stated_rules(tmp_path: Path) -> None:
    dark, bright = cells(1).clip(0, 255), 255 - cells(2).clip(0, 255) / 4
    for name, channels in (("named", {"Channel": {"Name": ["GFP", "Phase"]}}), ("plain", {})):
        stack = np.stack([dark, cells(3)]).clip(0, 255).astype(np.uint8)
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", stack, metadata={"axes": "CYX", **channels}, ome=True)
    cv2.imwrite(str(tmp_path / "dark.png"), to8(dark))
    cv2.imwrite(str(tmp_path / "bright.png"), to8(bright))
    stained = np.stack([bright, bright - 15, bright - 40], -1)
    cv2.imwrite(str(tmp_path / "stain.png"), to8(stained))
    kept, _ = curate(tmp_path, tmp_path / "out", filters=FilterConfig(duplicates=False))
    found = {f"{Path(row['source']).name.split('.')[0]} {row['channel']}": row["modality"] for row in kept}
    assert found == {
        "named c0": "fluorescence",
        "named c1": "transmitted",
        "named combined": "fluorescence",
        "dark gray": "fluorescence",
        "bright gray": "transmitted",
        "stain luma": "transmitted",
    } | {key: "fluorescence" for key in found if key.startswith("plain")}
    given, _ = curate(tmp_path / "dark.png", tmp_path / "given", modality="phase")
    assert [row["modality"] for row in given] == ["phase"]


def test_what_came_before_a_broken_part_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "src" / "two.ome.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(to8(cells(1)), compression="zlib")
        writer.write(to8(cells(2)), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[1].dataoffsets[0]  # type: ignore[union-attr]
    data = bytearray(path.read_bytes())
    data[offset : offset + 200] = bytes(200)
    path.write_bytes(bytes(data))
    kept, rejected = curate(path.parent, tmp_path / "out")
    assert [row["channel"] for row in kept] == ["s0_gray"]
    assert [row["reason"] for row in rejected] == ["unreadable"]
    written = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out" / "crops").rglob("*.png")}
    assert written == {row["crop"] for row in kept}


def test_command_line() -> None:
    config = parse(["a", "--out", "o", "--size=256", "--workers", "3", "filters.min_side=9", "t_step=2", "--merge"])
    assert (config.sources, config.out, config.size, config.workers) == (("a",), "o", 256, 3)
    assert (config.filters.min_side, config.t_step, config.merge) == (9, 2, True)
    with pytest.raises(ConfigError, match="SRC"):
        parse(["--out", "o"])
    with pytest.raises(ConfigError, match=r"did you mean 'size'"):
        parse(["a", "--out", "o", "sise=3"])
    with pytest.raises(ConfigError, match="no such file"):
        run(parse(["nowhere", "--out", "o"]))


@pytest.mark.skipif("DINOCELL_REAL_DATA" not in os.environ, reason="needs the real images")
def test_all_real_images_are_accounted_for(tmp_path: Path) -> None:
    source = Path(os.environ["DINOCELL_REAL_DATA"]) / "unlabelled"
    run(CurateConfig(sources=(str(source),), out=str(tmp_path), workers=2))
    rows = read_rows(tmp_path / "manifest.csv") + read_rows(tmp_path / "rejected.csv")
    files = {str(path) for path in source.rglob("*") if path.is_file()}
    assert {row["source"] for row in rows} == files
    assert len(files) == sum(row["path"].startswith("unlabelled/") for row in read_rows(source.parent / "MANIFEST.csv"))


@pytest.mark.parametrize("recipe", ["default", "source_cell_painting_gallery", "source_bbbc022", "source_idr"])
def test_recipes_load(recipe: str) -> None:
    config = parse(["a", "--out", "o", "--config", str(ROOT / "data_curation" / "configs" / f"{recipe}.yaml")])
    assert (config.sources, config.out) == (("a",), "o")
    if recipe == "default":
        assert config == CurateConfig(sources=("a",), out="o")  # it shows the defaults, all of them


def test_workers_that_cannot_start_are_not_blamed_on_the_images(tmp_path: Path) -> None:
    import subprocess
    import sys

    for index in range(3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.random.default_rng(index).integers(0, 255, (64, 64), np.uint8))
    script = (
        "from dinocell import curation\n"
        f"curation.run(curation.CurateConfig(sources=({str(tmp_path)!r},), out={str(tmp_path / 'out')!r}, workers=2))\n"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120)
    assert "DataError" in done.stderr and "worker processes cannot start" in done.stderr
    assert not (tmp_path / "out" / "rejected.csv").exists()
