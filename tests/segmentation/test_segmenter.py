"""The segmenter end to end: a network that knows the truth must give the truth back, for every kind of input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dinocell
from dinocell.core.device import choose_dtype
from dinocell.core.errors import CheckpointError, ConfigError, DataError
from dinocell.images.gray.preprocess import preprocess_plane
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig, save_model
from dinocell.models.training_record import Training
from dinocell.objectives import ObjectiveConfig
from dinocell.predict.runner import Runner, run_batch
from dinocell.segmentation import Segmenter, SegmentOptions, load_model, segment

Make = Callable[..., Any]


class Bright(nn.Module):
    """Says "cell" where the picture is above its mean: blobs by the semantic objective, no training needed."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 20 * (z - 0.5)


def bright_segmenter(window: int = 64, **training: float) -> Segmenter:
    card = ModelCard(crop_size=window, objective=ObjectiveConfig(kind="semantic"), training=Training(**training))
    return Segmenter(Bright(), card, device="cpu", precision="float32")


def two_squares(dtype: type = np.uint8, size: tuple[int, int] = (100, 120)) -> np.ndarray:
    image = np.full(size, 10, dtype)
    image[20:40, 30:50] = 200
    image[60:80, 70:100] = 200
    return image


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
    model = SegmentationModel(VisionTransformer(config), DecoderConfig(neck_width=16), 3, 64, 64)
    return save_model(tmp_path_factory.mktemp("run") / "model", model, ModelCard(crop_size=64))


@pytest.mark.parametrize("kind", ["flows", "distance", "semantic"])
@pytest.mark.parametrize("size", [(64, 64), (150, 211), (64, 300)])
def test_exact_maps_give_the_exact_cells(
    kind: str, size: tuple[int, int], make_oracle: Make, make_disks: Make, cells_agree: Make
) -> None:
    truth = make_disks(size)
    image, segmenter = make_oracle(truth, kind=kind)
    result = segmenter.segment(image)
    assert result.labels.shape == size and result.labels.dtype == np.uint16
    assert result.count == len(np.unique(truth)) - 1
    if kind == "distance":  # its maps stop short of a pixel at the rim of some cells
        assert ((result.labels > 0) == (truth > 0)).mean() > 0.97
    else:
        assert cells_agree(result.labels, truth)


def test_windows_run_once_each(make_oracle: Make, make_disks: Make) -> None:
    image, segmenter = make_oracle(make_disks((130, 176)), window=128)
    segmenter.segment(image)
    assert sorted(segmenter.model.windows) == [(0, 0), (0, 48), (2, 0), (2, 48)]


def test_a_cell_dropped_for_its_size_is_noted_once(make_oracle: Make, capsys: pytest.CaptureFixture[str]) -> None:
    y, x = np.mgrid[:96, :96] - 48
    truth = (y**2 + x**2 <= 40**2).astype(np.int32)
    image, segmenter = make_oracle(truth)
    result = segmenter.segment(image)
    (note,) = result.notes
    assert result.count == 0 and note.severity == "warning" and "raise max_size_fraction" in note.text
    out, err = (" ".join(text.split()) for text in capsys.readouterr())
    assert err.count("raise max_size_fraction") == 1 and "max_size_fraction" not in out
    kept = segmenter.segment(image, max_size_fraction=1.0)
    assert kept.count == 1 and kept.notes == ()


def test_other_tilings_give_the_same_cells(make_oracle: Make, make_disks: Make, cells_agree: Make) -> None:
    truth = make_disks((150, 150))
    results = [make_oracle(truth, window=window) for window in (48, 64, 150)]
    labels = [segmenter.segment(image).labels for image, segmenter in results]
    assert cells_agree(labels[0], labels[1]) and cells_agree(labels[1], labels[2])


