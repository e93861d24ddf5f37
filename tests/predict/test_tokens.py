"""Embeddings of cells: means over pixels that can be computed by hand, whatever the windows, and a Parquet to read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from dinocell.core.errors import ConfigError
from dinocell.images.gray.preprocess import PreprocessConfig
from dinocell.models import DecoderConfig, ModelCard, SegmentationModel, VisionTransformer, ViTConfig
from dinocell.models.training_record import Training
from dinocell.objectives import ObjectiveConfig
from dinocell.segmentation import Segmenter, run

MODEL = ModelCard(
    crop_size=64,
    overlap=16,
    preprocess=PreprocessConfig(clahe=False, percentile_low=0.0, percentile_high=100.0),
    objective=ObjectiveConfig(kind="semantic", min_size=1),
    training=Training(diameter=20.0),
)


class MeanTokens(SegmentationModel):
    """Its token is the mean of the patch; "cell" is what lies above the image's mean."""

    def __init__(self) -> None:
        config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)
        super().__init__(VisionTransformer(config), DecoderConfig(neck_width=16), 1, 64, 64)
        self.encoded = 0

    def encode(self, z: Tensor) -> Tensor:
        self.encoded += len(z)
        means = torch.nn.functional.avg_pool2d(z, 8).flatten(2).transpose(1, 2)  # [B, N, 1]
        return means.expand(-1, -1, self.backbone.embed_dim)

    def forward(self, z: Tensor, tokens: Tensor | None = None) -> Tensor:
        return 20 * z


def blocks(size: tuple[int, int], unit: int = 8, seed: int = 0) -> np.ndarray:
    """Dark, with bright rectangles of `unit` × 2 `unit` on the grid of `unit`, each of its own brightness per block."""
    random = np.random.default_rng(seed)
    image = np.zeros(size, np.uint16)
    for y in range(unit, size[0] - unit, 2 * unit):
        for x in range(unit, size[1] - 2 * unit, 4 * unit):
            image[y : y + unit, x : x + 2 * unit] = np.kron(random.integers(600, 1000, (1, 2)), np.ones((unit, unit)))
    return image


