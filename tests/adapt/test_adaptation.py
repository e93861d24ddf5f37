"""`dinocell adapt` on a tiny model: what it leaves, that it goes on where it stopped, and its mistakes in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dinocell import adapt as adaptation
from dinocell.adapt.pseudo import chosen_crops, unsure_pixels
from dinocell.cli.train import adapt
from dinocell.core.errors import EXIT_STOPPED, ConfigError, DataError
from dinocell.images.read import read_image
from dinocell.labels.files import read_labels
from dinocell.models import load_backbone, load_model_folder
from dinocell.report import Report
from dinocell.segmentation import Segmenter
from dinocell.training.signals import StopSignal

QUICK = [
    "--steps=4",
    "--device=cpu",
    "pretrain.dino_head={prototypes: 32, hidden: 32, bottleneck: 16}",
    "pretrain.ibot_head={prototypes: 32, hidden: 32, bottleneck: 16}",
    "pretrain.augment.global_size=32",
    "pretrain.augment.local_crops=0",
    "pretrain.optim.batch_size=2",
    "pretrain.monitor.every=2",
    "pretrain.tensorboard=false",
    "pretrain.precision=float32",
    "pretrain.data.workers=0",
    "finetune.precision=float32",
    "finetune.data.workers=0",
    "finetune.data.check_images=2",
    "finetune.train.steps=3",
    "finetune.train.batch_size=2",
    "finetune.validate.times=1",
    "curate.workers=1",
    "check_images=4",
]
# The tiny model tells disks from ground perfectly, so the probe cannot rise; the rank of the features is free to.
BY_RANK = ["pretrain.monitor.best_by=rankme_patch", "pretrain.monitor.labelled=[]", "pretrain.monitor.patience=0"]


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the pages: half the time of a tiny run is spent drawing."""
    for name in ("line_chart", "histogram", "bars"):
        monkeypatch.setattr(Report, name, lambda *_, **__: None)