def test_result_gives_flows_probability_and_a_table(make_oracle: Make, make_disks: Make) -> None:
    truth = make_disks((100, 100))
    image, segmenter = make_oracle(truth)
    result = segmenter.segment(image, pixel_size=0.5)
    inside = truth > 0
    np.testing.assert_allclose(result.flows, dinocell.objectives.flows.masks_to_flows(truth), atol=1e-5)
    np.testing.assert_allclose(result.probability, inside, atol=1e-5)
    table = result.table()
    assert len(table) == result.count and table["confidence"].min() > 0.999
    assert table["area_px"].sum() == inside.sum() and table["area_um2"].sum() == inside.sum() / 4
    assert table["mean_gray"][0] == pytest.approx(image[result.labels == 1].mean())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_any_number_type(dtype: type) -> None:
    assert bright_segmenter().segment(two_squares(dtype)).count == 2


def test_colour_alpha_and_channels() -> None:
    plain = two_squares()
    expected = bright_segmenter().segment(plain).labels
    rgba = np.dstack([plain, plain, plain, np.full_like(plain, 255)])
    rgb = np.dstack([plain, plain // 2, plain // 3])
    channels = np.stack([np.zeros_like(plain), plain])
    for image in (rgba, rgb, rgba[..., :3]):
        result = bright_segmenter().segment(image)
        np.testing.assert_array_equal(result.labels, expected)
    assert {"mean_red", "mean_green", "max_blue"} <= set(bright_segmenter().segment(rgb).table().columns)
    assert "mean_gray" in bright_segmenter().segment(rgba).table().columns
    chosen = bright_segmenter().segment(channels, axes="CYX", channel=1)
    np.testing.assert_array_equal(chosen.labels, expected)
    assert chosen.table()["mean_c1"].tolist() == [200, 200]


def test_an_unknown_channel_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no 5; the image has 0 = c0, 1 = c1"):
        bright_segmenter().segment(np.stack([two_squares()] * 2), axes="CYX", channel=5)


def test_stacks_plane_by_plane() -> None:
    empty = np.full((100, 120), 10, np.uint8)
    stack = np.stack([two_squares(), empty, two_squares()[::-1]])
    segmenter = bright_segmenter()
    results = list(segmenter.segment_planes(stack, axes="TYX"))
    assert [result.plane.name for result in results] == ["t000", "t001", "t002"]
    assert [result.count for result in results] == [2, 0, 2], "in order, with the constant plane between"
    labels = segment(stack, segmenter, axes="TYX")
    assert labels.shape == stack.shape and labels[1].max() == 0
    with pytest.raises(ConfigError, match=r"stack of 3 planes .*segment_planes"):
        segmenter.segment(stack, axes="TYX")
    volume = np.stack([stack, stack])
    names = [result.plane.name for result in segmenter.segment_planes(volume, axes="TZYX")]
    assert names[:4] == ["t000_z000", "t000_z001", "t000_z002", "t001_z000"]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((70, 80), np.uint8),
        np.full((70, 80), 65_535, np.uint16),
        np.full((70, 80), np.nan, np.float32),
        np.full((70, 80), np.inf, np.float32),
        np.full((5, 3), 7, np.uint8),
    ],
)
def test_images_without_content_have_no_cells_and_say_why(
    image: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bright_segmenter().segment(image)
    assert result.labels.shape == image.shape and result.count == 0 and len(result.table()) == 0
    assert "the image is constant: no cells" in capsys.readouterr().err
    assert result.flows.shape == (2, *image.shape) and result.probability.max() == 0


def test_nan_pixels_hold_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    image = two_squares(np.float32)
    image[20:40, 40:50] = np.nan
    result = bright_segmenter().segment(image)
    assert result.count == 2 and result.labels[20:40, 40:50].max() == 0 and result.labels[30, 35] > 0
    assert "1.7% of the pixels are NaN" in capsys.readouterr().err


def test_empty_arrays_and_text_are_refused() -> None:
    for image in (np.zeros((0, 10)), np.full((20, 20), "a")):
        with pytest.raises(DataError):
            bright_segmenter().segment(image)


@pytest.mark.parametrize("size", [(20, 25), (63, 300), (9, 9)])
def test_images_smaller_than_the_window(size: tuple[int, int]) -> None:
    image = np.zeros(size, np.uint8)
    image[2:7, 2:7] = 250
    labels = bright_segmenter().segment(image, min_size=1).labels
    assert labels.shape == size and labels.max() == 1
    truth = image > 0
    assert ((labels > 0) & truth).sum() / ((labels > 0) | truth).sum() > 0.7


def test_diameter_and_pixel_size_scale_to_the_training_scale(capsys: pytest.CaptureFixture[str]) -> None:
    sizes: list[int] = []

    class Recorder(Bright):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            sizes.append(len(z))
            return super().forward(z)

    training = Training(diameter=20, pixel_size=1)
    card = ModelCard(crop_size=64, objective=ObjectiveConfig(kind="semantic"), training=training)
    segmenter = Segmenter(Recorder(), card, device="cpu", precision="float32")
    result = segmenter.segment(two_squares(size=(128, 128)), diameter=40)
    assert result.labels.shape == (128, 128) and result.count == 2 and len(sizes) == 1, "one window at half the scale"
    assert 900 < (result.labels > 0).sum() < 1250, "each square a ring of one interpolated pixel wider at most"
    assert "scaled by 0.5" in capsys.readouterr().out  # nothing to doubt: no warning
    assert segmenter.segment(two_squares(size=(128, 128)), pixel_size=0.5).table()["area_um2"].sum() < 300
    with pytest.raises(ConfigError, match="does not record the diameter"):
        bright_segmenter().segment(two_squares(), diameter=30)
    with pytest.raises(ConfigError, match="scales the image by 1e"):
        segmenter.segment(two_squares(), diameter=2e-4)


def test_labels_past_65535_take_uint32() -> None:
    image = np.zeros((520, 520), np.uint8)
    image[::2, ::2] = 255
    image[0, 0] = 0
    result = bright_segmenter(window=520).segment(image, min_size=1)
    assert result.count == 260**2 - 1 and result.labels.dtype == np.uint32


def test_thresholds_can_be_changed_and_misspelt_options_are_named() -> None:
    image = two_squares()
    assert bright_segmenter().segment(image, SegmentOptions(min_size=500)).count == 1
    with pytest.raises(ConfigError, match=r"min_sise: no such option .*min_size"):
        bright_segmenter().segment(image, min_sise=3)
    with pytest.raises(ConfigError, match="diameter: must be above 0"):
        bright_segmenter().segment(image, diameter=-1)


def test_model_folder_run_folder_and_path_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 90)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "image.tif", image)
    by_folder, by_run = load_model(model_folder, device="cpu"), load_model(model_folder.parent, device="cpu")
    labels = [by_folder.segment(image).labels, by_run.segment(tmp_path / "image.tif").labels]
    labels += [dinocell.segment(image, model_folder, device="cpu"), segment(tmp_path / "image.tif", str(model_folder))]
    for other in labels[1:]:
        np.testing.assert_array_equal(labels[0], other)
    maps = load_model(model_folder, device="cpu", precision="float32").segment(image).maps
    z = preprocess_plane(image)
    np.testing.assert_allclose(maps, Runner(network=by_folder.model, window=64, overlap=16).maps(z), atol=1e-5)


