"""Folder runs: nothing is lost, nothing is overwritten, one bad image stops nothing."""

import csv
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from dinocell.core.errors import ConfigError, DataError
from dinocell.images import planes
from dinocell.images.gray.channels import to_gray
from dinocell.images.planes import open_image
from dinocell.labels.files import read_labels
from dinocell.models import ModelCard
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import RunSummary, Segmenter, Shard, merge_shards, naming, pipeline, run
from dinocell.segmentation.outputs.save import save_result
from dinocell.segmentation.summary import SUMMARY_NAME

Make = Callable[..., Any]


class Bright(nn.Module):
    """Says "cell" where the picture is above its mean."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 20 * (z - 0.5)


@pytest.fixture
def segmenter() -> Segmenter:
    card = ModelCard(crop_size=64, objective=ObjectiveConfig(kind="semantic"))
    return Segmenter(Bright(), card, device="cpu", precision="float32", batch_size=4)


def squares(count: int, size: tuple[int, int] = (70, 90)) -> np.ndarray:
    image = np.full(size, 20, np.uint8)
    for index in range(count):
        image[10 + 20 * (index // 4) : 20 + 20 * (index // 4), 5 + 20 * (index % 4) : 15 + 20 * (index % 4)] = 220
    return image


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with (out / SUMMARY_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_with_damaged_images(tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for index in range(5):
        write(source / f"field{index}.png", squares(index + 1))
    whole = (source / "field3.png").read_bytes()
    (source / "field3.png").write_bytes(whole[: len(whole) // 2])
    (source / "text.tif").write_text("not an image")
    write(source / "black.png", np.zeros((40, 40), np.uint8))
    summary = run([source], out, segmenter, save=("labels", "csv"))
    assert isinstance(summary, RunSummary) and summary.exit_code == 1
    assert (summary.count("done"), summary.count("failed"), summary.cells) == (5, 2, 1 + 2 + 3 + 5)
    for index in (0, 1, 2, 4):
        labels = read_labels(out / f"field{index}_labels.tif")
        assert labels.max() == index + 1 and labels.shape == (70, 90)
    assert read_labels(out / "black_labels.tif").max() == 0
    table = {Path(row["image"]).name: row for row in rows(out)}
    assert table["field3.png"]["status"] == table["text.tif"]["status"] == "failed"
    assert table["field4.png"]["cells"] == "5" and "constant" in table["black.png"]["note"]
    said = capsys.readouterr()
    assert "2 failed" in said.err and "field3.png: failed: truncated PNG" in said.err
    assert "Traceback" not in said.err + said.out


def test_everything_good_exits_with_zero(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "a.png", squares(3))
    assert run([tmp_path / "a.png"], tmp_path / "out", segmenter).exit_code == 0


def test_an_impossible_threshold_is_refused_before_any_image(tmp_path: Path, segmenter: Segmenter) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64), np.uint8))
    with pytest.raises(ConfigError, match=r"threshold: must be above 0 and below 1, got 1\.4"):
        run([tmp_path / "a.tif"], tmp_path / "out", segmenter, threshold=1.4)
    assert not (tmp_path / "out").exists()


def test_skip_existing_leaves_finished_images_alone(tmp_path: Path, segmenter: Segmenter) -> None:
    for index in range(3):
        write(tmp_path / "in" / f"f{index}.png", squares(2))
    stack = np.stack([squares(1), squares(2)])
    tifffile.imwrite(tmp_path / "in" / "movie.tif", stack, metadata={"axes": "TYX"}, imagej=True)
    out = tmp_path / "out"
    run([tmp_path / "in"], out, segmenter, save=("labels", "csv"))
    (out / "f1_cells.csv").unlink()
    (out / "movie_t001_labels.tif").unlink()
    before = {path: path.stat().st_mtime_ns for path in out.glob("f[02]*")}
    os.utime(out / "f0_labels.tif", ns=(1, 1))
    summary = run([tmp_path / "in"], out, segmenter, save=("labels", "csv"), skip_existing=True)
    assert (summary.count("done"), summary.count("skipped"), summary.exit_code) == (2, 3, 0)
    assert (out / "f1_cells.csv").exists() and (out / "movie_t001_labels.tif").exists()
    assert (out / "f2_labels.tif").stat().st_mtime_ns == before[out / "f2_labels.tif"]
    assert (out / "f0_labels.tif").stat().st_mtime_ns == 1


def test_equal_stems_do_not_overwrite_each_other(tmp_path: Path, segmenter: Segmenter) -> None:
    inputs = ["a/x.png", "b/x.png", "b/x.tif", "c/X.png", "c/y.png"]
    for index, name in enumerate(inputs):
        write(tmp_path / "in" / name, squares(index + 1))
    summary = run([tmp_path / "in"], tmp_path / "out", segmenter)
    assert summary.count("done") == 5
    cells = sorted(read_labels(path).max() for path in (tmp_path / "out").glob("*_labels.tif"))
    assert cells == [1, 2, 3, 4, 5]
    assert (tmp_path / "out" / "y_labels.tif").exists(), "a stem of its own stays as it is"


def test_stems_name_what_differs() -> None:
    def stems(*names: str) -> list[str]:
        return naming.unique_stems([Path("/d") / name for name in names])

    assert stems("x.png", "y.ome.tif") == ["x", "y"]
    assert stems("a/x.tif", "b/x.tif") == ["a__x", "b__x"]
    assert stems("x.tif", "x.png") == ["x_tif", "x_png"]
    assert stems("p/1/x.tif", "q/1/x.tif") == ["p__1__x", "q__1__x"]
    assert stems("x.tif", "x.png", "x_tif.png") == ["d__x_tif", "d__x_png", "x_tif"]
    mixed = stems("a/x.tif", "a/x.png", "b/X.tif", "a__x.tif")
    assert len({name.lower() for name in mixed}) == 4


def test_stacks_give_one_result_a_plane(tmp_path: Path, segmenter: Segmenter) -> None:
    stack = np.stack([squares(1), np.full((70, 90), 20, np.uint8), squares(3)])
    tifffile.imwrite(tmp_path / "movie.tif", stack, imagej=True, metadata={"axes": "TYX"})
    write(tmp_path / "single.png", squares(2))
    summary = run([tmp_path / "movie.tif", tmp_path / "single.png"], tmp_path / "out", segmenter)
    assert [(outcome.target.plane, outcome.cells) for outcome in summary.outcomes] == [
        ("t000", 1), ("t001", 0), ("t002", 3), ("", 2)
    ]  # fmt: skip
    names = sorted(path.name for path in (tmp_path / "out").glob("*.tif"))
    assert names == ["movie_t000_labels.tif", "movie_t001_labels.tif", "movie_t002_labels.tif", "single_labels.tif"]
    given = run([tmp_path / "movie.tif"], tmp_path / "z", segmenter, axes="ZYX")
    assert [outcome.target.plane for outcome in given.outcomes] == ["z000", "z001", "z002"]


def test_a_channel_that_some_images_lack_fails_those_only(tmp_path: Path, segmenter: Segmenter) -> None:
    tifffile.imwrite(tmp_path / "two.tif", np.stack([squares(1), squares(4)]), imagej=True, metadata={"axes": "CYX"})
    write(tmp_path / "one.png", squares(2))
    summary = run([tmp_path / "two.tif", tmp_path / "one.png"], tmp_path / "out", segmenter, channel=1)
    status = {outcome.target.file.name: outcome.status for outcome in summary.outcomes}
    assert status == {"one.png": "failed", "two.tif": "done"}
    assert summary.cells == 4 and "no 1; the image has 0 = gray" in summary.failed[0].reason


def test_results_written_beside_the_images_are_not_read_as_images(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "field.png", squares(2))
    every = ("labels", "overlay", "outlines", "npy", "flows", "csv", "geojson")
    first = run([tmp_path], tmp_path, segmenter, save=every)
    second = run([tmp_path], tmp_path, segmenter, save=every)
    assert first.count("done") == second.count("done") == len(second.outcomes) == 1
    write(tmp_path / "other_overlay.png", squares(1))
    assert run([tmp_path], tmp_path, segmenter).count("done") == 2, "only overlays of images that are there"


def test_order_and_batches_do_not_change_results(tmp_path: Path, make_oracle: Make, make_disks: Make) -> None:
    truth = make_disks((100, 140))
    image, segmenter = make_oracle(truth, batch_size=5)
    for index in range(4):
        tifffile.imwrite(tmp_path / "in" / f"{index}.tif", image) if index else (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "0.tif", image)
    run([tmp_path / "in"], tmp_path / "out", segmenter)
    labels = [read_labels(tmp_path / "out" / f"{index}_labels.tif") for index in range(4)]
    for other in labels:
        np.testing.assert_array_equal(other, segmenter.segment(image).labels)


def test_wrong_commands_are_refused_before_any_work(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "a.png", squares(1))
    (tmp_path / "empty").mkdir()
    for inputs, options, message in (
        ([tmp_path / "missing"], {}, "no such file"),
        ([tmp_path / "empty"], {}, "no images there"),
        ([tmp_path / "a.png"], {"save": ("png",)}, "save: 'png' is not a format"),
        ([tmp_path / "a.png"], {"treshold": 0.3}, "treshold: no such option"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(inputs, tmp_path / "out", segmenter, **options)
    assert not (tmp_path / "out").exists()


def test_an_unwritable_result_is_a_failure_with_a_name(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "a.png", squares(1))
    (tmp_path / "out" / "a_labels.tif").mkdir(parents=True)
    summary = run([tmp_path / "a.png"], tmp_path / "out", segmenter)
    assert summary.exit_code == 1 and "a_labels.tif: cannot be written" in summary.failed[0].reason


def test_reading_network_and_writing_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage waits until the one before it works on the next image: one after the other, that would never be."""
    count, read_begun, run_begun = 5, [threading.Event() for _ in range(6)], [threading.Event() for _ in range(6)]
    made_in: list[str] = []
    waits: list[bool] = []
    for index in range(count):
        write(tmp_path / "in" / f"{index}.png", np.stack([squares(n, (96, 96)) for n in (index, 1, 2)], axis=-1))

    class Waiting(Bright):
        calls = 0

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            run_begun[self.calls - 1].set()
            waits.append(self.calls == count or read_begun[self.calls].wait(30))
            return super().forward(z)

    def opened(path: Path, *rest: Any) -> Any:
        read_begun[int(path.stem)].set()
        return open_image(path, *rest)

    def saved(result: Any, out: Path, stem: str, *rest: Any) -> Any:
        waits.append(int(stem) == count - 1 or run_begun[int(stem) + 1].wait(30))
        return save_result(result, out, stem, *rest)

    def gray(*rest: Any) -> Any:
        made_in.append(threading.current_thread().name)
        return to_gray(*rest)

    monkeypatch.setattr(pipeline, "open_image", opened)
    monkeypatch.setattr(pipeline, "save_result", saved)
    monkeypatch.setattr(planes, "to_gray", gray)
    card = ModelCard(crop_size=96, objective=ObjectiveConfig(kind="semantic"))
    segmenter = Segmenter(Waiting(), card, device="cpu", precision="float32", batch_size=1)
    summary = run([tmp_path / "in"], tmp_path / "out", segmenter)
    assert summary.count("done") == count, summary.failed
    assert len(waits) == 2 * count and all(waits)
    assert len(made_in) == count and all(name.startswith("read") for name in made_in)