def command(images: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [str(images), "--from", str(model), "--out", str(out), *QUICK, *more]


@pytest.fixture(scope="module")
def adapted(unlabelled: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapted") / "out"
    assert adaptation.run(adapt.parse(command(unlabelled, model, out, *BY_RANK))).exit_code == 0
    return out


def test_the_best_teacher_is_the_backbone_and_a_decoder_that_fits_it_stays(adapted: Path, model: Path) -> None:
    teacher = load_backbone(adapted / "stage1", in_channels=None).state_dict()
    new, original = (load_model_folder(folder)[0] for folder in (adapted / "adapted", model))
    for name, value in new.backbone.state_dict().items():
        torch.testing.assert_close(value, teacher[name], msg=name)
    assert any(not torch.equal(v, original.backbone.state_dict()[n]) for n, v in teacher.items() if n != "mask_token")
    for name, value in original.decoder.state_dict().items():
        assert torch.equal(new.decoder.state_dict()[name], value), name
    note = json.loads((adapted / "adapted" / "adapted.json").read_text())
    assert note["agreement_as_it_is"] >= 0.95
    assert not (adapted / "aligned").exists()


def test_a_decoder_that_fits_no_more_is_re_aligned(
    unlabelled: Path, plain_model: Path, tmp_path: Path, no_charts: None
) -> None:
    """Stage 1 with a rate that changes the features, and a teacher that follows at once."""
    harsh = ["pretrain.optim.base_lr=0.01", "pretrain.teacher.momentum=0.2", "finetune.train.steps=30"]
    out = tmp_path / "out"
    given = command(unlabelled, plain_model, out, *BY_RANK, *harsh, "finetune.train.lr=0.003")
    assert adaptation.run(adapt.parse(given)).exit_code == 0
    note = json.loads((out / "adapted" / "adapted.json").read_text())
    assert note["agreement_as_it_is"] < 0.8 < note["agreement_re_aligned"]
    assert note["decoder"] == "trained"
    teacher = load_backbone(out / "stage1", in_channels=None).state_dict()
    new, original = (load_model_folder(folder)[0] for folder in (out / "adapted", plain_model))
    for name, value in new.backbone.state_dict().items():  # frozen while the decoder was trained
        torch.testing.assert_close(value, teacher[name], msg=name)
    before = original.decoder.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in new.decoder.state_dict().items())


def test_re_alignment_that_agrees_less_leaves_the_decoder_alone(
    unlabelled: Path, plain_model: Path, tmp_path: Path, no_charts: None
) -> None:
    """A short stage 1, no change that is allowed, and a training that spoils the decoder."""
    out, spoilt = tmp_path / "out", ["agrees=1", "finetune.train.lr=1"]
    assert adaptation.run(adapt.parse(command(unlabelled, plain_model, out, *BY_RANK, *spoilt))).exit_code == 0
    note = json.loads((out / "adapted" / "adapted.json").read_text())
    assert note["agreement_re_aligned"] < note["agreement_as_it_is"]
    assert note["decoder"] == "the original's"
    new, original = (load_model_folder(folder)[0] for folder in (out / "adapted", plain_model))
    for name, value in original.decoder.state_dict().items():
        assert torch.equal(new.decoder.state_dict()[name], value), name


def test_the_crops_carry_the_labels_that_the_model_itself_gives(adapted: Path, model: Path) -> None:
    segmenter = Segmenter(model, device="cpu")
    paths = sorted((adapted / "pseudo" / "train" / "images").iterdir())
    assert paths
    for path in paths[:3]:
        found = segmenter.segment(path)
        np.testing.assert_array_equal(read_labels(adapted / "pseudo" / "train" / "masks" / path.name), found.labels)
        ignored = read_image(adapted / "pseudo" / "train" / "ignore" / path.name).array
        np.testing.assert_array_equal(ignored, unsure_pixels(found))
        assert not (ignored.astype(bool) & (found.labels > 0)).any()


def test_val_crops_are_of_other_images_than_those_of_train(tmp_path: Path) -> None:
    lines = ["crop,source,status", *(f"crops/{s}_{n}.png,{s}.tif,kept" for s in "abcde" for n in range(6))]
    (tmp_path / "manifest.csv").write_text("\n".join([*lines, "crops/f_0.png,f.tif,blurred"]) + "\n")
    files, held = chosen_crops(tmp_path, seed=0)
    assert len(files) == 30
    val, train = ({path.name[0] for path in part} for part in (files[:held], files[held:]))
    assert (len(val), held) == (1, 6)
    assert val | train == set("abcde")
    assert not val & train
    one = ["crop,source,status", *(f"crops/{n}.png,a.tif,kept" for n in range(8))]
    (tmp_path / "manifest.csv").write_text("\n".join(one) + "\n")
    assert [len(chosen_crops(tmp_path, seed=0)[0]), chosen_crops(tmp_path, seed=0)[1]] == [8, 4]


def test_the_folder_holds_a_model_to_use_and_a_page_that_says_why(adapted: Path, unlabelled: Path) -> None:
    summary = json.loads((adapted / "summary.json").read_text())
    source = {"adapted": adapted / "adapted"}.get(summary["choice"])
    labels = Segmenter(adapted / "model", device="cpu").segment(unlabelled / "field0.png").labels
    assert labels.shape == (96, 96)
    if source is not None:
        np.testing.assert_array_equal(labels, Segmenter(source, device="cpu").segment(unlabelled / "field0.png").labels)
    meta = json.loads((adapted / "model" / "config.json").read_text())
    assert meta["adaptation"]["choice"] == summary["choice"]
    page = (adapted / "report.html").read_text()
    for words in ("Stability", "principal components", "Segmentations before and after", "this is not a score"):
        assert words in page
    assert all(sentence.split(";")[0].split("(")[0] in page for sentence in summary["why"][1:])


def test_the_same_command_again_trains_nothing(adapted: Path, unlabelled: Path, model: Path) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in adapted.rglob("*.pt")}
    assert stamps
    assert adaptation.run(adapt.parse(command(unlabelled, model, adapted, *BY_RANK))).exit_code == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in adapted.rglob("*.pt")}
    again = command(unlabelled, model, adapted, *BY_RANK)
    assert adaptation.run(adapt.parse([*again, "pretrain.log_every=3", "finetune.data.workers=1"])).exit_code == 0
    with pytest.raises(ConfigError, match=r"pretrain.optim.base_lr=2e-05 \(now 0.001\); set it back"):
        adaptation.run(adapt.parse([*again, "pretrain.optim.base_lr=1e-3"]))
    with pytest.raises(ConfigError, match=r"seed.*another folder"):
        adaptation.run(adapt.parse(command(unlabelled, model, adapted, *BY_RANK, "--seed=1")))


