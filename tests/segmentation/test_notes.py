"""Notes carry their severity, and no program reads their words."""

import ast
from pathlib import Path

import pytest

from dinocell.segmentation.notes import Note, severity_of, tell

NAMES = {"note", "notes", "reason", "text", "said", "sentence"}
READERS = {"startswith", "endswith", "find", "index", "count", "match", "search", "fullmatch", "partition", "split"}
# where notes are made and passed on
FOLDERS = ("segmentation", "napari", "adapt")


def names(node: ast.AST) -> set[str]:
    plain = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return plain | {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}


def reads_words(source: str) -> list[str]:
    """Expressions that look for words in a note."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=subject, attr=attr)) if attr in READERS:
                subjects = [subject, *node.args]
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[container]):
                subjects = [container]
            case ast.Compare(ops=[ast.Eq() | ast.NotEq()], left=left, comparators=[right]):
                subjects = [part for part in (left, right) if not isinstance(part, ast.Constant | ast.Attribute)]
            case _:
                continue
        if any(names(subject) & NAMES for subject in subjects):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "source",
    [
        "note.startswith('diameter auto:')",
        "quiet = 'scaled by' in note.text",
        "any('not sure' in str(note) for note in result.notes)",
        "re.search('constant', outcome.reason)",
        "note == 'the image is constant'",
    ],
)
def test_reading_of_words_is_seen(source: str) -> None:
    assert reads_words(source)


def test_no_behaviour_hangs_on_the_words_of_a_note(repository: Path) -> None:
    files = [file for folder in FOLDERS for file in sorted((repository / "dinocell" / folder).rglob("*.py"))]
    assert files
    found = {file.name: words for file in files if (words := reads_words(file.read_text(encoding="utf-8")))}
    assert found == {}


def test_the_most_severe_note_counts() -> None:
    info, warning = Note(text="scaled", severity="info"), Note(text="look", severity="warning")
    assert severity_of([]) == severity_of([info, info]) == "info"
    assert severity_of([info, warning]) == "warning"


def test_warnings_go_where_warnings_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    tell("as usual", "info")
    tell("look here", "warning")
    out, err = capsys.readouterr()
    assert "as usual" in out and "look here" in err and "look here" not in out
