"""The promises of every objective: shapes, masked losses, exact flips and turns, labels back from its own targets, and
answers to what other modules ask."""

from __future__ import annotations

import dataclasses
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from dinocell.core.errors import ConfigError
from dinocell.images.geometry.symmetry import Turn
from dinocell.labels.cells import find_cells
from dinocell.objectives import OBJECTIVES, Frame, Objective, ObjectiveConfig, build_objective

CONFIGS = {
    "flows": ObjectiveConfig(flow_variant="leak_free"),
    "flows at 5x with a logit": ObjectiveConfig(flow_scale=5.0, probability_loss="bce_with_logits"),
    "distance": ObjectiveConfig(kind="distance"),
    "semantic": ObjectiveConfig(kind="semantic"),
    "semantic by watershed": ObjectiveConfig(kind="semantic", instances="watershed"),
    "three classes": ObjectiveConfig(kind="semantic", classes=3),
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> ObjectiveConfig:
    return CONFIGS[request.param]


@pytest.fixture
def objective(config: ObjectiveConfig) -> Objective:
    return build_objective(config)


def truth(objective: Objective, labels: np.ndarray) -> np.ndarray:
    """Labels as the objective takes them: numbers of cells, or classes 0…n − 1."""
    return labels % max(objective.class_count, 2) if objective.class_count > 2 else labels


def perfect(config: ObjectiveConfig, target: np.ndarray) -> np.ndarray:
    """The raw network output that means `target`."""
    raw = target.copy()
    if config.kind == "flows":
        raw[:2] *= config.flow_scale
    if config.kind == "semantic":
        raw = (raw - 0.5) * 60
    if config.kind == "flows" and config.probability_loss == "bce_with_logits":
        raw[-1] = (raw[-1] - 0.5) * 60
    return raw


def test_labels_come_back_from_their_own_targets(objective: Objective, config: ObjectiveConfig, disks, matches):
    labels = disks(96, [(20, 20, 12), (22, 70, 15), (70, 30, 18), (95, 80, 10)])
    given = truth(objective, labels) if objective.class_count > 2 else labels.astype(np.uint16) * 7
    labels[given == 0] = 0
    target = objective.targets(given)
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
    assert not objective.decode(perfect(objective.config, target)).any()
    loss = objective.loss(torch.ones(1, *target.shape), torch.from_numpy(target)[None], torch.ones(1, 1, 12, 17))
    assert loss.item() > 0


@pytest.mark.parametrize("flip_y", [False, True])
@pytest.mark.parametrize("flip_x", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_targets_flip_and_turn_exactly(objective: Objective, disks, flip_y: bool, flip_x: bool, turns: int):
    labels = truth(objective, disks(33, [(9, 9, 7), (22, 20, 9), (3, 28, 5)])[:, :29])
    moved = labels[::-1] if flip_y else labels
    moved = np.rot90(moved[:, ::-1] if flip_x else moved, turns)
    turned = objective.transform_targets(
        objective.targets(labels), Turn.of(flip_y=flip_y, flip_x=flip_x, quarters=turns)
    )
    expected = objective.targets(moved)
    if objective.vector_maps:
        # Cellpose's centre rounds half pixels one way, so only its cells with a pixel at the centroid turn exactly.
        agree = (turned[:2] * expected[:2]).sum(axis=0)[expected[2] > 0]
        assert np.mean(agree) > 0.97
        np.testing.assert_array_equal(turned[2], expected[2])
    else:
        np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_the_terms_sum_to_the_loss_and_are_each_finite(objective: Objective, disks):
    target = torch.from_numpy(objective.targets(truth(objective, disks(24, [(8, 8, 5), (18, 16, 4)]))))[None]
    prediction = torch.randn(target.shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(2))
    terms = objective.loss_terms(prediction, target, weight)
    loss = objective.loss(prediction, target, weight)
    assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()), rel=1e-6)
    assert all(term.ndim == 0 and term.item() > 0 for term in terms.values())
    loss.backward()
    assert prediction.grad is not None and prediction.grad.any()
    unweighted = objective.loss_terms(prediction, target, torch.zeros_like(weight))
    assert [term.item() for term in unweighted.values()] == [0.0] * len(terms)


def test_cell_probability_is_one_of_each_pixel(objective: Objective, config: ObjectiveConfig, disks):
    labels = truth(objective, disks(40, [(12, 12, 8), (28, 26, 9)]))
    right = objective.cell_probability(perfect(config, objective.targets(labels)))
    assert right.shape == (40, 40) and right.dtype == np.float32
    assert right[labels == 0].max() < 0.01 < right[labels > 0].min()
    wild = np.random.default_rng(0).normal(0, 30, (len(objective.channels), 40, 40)).astype(np.float32)
    probability = objective.cell_probability(wild)
    assert probability.min() >= 0 and probability.max() <= 1


def test_every_decoded_pixel_is_foreground(objective: Objective, disks):
    rng = np.random.default_rng(0)
    target = objective.targets(truth(objective, disks(64, [(20, 20, 12), (44, 40, 13)])))
    maps = (target + rng.normal(0, 0.1, target.shape)).astype(np.float32)
    decoded, foreground = objective.decode(maps), objective.foreground(maps)
    assert foreground.dtype == bool
    # Holes are filled, so single pixels inside a cell may be no foreground.
    assert (foreground | (decoded == 0)).mean() > 0.99


def test_decoding_prints_its_notes_and_without_printing_gives_the_same(objective: Objective, disks, capsys):
    maps = perfect(objective.config, objective.targets(truth(objective, disks(60, [(30, 30, 27)]))))
    quiet = objective.decode_with_notes(maps)
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(objective.decode(maps), quiet.labels)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert all(" ".join(note.split()) in printed for note in quiet.notes)
    assert bool(quiet.notes) == bool(printed)


