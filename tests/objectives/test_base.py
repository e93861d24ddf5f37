"""What every objective promises: shapes, masked losses, exact flips and turns, labels back from its own targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinocell.core.errors import ConfigError
from dinocell.objectives import Objective, ObjectiveConfig, build_objective

CONFIGS = {
    "flows": ObjectiveConfig(flow_variant="leak_free"),
    "flows at 5x with a logit": ObjectiveConfig(flow_scale=5.0, probability_loss="bce_with_logits"),
    "distance": ObjectiveConfig(kind="distance"),
    "semantic": ObjectiveConfig(kind="semantic"),
    "semantic by watershed": ObjectiveConfig(kind="semantic", instances="watershed"),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ObjectiveConfig:
    return CONFIGS[request.param]


@pytest.fixture
def objective(config: ObjectiveConfig) -> Objective:
    return build_objective(config)


def perfect(config: ObjectiveConfig, target: np.ndarray) -> np.ndarray:
    """The raw network output that means `target`."""
    raw = target.copy()
    if config.kind == "flows":
        raw[:2] *= config.flow_scale
    if config.kind == "semantic" or (config.kind == "flows" and config.probability_loss == "bce_with_logits"):
        raw[-1] = (raw[-1] - 0.5) * 60
    return raw


def test_labels_come_back_from_their_own_targets(objective: Objective, config: ObjectiveConfig, disks, matches):
    labels = disks(96, [(20, 20, 12), (22, 70, 15), (70, 30, 18), (95, 80, 10)])
    target = objective.targets(labels.astype(np.uint16) * 7)
    assert target.shape == (len(objective.channels), 96, 96)
    assert target.dtype == np.float32
    decoded = objective.decode(perfect(config, target))
    assert decoded.dtype == np.int32
    assert matches(labels, decoded) == 1


def test_loss_of_a_perfect_prediction_is_zero(objective: Objective, config: ObjectiveConfig, disks):
    target = objective.targets(disks(40, [(20, 20, 12)]))
    raw = torch.from_numpy(perfect(config, target))[None]
    loss = objective.loss(raw, torch.from_numpy(target)[None], torch.ones(1, 1, 40, 40))
    assert loss.item() == pytest.approx(0, abs=1e-4)


def test_ignored_pixels_do_not_count(objective: Objective, disks):
    generator = torch.Generator().manual_seed(0)
    target = torch.from_numpy(objective.targets(disks(32, [(10, 10, 7), (24, 24, 6)])))[None]
    weight = torch.zeros(1, 1, 32, 32)
    weight[..., :16] = 1
    prediction = torch.randn(target.shape, generator=generator)
    other = prediction.clone()
    other[..., 16:] = torch.randn(other[..., 16:].shape, generator=generator) * 9
    torch.testing.assert_close(objective.loss(prediction, target, weight), objective.loss(other, target, weight))


def test_an_all_ignored_batch_has_zero_loss_and_gradient(objective: Objective):
    target = torch.from_numpy(objective.targets(np.ones((8, 8), int)))[None]
    prediction = torch.randn(target.shape, requires_grad=True)
    loss = objective.loss(prediction, target, torch.zeros(1, 1, 8, 8))
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad is not None
    assert not prediction.grad.any()


def test_an_empty_image_is_training_data(objective: Objective):
    target = objective.targets(np.zeros((12, 17), np.uint8))
    raw = np.full_like(target, -20.0 if "semantic" in type(objective).__name__.lower() else 0.0)
    assert not objective.decode(raw).any()
    loss = objective.loss(torch.ones(1, *target.shape), torch.from_numpy(target)[None], torch.ones(1, 1, 12, 17))
    assert loss.item() > 0


@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_targets_flip_and_turn_exactly(objective: Objective, disks, flip_y: bool, flip_x: bool, turns: int):
    labels = disks(33, [(9, 9, 7), (22, 20, 9), (3, 28, 5)])[:, :29]
    moved = labels[::-1] if flip_y else labels
    moved = np.rot90(moved[:, ::-1] if flip_x else moved, turns)
    turned = objective.transform_targets(objective.targets(labels), flip_y, flip_x, turns)
    expected = objective.targets(moved)
    if isinstance(CONFIGS["flows"], ObjectiveConfig) and objective.channels[0] == "flow_y":
        # Cellpose's centre rounds half pixels one way, so only its cells with a pixel at the centroid turn exactly.
        agree = (turned[:2] * expected[:2]).sum(axis=0)[expected[2] > 0]
        assert np.mean(agree) > 0.97
        np.testing.assert_array_equal(turned[2], expected[2])
    else:
        np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_flow_targets_of_symmetric_cells_turn_exactly(disks):
    objective = build_objective(ObjectiveConfig())
    labels = disks(64, [(15, 15, 9), (40, 30, 12), (20, 50, 7)])
    for turns in range(4):
        turned = objective.transform_targets(objective.targets(labels), True, False, turns)
        np.testing.assert_allclose(turned, objective.targets(np.rot90(labels[::-1], turns)), atol=1e-5)


def test_paper_loss_is_the_sum_of_masked_means():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 2, 3, 5, 6))
    weight = rng.choice([0.0, 0.05, 1.0], (2, 1, 5, 6))
    squares = (prediction - target) ** 2
    expected = sum((squares[:, k] * weight[:, 0]).sum() / weight.sum() for k in range(3))
    loss = build_objective(ObjectiveConfig()).loss(*(torch.from_numpy(v) for v in (prediction, target, weight)))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_semantic_loss_is_half_entropy_half_dice():
    objective = build_objective(ObjectiveConfig(kind="semantic"))
    logits = torch.tensor([[[[2.0, -1.0], [0.5, 3.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    p = 1 / (1 + np.exp(-logits.numpy()[0, 0].ravel()))
    t = target.numpy().ravel()
    entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    loss = objective.loss(logits, target, torch.ones(1, 1, 2, 2))
    assert loss.item() == pytest.approx(0.5 * entropy + 0.5 * dice, rel=1e-5)


def test_several_classes():
    objective = build_objective(ObjectiveConfig(kind="semantic", classes=3, min_size=1))
    classes = np.zeros((20, 20), np.uint8)
    classes[2:8, 2:8] = 1
    classes[8:14, 2:8] = 2
    classes[2:8, 12:18] = 1
    target = objective.targets(classes)
    np.testing.assert_array_equal(target.argmax(axis=0), classes)
    assert objective.decode(target * 9).max() == 3
    raw = torch.from_numpy(target)[None] * 60
    weight = torch.ones(1, 1, 20, 20)
    assert objective.loss(raw, torch.from_numpy(target)[None], weight).item() == pytest.approx(0, abs=1e-3)
    with pytest.raises(ValueError, match="classes"):
        objective.targets(classes * 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5},
        {"flow_scale": 0.0},
        {"max_size_fraction": 0.0},
        {"min_size": -1},
        {"classes": 1},
        {"flow_error": -1.0},
        {"mask_threshold": 0.6},
    ],
)
def test_wrong_configuration_names_the_field(wrong: dict[str, float]):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ObjectiveConfig(**wrong)
