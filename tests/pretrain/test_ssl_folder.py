"""The ssl/ folder is for running, not for importing: `import ssl` stays the standard library's."""

import subprocess
import sys
from pathlib import Path


def test_import_ssl_at_the_root_is_the_standard_library(repository: Path) -> None:
    code = "import ssl; print(ssl.OPENSSL_VERSION, ssl.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert "OpenSSL" in result.stdout and str(repository) not in result.stdout
    assert not list((repository / "ssl").rglob("__init__.py"))


def test_the_script_is_a_thin_entry_point(repository: Path) -> None:
    for script in (repository / "ssl").glob("*.py"):
        assert len(script.read_text().splitlines()) <= 40, script
