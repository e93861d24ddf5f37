"""The policy for settings that change when a run is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from dinocell.core.config import load, to_dict
from dinocell.core.errors import ConfigError
from dinocell.core.fields import Settings, field
from dinocell.training.resume import changed_settings, check_resumable, refuse_unused


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    width: int = field(8, "width", at_least=1)
    lr: float = field(0.1, "rate", above=0, resume="free")


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    seed: int = field(0, "seed", at_least=0)
    device: str = field("cpu", "device", resume="neutral")
    net: Inner = field(factory=lambda: Inner(width=16), doc="network")


def made(*overrides: str) -> Recipe:
    return load(Recipe, None, overrides)


def test_a_fixed_setting_is_refused_with_both_values_and_the_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        check_resumable(made("net.width=4", "net.lr=1"), to_dict(made()), where="output_dir: 'a' contains a run")
    assert str(caught.value) == (
        "output_dir: 'a' contains a run with net.width=16 (now 4); set it back to resume it, or give another output_dir"
    )
    with pytest.raises(ConfigError, match=r"seed=0 \(now 1\), net.width=16 \(now 4\); set them back"):
        check_resumable(made("net.width=4", "seed=1"), to_dict(made()), where="x")


def test_a_free_setting_is_announced_and_a_neutral_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    changes = check_resumable(made("net.lr=1", "device=cuda"), to_dict(made()), where="x")
    assert [(change.key, change.old, change.new) for change in changes] == [("net.lr", 0.1, 1.0)]
    told = capsys.readouterr()
    assert "net.lr 0.1 → 1.0" in told.err + told.out and "device" not in told.err + told.out


def test_a_change_that_no_step_would_use_is_refused() -> None:
    refuse_unused(changed_settings(made(), to_dict(made())), "x")
    with pytest.raises(ConfigError, match=r"net.lr=0.1 \(now 1.0\), and no step is left that could use the change"):
        refuse_unused(changed_settings(made("net.lr=1"), to_dict(made())), "x")


def test_where_finished_parts_are_kept_only_neutral_settings_may_change() -> None:
    check_resumable(made("device=cuda"), to_dict(made()), where="x", may_change=("neutral",))
    with pytest.raises(ConfigError, match=r"net.lr=0.1 \(now 1.0\)"):
        check_resumable(made("net.lr=1"), to_dict(made()), where="x", may_change=("neutral",))


def test_what_was_asked_and_what_it_became_are_both_the_run_s() -> None:
    asked, became = to_dict(made("net.width=2")), to_dict(made("net.width=3"))
    for width in (2, 3):
        assert changed_settings(made(f"net.width={width}"), asked, became) == ()
    assert [change.old for change in changed_settings(made("net.width=4"), asked, became)] == [2]


def test_a_setting_that_the_run_did_not_know_had_its_default() -> None:
    old: dict[str, Any] = {"device": "cpu", "gone": 1}
    assert changed_settings(made(), old) == ()
    assert [change.key for change in changed_settings(made("net.width=8"), old)] == ["net.width"]
