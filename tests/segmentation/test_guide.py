"""The guide to segmenting says what is so."""

import re
from pathlib import Path

import pytest

from dinocell.segmentation.outputs.save import FORMATS

GUIDE = Path(__file__).parents[2] / "docs" / "segment.md"


def test_python_of_the_guide_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [snippet] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    exec(compile(snippet, str(GUIDE), "exec"), names)
    assert getattr(names["labels"], "shape", None) == (100, 120)
    assert "t000" in capsys.readouterr().out


def test_the_guide_names_every_format_and_its_file() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    for name, one in FORMATS.items():
        assert f"| `{name}`" in text and f"`STEM{one.suffix}`" in text
