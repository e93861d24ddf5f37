"""What an adaptation concludes from numbers, and the settings it derives from a model."""

import numpy as np
import pytest

from dinocell.adapt.config import crop_side, make_config
from dinocell.adapt.judge import Stability, changed_images, judge_control, judge_scores, judge_stability
from dinocell.metrics import ImageScores, score_image
from dinocell.models import ModelCard, ViTConfig


def scored(good: int, of: int = 10) -> ImageScores:
    """`of` cells of 100 px, of which `good` are found exactly and the others not at all."""
    truth = np.zeros((of, 200), np.int32)
    truth[:, :100] = np.arange(1, of + 1)[:, None]
    return score_image(truth, np.where(truth <= good, truth, 0))


def images(*good: int) -> list[ImageScores]:
    return [scored(number) for number in good]


OFF = (3, 5, 4, 6, 4, 5)
BETTER = (7, 8, 8, 9, 7, 9)


def test_the_adapted_model_is_chosen_where_it_beats_both_others() -> None:
    verdict, change = judge_scores({"original": images(*OFF), "adapted": images(*BETTER), "control": images(*OFF)})
    assert (verdict.choice, verdict.helped) == ("adapted", True)
    assert change["control"]["MMA"].value == pytest.approx((sum(BETTER) - sum(OFF)) / 60)


def test_where_the_labels_alone_do_as_well_the_control_is_chosen_and_stage_one_gets_no_credit() -> None:
    verdict, _ = judge_scores({"original": images(*OFF), "adapted": images(*BETTER), "control": images(*BETTER)})
    assert (verdict.choice, verdict.helped) == ("control", None)
    assert judge_control(images(*OFF), images(*BETTER)).choice == "control"
    assert judge_control(images(*OFF), images(*OFF)).choice == "original"


def test_a_worse_model_is_called_worse() -> None:
    verdict, _ = judge_scores({"original": images(*BETTER), "adapted": images(*OFF)})
    assert (verdict.choice, verdict.helped) == ("original", False)
    assert any("did not help" in sentence for sentence in verdict.sentences)


def test_three_images_decide_nothing() -> None:
    verdict, _ = judge_scores({"original": images(1, 2, 1), "adapted": images(9, 9, 9), "control": images(1, 2, 1)})
    assert (verdict.choice, verdict.helped) == ("original", None)
    assert "too few" in " ".join(verdict.sentences)


def steady(changes: tuple[int, ...], agreement: tuple[int, ...]) -> Stability:
    return Stability(changes=tuple(images(*changes)), agreement=tuple(images(*agreement)))


def test_without_labels_a_steadier_model_of_the_same_mind_is_a_sign_not_a_proof() -> None:
    verdict, _ = judge_stability(steady(OFF, (10,) * 6), steady(BETTER, (9,) * 6))
    assert (verdict.choice, verdict.helped) == ("adapted", None)
    assert "not a proof" in " ".join(verdict.sentences)


def test_a_model_that_finds_nothing_is_perfectly_steady_and_refused() -> None:
    verdict, _ = judge_stability(steady(OFF, (10,) * 6), steady((10,) * 6, (0,) * 6))
    assert (verdict.choice, verdict.helped) == ("original", False)


def test_as_steady_as_before_is_no_help() -> None:
    verdict, _ = judge_stability(steady(OFF, (10,) * 6), steady(OFF, (10,) * 6))
    assert (verdict.choice, verdict.helped) == ("original", None)


def test_small_changes_move_no_cell() -> None:
    labels = np.zeros((40, 56), np.int32)
    labels[4:12, 5:20] = 1
    labels[20:35, 30:50] = 2
    image = (40 + 100 * labels).astype(np.uint8)
    changes = changed_images(image, seed=0)
    assert len(changes) == 5
    for name, (changed, undo) in changes.items():
        back = undo(changed)  # the levels survive noise and blur away from edges: cut halfway between them
        found = np.digitize(back, [80, 185])
        agreement = (found == labels).mean()
        assert agreement > 0.97 if name in ("noisier", "softer", "darker") else agreement == 1, name
        assert changed.shape in (image.shape, image.shape[::-1])


@pytest.mark.parametrize(("crop", "inner", "patch"), [(256, 256, 8), (512, 896, 8), (128, 128, 8), (224, 224, 14)])
def test_stage_one_shows_cells_at_the_models_own_scale(crop: int, inner: int, patch: int) -> None:
    vit = ViTConfig(arch="vit_tiny", patch_size=patch, image_size=inner, in_channels=1)
    card = ModelCard(crop_size=crop, input_size=inner, backbone=vit)
    side = crop_side(card)
    assert side >= crop
    config = make_config(["images"], "model", "out", card=card, count=10)
    augment = config.pretrain.augment
    assert augment.global_size % patch == augment.local_size % patch == 0
    for pixels, (low, high) in (
        (augment.global_size, augment.global_scale),
        (augment.local_size, augment.local_scale),
    ):
        unscaled = (pixels * crop / inner / side) ** 2  # the share of a curated crop that fills it one to one
        assert low <= unscaled <= high
    assert config.pretrain.optim.total_steps == 300
    assert config.curate.crops_per_image * 10 >= 150