def test_stopped_in_stage_one_and_run_again_it_is_the_undisturbed_adaptation(
    adapted: Path, unlabelled: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_charts: None
) -> None:
    asked = 0

    def requested(self: StopSignal) -> bool:
        nonlocal asked
        asked += 1
        self._received = int(asked == 2)
        return undisturbed(self)

    undisturbed = StopSignal.requested
    monkeypatch.setattr(StopSignal, "requested", requested)
    line = command(unlabelled, model, tmp_path / "out", *BY_RANK)
    assert adaptation.run(adapt.parse(line)).exit_code == EXIT_STOPPED
    assert not (tmp_path / "out" / "model").exists()
    assert adaptation.run(adapt.parse(line)).exit_code == 0
    first, second = (load_model_folder(out / "adapted")[0] for out in (adapted, tmp_path / "out"))
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, msg=name)


def test_features_that_never_got_better_leave_the_original_model(
    labelled: Path, unlabelled: Path, model: Path, tmp_path: Path, no_charts: None
) -> None:
    more = ["--labels", str(labelled), "control=false", "pretrain.augment.global_size=64"]
    assert adaptation.run(adapt.parse(command(unlabelled, model, tmp_path / "out", *more))).exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["choice"], summary["helped"], summary["best_step"]) == ("original", False, 0)
    assert "Use the original model." in (tmp_path / "out" / "report.html").read_text()
    old, new = (load_model_folder(folder)[0].state_dict() for folder in (model, tmp_path / "out" / "model"))
    assert all(torch.equal(new[name], value) for name, value in old.items())


def test_labels_train_the_decoder_and_judge_on_the_test_split(
    labelled: Path, unlabelled: Path, model: Path, tmp_path: Path, no_charts: None
) -> None:
    more = ["--labels", str(labelled), *BY_RANK]
    assert adaptation.run(adapt.parse(command(unlabelled, model, tmp_path / "out", *more))).exit_code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {name: len(rows) for name, rows in summary["images"].items()} == {"original": 4, "adapted": 4, "control": 4}
    truth = [int(read_labels(path).max()) for path in sorted((labelled / "test" / "masks").iterdir())]
    assert [row["n_truth"] for row in summary["images"]["adapted"]] == truth
    control, original = (load_model_folder(f)[0].backbone for f in (tmp_path / "out" / "control" / "model", model))
    for name, value in original.state_dict().items():  # no stage 1 in the control
        assert torch.equal(control.state_dict()[name], value), name


def test_labels_that_are_no_data_set_are_refused_before_anything_runs(
    unlabelled: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(ConfigError, match="neither images/ and masks/"):
        adaptation.run(adapt.parse(command(unlabelled, model, tmp_path / "out", "--labels", str(tmp_path / "labels"))))
    assert not (tmp_path / "out").exists()


def test_a_model_that_sees_nothing_cannot_adapt_by_itself(model: Path, tmp_path: Path) -> None:
    import cv2

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(3):
        plain = np.linspace(90, 110, 128)[:, None] + rng.normal(0, 1, (128, 128)) + 20 * (rng.random((128, 128)) > 0.99)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), plain.clip(0, 255).astype(np.uint8))
    lenient = ["curate.filters={min_focus: 0, min_structure: 0, min_occupied: 0, duplicates: false}"]
    blind = tmp_path / "blind"
    blind.mkdir()
    for file in model.iterdir():
        (blind / file.name).write_bytes(file.read_bytes())
    meta = json.loads((blind / "config.json").read_text())
    meta["objective"]["threshold"] = 0.999
    meta["objective"]["min_size"] = 10_000
    (blind / "config.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"finds 0 cells.*--labels"):
        adaptation.run(adapt.parse(command(tmp_path / "images", blind, tmp_path / "out", *lenient)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "needs images"),
        (["/absent", "--from", "{model}", "--out", "x"], "/absent"),
        (["{images}", "--from", "{model}"], "needs images"),
        (["{images}", "--from", "/absent", "--out", "x"], "/absent"),
        (["{images}", "--from", "{model}", "--out", "{images}/out"], "outside"),
        (["{images}", "--from", "{model}", "--out", "x", "--labels", "/absent"], "--labels"),
        (["{images}", "--from", "{model}", "--out", "x", "--steps", "many"], "--steps"),
        (["{images}", "--from", "{model}", "--out", "x", "--steps", "0"], "--steps"),
        (["{images}", "--from", "{model}", "--out", "x", "pretrain.optim.base_lrr=1"], "pretrain.optim.base_lr"),
        (["{images}", "--from", "{model}", "--out", "x", "--wrong"], "--wrong"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: list[str], words: str, unlabelled: Path, model: Path) -> None:
    filled = [part.format(images=unlabelled, model=model) for part in arguments]
    with pytest.raises(ConfigError, match=words):
        adapt.parse(filled)
