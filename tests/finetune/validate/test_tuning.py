"""Decoding is chosen on the val split: what the grid says is what decoding with those settings gives."""

import dataclasses

import numpy as np
import pytest

from dinocell.core.config import from_dict
from dinocell.finetune.config import FinetuneConfig
from dinocell.finetune.validate.tuning import Tuning, candidates, choose, score_settings
from dinocell.finetune.validate.validator import decoding_while_training, image_score
from dinocell.metrics import score_image
from dinocell.objectives import ObjectiveConfig, build_objective


def disks() -> np.ndarray:
    labels = np.zeros((96, 96), np.int32)
    grid = np.mgrid[0:96, 0:96]
    for number, (y, x) in enumerate([(16, 16), (16, 60), (50, 20), (52, 70), (80, 45)], 1):
        labels[np.hypot(grid[0] - y, grid[1] - x) < 9] = number
    return labels


def raw_maps(objective: ObjectiveConfig, labels: np.ndarray) -> np.ndarray:
    """Noisy maps as a young network gives them: right in direction, short in length."""
    maps = build_objective(objective).targets(labels)
    noise = np.random.default_rng(0).normal(0, 0.05, maps.shape)
    if objective.kind == "flows":
        maps = maps * np.array([0.3, 0.3, 1.0], np.float32)[:, None, None]
    elif objective.kind == "semantic":
        maps = 8 * maps - 4
    return (maps + noise).astype(np.float32)


@pytest.mark.parametrize("kind", ["flows", "distance", "semantic"])
def test_grid_scores_equal_decoding_with_each_setting(kind):
    recipe = ObjectiveConfig(kind=kind)
    labels = disks()
    maps = raw_maps(recipe, labels)
    settings = candidates(recipe)[::7]
    expected = [
        image_score(score_image(labels, build_objective(s).decode_with_notes(maps).labels), "SEG") for s in settings
    ]
    assert score_settings(maps, labels, settings, "SEG") == expected


def test_short_flows_are_rescued_by_another_flow_check():
    """Flows of length 0.3 differ from unit ones by 0.49 in the mean square: the check at 0.4 drops every cell."""
    recipe = ObjectiveConfig(flow_error=0.4)
    labels = disks()
    settings = candidates(recipe)
    scores = dict(zip(settings, score_settings(raw_maps(recipe, labels), labels, settings, "MMA"), strict=True))
    chosen = choose(scores, recipe)
    assert scores[recipe] == 0.0
    assert scores[chosen] > 0.9 and chosen.flow_error in (0.0, 0.8, 1.2)
    tuning = Tuning(metric="MMA", images=1, scores=scores, recipe=recipe, chosen=chosen)
    assert f"flow_error 0.4 → {chosen.flow_error:g}" in tuning.sentence()
    assert "threshold stays 0.5" in tuning.sentence() and "min_size stays 15" in tuning.sentence()


def test_the_recipe_stays_unless_another_setting_gains():
    recipe = ObjectiveConfig()
    settings = candidates(recipe)
    assert choose(dict.fromkeys(settings, 0.5) | {settings[3]: 0.501}, recipe) == recipe
    better = dataclasses.replace(recipe, min_size=60)
    assert choose(dict.fromkeys(settings, 0.5) | {better: 0.6, settings[0]: 0.601}, recipe) == better


def test_candidates_hold_the_recipe_and_only_valid_pairs():
    recipe = ObjectiveConfig(kind="distance", marker_threshold=0.2, mask_threshold=0.1)
    settings = candidates(recipe)
    assert recipe in settings
    assert all(s.mask_threshold < s.marker_threshold for s in settings)


def test_the_flow_check_is_left_out_of_validations_only_where_it_is_chosen_later():
    assert decoding_while_training(FinetuneConfig()).flow_error == 0.0
    fixed = from_dict(FinetuneConfig, {"validate": {"tune_decoding": False}})
    assert decoding_while_training(fixed).flow_error == 0.4


def test_no_smallest_cell_above_those_annotated_is_tried() -> None:
    recipe = ObjectiveConfig(kind="flows", min_size=15)
    assert {s.min_size for s in candidates(recipe)} == {15, 30, 60, 120, 240}
    assert {s.min_size for s in candidates(recipe, small_area=61.5)} == {15, 30, 60}
    assert {s.min_size for s in candidates(recipe, small_area=3.0)} == {15}  # the recipe's own is always tried