def test_a_part_is_held_to_the_size_limit_of_its_image(disks):
    objective = build_objective(ObjectiveConfig())
    maps = objective.targets(disks(60, [(30, 30, 27)]))
    assert not objective.decode_with_notes(maps).labels.any()
    frame = Frame(y=100, x=50, height=200, width=200)
    assert objective.decode_with_notes(maps, frame).labels.max() == 1


def test_tuning_tries_settings_that_decoding_uses(objective: Objective, config: ObjectiveConfig, disks):
    labels = truth(objective, disks(64, [(16, 16, 9), (44, 40, 12), (18, 48, 8)]))
    target, rng = objective.targets(labels), np.random.default_rng(1)
    maps = perfect(config, 0.7 * target + rng.normal(0, 0.15, target.shape).astype(np.float32))
    for name, values in objective.tuning_grid().items():
        default = ObjectiveConfig.__dataclass_fields__[name].default
        assert default in values
        settings = [config.with_values({name: value}) for value in values]
        found = [build_objective(s).decode_with_notes(maps).labels.tobytes() for s in settings if s is not None]
        assert len(set(found)) > 1, f"{name} changes nothing"


class Recording(ObjectiveConfig):
    """Settings that note which of them were read."""

    def __getattribute__(self, name: str):
        if name in ObjectiveConfig.__dataclass_fields__:
            object.__getattribute__(self, "__dict__").setdefault("read", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_help_says_of_each_setting_which_kinds_read_it(kind: str, disks):
    config = Recording(kind=kind)
    objective = OBJECTIVES[kind](config)
    config.__dict__["read"].clear()
    target = objective.targets(disks(40, [(20, 20, 9)]))
    objective.loss(*(torch.from_numpy(maps)[None] for maps in (target, target, np.ones((1, 40, 40), np.float32))))
    objective.foreground(target)
    objective.decode(target)
    read = set(config.__dict__["read"])
    if objective.class_count:
        read.add("classes")  # read when the objective is made
    fields = {item.name: item.metadata["applies_to"] for item in dataclasses.fields(ObjectiveConfig)}
    assert read == {name for name, kinds in fields.items() if not kinds or f"kind={kind}" in kinds} - {"kind"}


def test_settings_that_exclude_each_other_are_no_settings():
    config = ObjectiveConfig(kind="distance")
    assert config.with_values({"mask_threshold": 0.6}) is None
    assert config.with_values({"mask_threshold": 0.6, "marker_threshold": 0.7}) is not None


def test_the_vector_field_is_the_targets_own(objective: Objective, config: ObjectiveConfig, disks):
    target = objective.targets(truth(objective, disks(40, [(12, 12, 8)])))
    vectors = objective.vectors(perfect(config, target))
    if not objective.vector_maps:
        assert vectors is None
    else:
        assert vectors is not None
        np.testing.assert_allclose(vectors, target[list(objective.vector_maps[0])], atol=1e-6)


def test_cells_agree_with_the_maps_they_come_from(objective: Objective, config: ObjectiveConfig, disks):
    labels = disks(64, [(20, 20, 10), (44, 44, 10)])
    maps = perfect(config, objective.targets(truth(objective, labels)))
    if not objective.cell_check:
        assert objective.without_check() == config
        with pytest.raises(NotImplementedError):
            objective.cell_errors(maps, find_cells(labels))
        return
    assert objective.cell_errors(maps, find_cells(labels)).max() < 1e-6
    wrong = objective.cell_errors(maps[..., ::-1], find_cells(labels))
    assert wrong.min() > 0.4
    unchecked = build_objective(objective.without_check())
    assert unchecked.decode(-maps).max() >= objective.decode(-maps).max()


def test_classes_are_those_of_the_truth(objective: Objective, config: ObjectiveConfig, disks):
    labels = truth(objective, disks(40, [(12, 12, 8), (28, 26, 9)]))
    maps = perfect(config, objective.targets(labels))
    if not objective.class_count:
        assert objective.has_instances
        for ask in (objective.class_map, objective.class_truth):
            with pytest.raises(NotImplementedError):
                ask(maps)
        return
    classes = objective.class_map(maps)
    assert classes.max() < objective.class_count
    np.testing.assert_array_equal(classes, objective.class_truth(labels))


def test_figures_show_every_map_once(objective: Objective, disks):
    target = objective.targets(truth(objective, disks(24, [(8, 8, 5)])))
    figures = objective.figures(target)
    shown = np.concatenate([values.reshape(-1, 24, 24) for values in figures.values()])
    np.testing.assert_array_equal(shown, target)
    assert all(title and "_" not in title for title in figures)


def test_every_kind_has_an_objective_that_says_what_it_is():
    assert tuple(OBJECTIVES) == get_args(get_type_hints(ObjectiveConfig)["kind"])
    for kind, cls in OBJECTIVES.items():
        objective = build_objective(ObjectiveConfig(kind=kind))
        assert type(objective) is cls and objective.name == kind
        assert len(objective.describe()) > 20 and not objective.describe().endswith(".")


def test_an_unknown_kind_is_refused_with_the_known_ones():
    unknown = dataclasses.replace(ObjectiveConfig())
    object.__setattr__(unknown, "kind", "stars")
    with pytest.raises(ConfigError, match=r"objective.kind: unknown 'stars'; known: flows, distance, semantic"):
        build_objective(unknown)


def test_flow_targets_of_symmetric_cells_turn_exactly(disks):
    objective = build_objective(ObjectiveConfig())
    labels = disks(64, [(15, 15, 9), (40, 30, 12), (20, 50, 7)])
    for turns in range(4):
        turned = objective.transform_targets(objective.targets(labels), Turn.of(flip_y=True, quarters=turns))
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