def standard(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std()


def means(labels: np.ndarray, values: np.ndarray) -> list[float]:
    return [float(values[labels == number].mean()) for number in range(1, labels.max() + 1)]


def segmenter(model: SegmentationModel | None = None) -> Segmenter:
    return Segmenter(model or MeanTokens(), MODEL, device="cpu", precision="float32", batch_size=2)


@pytest.mark.parametrize(("size", "unit"), [((64, 64), 8), ((128, 160), 8), ((32, 48), 4), ((128, 64), 8)])
def test_tokens_that_are_means_give_the_mean_of_each_cell(size: tuple[int, int], unit: int) -> None:
    image = blocks(size, unit)
    result = segmenter().segment(image, embeddings=True)
    assert result.count > 1
    assert result.embeddings is not None and result.embeddings.shape == (result.count, 192)
    tolerance = 1e-4 if unit == 8 else 0.35  # half-size images are enlarged, which softens the edges
    np.testing.assert_allclose(result.embeddings[:, 0], means(result.labels, standard(image)), atol=tolerance)


def test_tokens_of_the_network_are_averaged_over_pixels() -> None:
    torch.manual_seed(0)
    config = ViTConfig(arch="vit_tiny", patch_size=8, image_size=64, depth=1)

    class Named(SegmentationModel):
        def forward(self, z: Tensor, tokens: Tensor | None = None) -> Tensor:
            return 20 * z

    model = Named(VisionTransformer(config), DecoderConfig(neck_width=16), 1, 64, 64)
    image = np.zeros((64, 64), np.uint8)
    image[5:23, 11:30] = 200
    image[40:60, 33:47] = 150
    result = segmenter(model).segment(image, embeddings=True)
    with torch.no_grad():
        z = torch.from_numpy(standard(image).astype(np.float32))[None, None]
        tokens = model.encode(z)[0].reshape(8, 8, -1).numpy()
    dense = np.kron(tokens.transpose(2, 0, 1), np.ones((8, 8)))  # [D, 64, 64]
    expected = np.stack([dense[:, result.labels == number].mean(1) for number in (1, 2)])
    np.testing.assert_allclose(result.embeddings, expected, atol=2e-3)


def test_large_images_give_the_same_embeddings() -> None:
    image = blocks((160, 200))
    usual, bounded = segmenter(), segmenter()
    bounded.large_pixels = 1
    first, second = (one.segment(image, embeddings=True) for one in (usual, bounded))
    assert first.embeddings is not None and second.embeddings is not None
    order = [int(second.labels[first.labels == number][0]) - 1 for number in range(1, first.count + 1)]
    np.testing.assert_allclose(second.embeddings[order], first.embeddings, atol=1e-5)


def test_windows_without_cells_do_not_run_and_rescaled_images_keep_every_cell() -> None:
    image = np.zeros((128, 640), np.uint16)
    image[16:32, 16:32] = 900
    image[4:6, 40:42] = 900
    one = segmenter()
    one.segment(image, embeddings=True)
    assert isinstance(one.model, MeanTokens) and one.model.encoded == 1
    result = one.segment(image, diameter=40.0, embeddings=True)
    assert result.embeddings is not None and len(result.embeddings) == result.count
    assert np.isfinite(result.embeddings).all()


def test_small_rescaled_pictures_have_the_tokens_of_their_own_part() -> None:
    """Cells that follow the patches: their tokens are their own brightness, and no mirrored pixel is among them."""
    one, image = segmenter(), blocks((40, 48))
    one.card = replace(one.card, rescale="auto")
    result = one.segment(image, diameter="own", embeddings=True)
    assert result.embeddings is not None and result.count > 1
    expected = means(result.labels, standard(image))
    np.testing.assert_allclose(result.embeddings[:, 0], expected, atol=1e-3)


def test_no_cells_no_rows() -> None:
    result = segmenter().segment(np.full((70, 90), 7, np.uint8), embeddings=True)
    assert result.embedding_table().shape == (0, 193)
    with pytest.raises(ConfigError, match="segment with embeddings=True"):
        segmenter().segment(blocks((64, 64))).embedding_table()


def test_parquet_is_read_by_pandas_and_pyarrow(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    np.save(tmp_path / "field.npy", blocks((128, 160)))
    assert run([tmp_path / "field.npy"], tmp_path / "out", segmenter(), save=("csv", "embeddings")).exit_code == 0
    file = tmp_path / "out" / "field_embeddings.parquet"
    table, cells = pd.read_parquet(file), pd.read_csv(tmp_path / "out" / "field_cells.csv")
    assert table["label"].tolist() == cells["label"].tolist() and len(table) > 3
    assert list(table.columns) == ["label", *(f"e{number}" for number in range(192))]
    assert set(table.dtypes[1:]) == {np.dtype(np.float32)}
    image = np.load(tmp_path / "field.npy")
    expected = (cells["mean_gray"].to_numpy() - image.mean()) / image.std()
    np.testing.assert_allclose(table["e0"], expected, atol=1e-4)
    again = parquet.read_table(file)
    np.testing.assert_array_equal(again.column("e7").to_numpy(), table["e7"])
    run([tmp_path / "field.npy"], tmp_path / "again", segmenter(), save=("embeddings",))
    assert (tmp_path / "again" / "field_embeddings.parquet").read_bytes() == file.read_bytes()


def test_a_network_without_a_backbone_is_refused() -> None:
    class Bare(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return 20 * z

    with pytest.raises(ConfigError, match="no backbone"):
        Segmenter(Bare(), MODEL, device="cpu").segment(blocks((64, 64)), embeddings=True)
