"""Averaging over turned views: exact for a network that turns with its picture, steadier for one that does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dinocell.core.errors import ConfigError
from dinocell.images.geometry.symmetry import Turn
from dinocell.models.folder import VIEWS, ModelCard
from dinocell.objectives import ObjectiveConfig, build_objective
from dinocell.predict.views import AveragedViews
from dinocell.segmentation import Segmenter

MODEL = ModelCard(crop_size=32, objective=ObjectiveConfig(flow_error=0, min_size=0))


class Gradient(nn.Module):
    """Central differences and the picture itself: turned pictures give turned vectors, up to a bias."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, z: Tensor) -> Tensor:
        y, x = (torch.roll(z, -1, axis) - torch.roll(z, 1, axis) for axis in (-2, -1))
        return torch.cat([y + self.bias, x, z], dim=1)


@pytest.mark.parametrize("views", VIEWS)
def test_a_network_that_turns_with_the_picture_is_left_alone(views):
    z = torch.randn(2, 1, 24, 32, generator=torch.Generator().manual_seed(views))
    network = Gradient().eval()
    torch.testing.assert_close(AveragedViews(network, views, vectors=((0, 1),))(z), network(z))


@pytest.mark.parametrize("views", VIEWS[1:])
def test_an_error_that_does_not_turn_cancels(views):
    z = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(views))
    torch.testing.assert_close(AveragedViews(Gradient(bias=3.0), views, vectors=((0, 1),))(z), Gradient()(z))


@pytest.mark.parametrize("views", VIEWS)
def test_the_average_is_that_of_an_explicit_loop(views):
    """Of a network that turns with nothing, against arrays turned one by one."""
    torch.manual_seed(2)
    network = nn.Conv2d(1, 3, 5, padding=2)
    z = np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)
    found = []
    with torch.inference_mode():
        for mirrored, quarters in [(0, 0), (0, 2), (1, 1), (1, 3), (0, 1), (0, 3), (1, 0), (1, 2)][:views]:
            seen = np.rot90(z[:, ::-1] if mirrored else z, quarters).copy()
            y, x, other = (np.rot90(m, -quarters) for m in network(torch.from_numpy(seen)[None]).numpy())
            for _ in range(quarters):  # a clockwise quarter turn each
                y, x = x, -y
            maps = np.stack([y, -x if mirrored else x, other])
            found.append(maps[..., ::-1] if mirrored else maps)
        averages = AveragedViews(network, views, vectors=((0, 1),))(torch.from_numpy(z)[None, None])
    np.testing.assert_allclose(averages[0].numpy(), np.mean(found, axis=0), atol=1e-6)


@pytest.mark.parametrize("kind", ["flows", "distance", "semantic"])
def test_the_average_turns_with_the_picture_as_targets_do(kind):
    """Of any network, checked against how the objectives turn their own targets."""
    objective = build_objective(ObjectiveConfig(kind=kind))
    torch.manual_seed(1)
    network = nn.Conv2d(1, len(objective.channels), 5, padding=2)
    average = AveragedViews(network, 8, vectors=objective.vector_maps)
    z = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def maps(picture: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return average(torch.from_numpy(picture.copy())[None, None])[0].numpy()

    for flip_y, flip_x, turns in [(True, False, 0), (False, True, 1), (False, False, 1), (True, True, 3)]:
        turn = Turn.of(flip_y=flip_y, flip_x=flip_x, quarters=turns)
        np.testing.assert_allclose(maps(turn.apply(z)), objective.transform_targets(maps(z), turn), atol=1e-5)


def test_segmenting_with_views_runs_the_network_on_each():
    seen = []

    class Counting(Gradient):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.shape[0])
            return super().forward(z)

    picture = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    one = Segmenter(Counting(), MODEL, device="cpu")
    four = Segmenter(Counting(), MODEL, device="cpu", views=4)
    assert one.fingerprint() != four.fingerprint()
    expected = one.segment(picture).flows
    count = len(seen)
    np.testing.assert_allclose(four.segment(picture).flows, expected, atol=1e-5)
    assert len(seen) == 5 * count
    assert not four.model.training, "a wrapper in training mode would put the model into it"


def test_another_number_of_views_is_refused():
    with pytest.raises(ConfigError, match="views: 3; choose one of 1, 2, 4, 8"):
        Segmenter(Gradient(), MODEL, device="cpu", views=3)


def test_a_model_folder_says_how_many_views_it_is_used_with():
    two = replace(MODEL, views=2)
    assert [Segmenter(Gradient(), card, device="cpu").runner.views for card in (MODEL, two)] == [1, 2]
    assert Segmenter(Gradient(), two, device="cpu", views=1).runner.views == 1
    with pytest.raises(ConfigError, match="views: 5; choose one of 1, 2, 4, 8"):
        replace(MODEL, views=5)
