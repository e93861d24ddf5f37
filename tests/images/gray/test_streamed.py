"""Preprocessing region by region equals that of the whole image."""

import numpy as np
import pytest

from dinocell.images.gray import streamed
from dinocell.images.gray.preprocess import PreprocessConfig, preprocess_plane
from dinocell.images.gray.streamed import StreamedInput


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.float32])
@pytest.mark.parametrize("clahe", [True, False])
@pytest.mark.parametrize("size", [(150, 201), (9, 64)])
def test_streamed_preprocessing_equals_the_whole_image(
    dtype: type, clahe: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "STEP", 37)
    random = np.random.default_rng(0)
    gray = (random.gamma(2.0, 20.0, size) + np.linspace(0, 50, size[1])).astype(dtype)
    config = PreprocessConfig(clahe=clahe)
    source, whole = StreamedInput(gray, config), preprocess_plane(gray, config)
    for rows, columns in ((slice(0, size[0]), slice(0, size[1])), (slice(3, 8), slice(20, 61))):
        np.testing.assert_allclose(source.region(rows, columns), whole[rows, columns], atol=2e-5)


def test_streamed_preprocessing_of_constant_and_nan_images() -> None:
    assert StreamedInput(np.full((40, 50), 3, np.uint16), PreprocessConfig()).constant
    gray = np.random.default_rng(0).normal(size=(60, 70)).astype(np.float32)
    gray[5:9, 5:9] = np.nan
    source = StreamedInput(gray, PreprocessConfig())
    whole = source.region(slice(0, 60), slice(0, 70))
    np.testing.assert_allclose(whole, preprocess_plane(gray), atol=2e-5)