def test_missing_models_say_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinocell.models.packaged.PACKAGED", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no packaged model is in this installation; name a model folder"):
        segment(two_squares())
    with pytest.raises(ConfigError, match="'cyto9' is neither a model folder nor a packaged model"):
        load_model("cyto9")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        load_model(tmp_path)
    with pytest.raises(ConfigError, match="device: 'abacus' is not known"):
        Segmenter(Bright(), ModelCard(crop_size=64), device="abacus")


def test_a_packaged_model_is_found_by_name(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").symlink_to(model_folder)
    monkeypatch.setattr("dinocell.models.packaged.PACKAGED", tmp_path)
    assert load_model("tiny", device="cpu").runner.window == load_model(device="cpu").runner.window == 64


def test_damaged_weights_are_one_clear_error(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes()[:200])
    with pytest.raises(CheckpointError):
        load_model(tmp_path, device="cpu")


class Numbers(TorchDispatchMode):
    """The number formats of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.seen |= {one.dtype for one in torch.utils._pytree.tree_leaves(made) if isinstance(one, torch.Tensor)}
        return made


@pytest.mark.parametrize(("crop", "side", "channels"), [(64, 64, 1), (64, 112, 3), (128, 64, 1)])
@pytest.mark.parametrize("kind", ["linear", "transposed", "bilinear"])
def test_nothing_on_the_device_is_in_double_precision(crop: int, side: int, channels: int, kind: Any) -> None:
    """Apple's GPU has no float64: neither weights, nor buffers, nor anything computed in a window may be."""
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=32, depth=1, in_channels=channels)
    decoder = DecoderConfig(neck_width=16, kind=kind)
    model = SegmentationModel(VisionTransformer(config), decoder, 3, crop, side)
    assert torch.float64 not in {one.dtype for one in (*model.parameters(), *model.buffers())}
    window = np.random.default_rng(0).normal(size=(crop, crop)).astype(np.float32)
    with Numbers() as numbers, torch.inference_mode():
        run_batch(model.eval(), [window, window], torch.device("cpu"), torch.float32)
    assert torch.float32 in numbers.seen and torch.float64 not in numbers.seen


