"""Tables with one row per cell: measures as CSV, embeddings as Parquet."""

from __future__ import annotations

import io
from pathlib import Path

from dinocell.core.files import AtomicFile
from dinocell.segmentation.outputs.format import Format, PlaneOutput, encoded


def _write_csv(path: Path, output: PlaneOutput) -> None:
    with AtomicFile(path) as temporary:
        output.table.to_csv(temporary, index=False, float_format="%.6g")


def _embeddings(output: PlaneOutput) -> bytes:
    file = io.BytesIO()
    output.result.embedding_table().to_parquet(file, engine="pyarrow", index=False)
    return file.getvalue()


CSV = Format(name="csv", suffix="_cells.csv", write=_write_csv)
EMBEDDINGS = Format(
    name="embeddings",
    suffix="_embeddings.parquet",
    write=encoded(_embeddings),
    package="pyarrow",
    extra="parquet",
    needs_embeddings=True,
)
