"""PCA of patch tokens: exact on data of known rank, comparable between images."""

import numpy as np
import pytest

from dinocell.report.pca import fit_projection, pca_panel, pca_rgb


def _low_rank(rng, shape=(12, 10), width=32):
    """Tokens with three independent components of known directions and falling variance."""
    directions = np.linalg.qr(rng.standard_normal((width, 3)))[0].T
    scores = np.linalg.qr(rng.standard_normal((shape[0] * shape[1], 4)))[0]
    scores = np.linalg.qr(np.concatenate([np.ones((len(scores), 1)), scores], axis=1))[0][:, 1:4]
    scores = scores * np.array([30.0, 20.0, 10.0])
    tokens = scores @ directions + rng.standard_normal(width)
    return tokens.reshape(*shape, width), scores, directions


def test_directions_and_scores_of_rank_three_tokens_are_recovered():
    tokens, scores, directions = _low_rank(np.random.default_rng(0))
    projection = fit_projection([tokens])
    assert np.allclose(np.abs(projection.directions @ directions.T), np.eye(3), atol=1e-9)
    values = projection.components(tokens).reshape(-1, 3)
    assert np.allclose(np.abs(values * projection.scale), np.abs(scores), atol=1e-8)


def test_projection_gives_rank_three_tokens_back():
    tokens, _, _ = _low_rank(np.random.default_rng(1))
    projection = fit_projection([tokens])
    restored = (projection.components(tokens) * projection.scale) @ projection.directions + projection.mean
    assert np.allclose(restored, tokens, atol=1e-9)


def test_components_are_standardised_and_uncorrelated():
    tokens = np.random.default_rng(2).standard_normal((20, 20, 16)) * np.linspace(1, 9, 16)
    values = fit_projection([tokens]).components(tokens).reshape(-1, 3)
    assert np.allclose(values.mean(axis=0), 0, atol=1e-9)
    assert np.allclose(np.cov(values.T, bias=True), np.eye(3), atol=1e-9)


def test_shared_projection_gives_equal_tokens_equal_colours():
    rng = np.random.default_rng(3)
    first, second = rng.standard_normal((6, 6, 8)), rng.standard_normal((4, 9, 8)) * 3
    second[0, :6] = first[2]
    shared = pca_rgb([first, second])
    assert shared[0].shape == (6, 6, 3) and shared[1].shape == (4, 9, 3) and shared[0].dtype == np.uint8
    assert np.array_equal(shared[0][2], shared[1][0, :6])
    own = pca_rgb([first, second], shared=False)
    assert not np.array_equal(own[0][2], own[1][0, :6])


def test_colours_do_not_depend_on_the_scale_or_offset_of_the_tokens():
    tokens = np.random.default_rng(4).standard_normal((8, 8, 12)).astype(np.float32)
    assert np.abs(pca_rgb([tokens])[0].astype(int) - pca_rgb([tokens * 7 + 3])[0]).max() <= 1


def test_constant_tokens_are_grey_and_finite():
    assert np.unique(pca_rgb([np.ones((5, 5, 8), np.float32)])[0]).tolist() == [128]


def test_panel_has_a_row_per_image_and_a_column_per_model():
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 255, (32, 32), dtype=np.uint8) for _ in range(2)]
    tokens = {name: [rng.standard_normal((4, 4, width)) for _ in images] for name, width in (("a", 8), ("b", 16))}
    shown = pca_panel(images, tokens, height=64)
    assert shown.shape[1] == 3 * 64 + 4 * 8 and shown.shape[0] > 2 * 64
    with pytest.raises(ValueError, match="'a'"):
        pca_panel(images, {"a": tokens["a"][:1]})


def test_tokens_of_different_width_are_refused():
    with pytest.raises(ValueError, match="one D"):
        fit_projection([np.zeros((2, 2, 4)), np.zeros((2, 2, 5))])