def test_apples_gpu_computes_in_float32() -> None:
    assert choose_dtype("auto", torch.device("mps"))[0] == torch.float32


def volume() -> np.ndarray:
    """(Z, Y, X): noise, blurred, sharp, and the same twice as bright but blurred."""
    random = np.random.default_rng(0)
    sharp = np.full((64, 64), 20.0)
    sharp[10:30, 10:30] = 120
    sharp[30:50, 40:60] = 120
    blurred = cv2.GaussianBlur(sharp, (0, 0), 6)
    stack = np.stack([blurred / 2, blurred, sharp, 2 * blurred]) + random.normal(0, 0.1, (4, 64, 64))
    return np.rint(stack).clip(0).astype(np.uint8)


@pytest.mark.parametrize("z", ["best", "focus", "max", "mean", 2, "2"])
def test_a_volume_as_one_plane(z: str | int) -> None:
    stack = volume()
    expected: dict[str | int, np.ndarray] = {"max": stack.max(0), "mean": np.rint(stack.mean(0)).astype(np.uint8)}
    plane = expected.get(z, stack[2])
    result = bright_segmenter().segment(stack, axes="ZYX", z=z)
    np.testing.assert_array_equal(result.plane.gray, plane)
    assert result.plane.name == "" and result.labels.shape == (64, 64)
    np.testing.assert_array_equal(result.labels, bright_segmenter().segment(plane).labels)


def test_depth_of_films_and_channels() -> None:
    stack = volume()
    film = np.stack([stack, stack[::-1]])
    results = list(bright_segmenter().segment_planes(film, axes="TZYX", z="best"))
    assert [result.plane.name for result in results] == ["t000", "t001"]
    for result in results:
        np.testing.assert_array_equal(result.plane.gray, stack[2])
    channels = np.stack([stack, stack[[2, 1, 0, 3]]])  # the second channel is sharpest at depth 0
    for channel, depth in ((0, 2), (1, 0)):
        result = bright_segmenter().segment(channels, axes="CZYX", z="best", channel=channel)
        np.testing.assert_array_equal(result.plane.channels["c0"], stack[depth])
        np.testing.assert_array_equal(result.plane.channels["c1"], channels[1, depth])
    assert segment(film, bright_segmenter(), axes="TZYX", z="max").shape == (2, 64, 64)


def test_depths_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"z: no depth 7; the stack has 4, 0 … 3"):
        bright_segmenter().segment(volume(), axes="ZYX", z=7)
    with pytest.raises(ConfigError, match=r"z: 'sharpest' is not known; use best \(or focus\), max, mean"):
        bright_segmenter().segment(volume(), axes="ZYX", z="sharpest")
    np.testing.assert_array_equal(
        bright_segmenter().segment(two_squares(), z="best").labels, bright_segmenter().segment(two_squares()).labels
    )
    film = np.stack([two_squares()] * 6)
    assert len(list(bright_segmenter().segment_planes(film, z="max"))) == 6, "a film has no depth"
    assert "if this is a volume, pass --axes ZYX" in capsys.readouterr().err