def test_memory_shortage_halves_the_batch(segmenter: Segmenter) -> None:
    from dinocell.predict.runner import Runner

    class Small(Bright):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            if len(z) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(z)

    z = np.random.default_rng(0).normal(size=(100, 150)).astype(np.float32)
    halved, whole = (Runner(network=n, window=64, overlap=16, batch_size=b) for n, b in ((Small(), 7), (Bright(), 1)))
    np.testing.assert_array_equal(halved.maps(z), whole.maps(z))


def test_large_images_in_a_folder(tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        write(tmp_path / "in" / f"f{index}.png", squares(index + 1, (70, 90 + 300 * index)))
    small = run([tmp_path / "in"], tmp_path / "small", segmenter, save=("labels", "csv", "overlay"))
    segmenter.large_pixels = 10_000
    monkeypatch.setattr("dinocell.labels.files.STREAM_BYTES", 1000)
    monkeypatch.setattr("dinocell.segmentation.outputs.figures.FIGURE_PIXELS", 5000)
    monkeypatch.setattr("dinocell.segmentation.pipeline.AHEAD_BYTES", 10)
    large = run([tmp_path / "in"], tmp_path / "large", segmenter, save=("labels", "csv", "overlay"))
    assert small.count("done") == large.count("done") == 3 and small.cells == large.cells == 6
    for index in range(3):
        first, second = (tmp_path / name / f"f{index}" for name in ("small", "large"))
        labels = read_labels(f"{first}_labels.tif")
        np.testing.assert_array_equal(read_labels(f"{second}_labels.tif"), labels)
        assert Path(f"{first}_cells.csv").read_text() == Path(f"{second}_cells.csv").read_text()
    assert cv2.imread(str(tmp_path / "large" / "f2_overlay.png")).shape[:2] == (18, 173)
    assert not [path for path in (tmp_path / "large").iterdir() if path.name.startswith(".")]


def test_shards_of_an_array_give_the_files_and_the_summary_of_one_run(tmp_path: Path, segmenter: Segmenter) -> None:
    source = tmp_path / "in"
    for index in range(5):
        write(source / ("a" if index % 2 else "b") / f"field{index // 2}.png", squares(index + 1))  # stems meet
    (source / "a" / "broken.png").write_bytes(b"no picture")
    run([source], tmp_path / "one", segmenter)
    began = (tmp_path / "one" / SUMMARY_NAME).stat().st_mtime - 60
    shards = [Shard(index=index, count=3, since=began) for index in range(3)]
    for shard in shards[:2]:
        run([source], tmp_path / "many", segmenter, shard=shard)
    with pytest.raises(DataError, match="2 of 3"):
        merge_shards(tmp_path / "many", 3)
    run([source], tmp_path / "many", segmenter, shard=shards[2])
    again = run([source], tmp_path / "many", segmenter, shard=shards[0])  # started again after a kill
    assert again.count("done") == 0
    assert merge_shards(tmp_path / "many", 3) == 1
    assert rows(tmp_path / "many") == sorted(rows(tmp_path / "one"), key=lambda row: row["image"])
    for path in (tmp_path / "one").glob("*_labels.tif"):
        assert np.array_equal(read_labels(path), read_labels(tmp_path / "many" / path.name))


def test_a_new_array_replaces_the_results_of_an_older_one(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "in" / "field.png", squares(3))
    out = tmp_path / "out"
    old = run([tmp_path / "in"], out, segmenter)
    later = (out / "field_labels.tif").stat().st_mtime + 5
    new = run([tmp_path / "in"], out, segmenter, shard=Shard(index=0, count=1, since=later))
    assert (old.count("done"), new.count("done")) == (1, 1)


def test_more_tasks_than_files(tmp_path: Path, segmenter: Segmenter) -> None:
    write(tmp_path / "in" / "field.png", squares(3))
    for index in range(3):
        run([tmp_path / "in"], tmp_path / "out", segmenter, shard=Shard(index=index, count=3, since=0.0))
    assert merge_shards(tmp_path / "out", 3) == 0
    assert [row["cells"] for row in rows(tmp_path / "out")] == ["3"]
