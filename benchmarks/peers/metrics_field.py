"""Time the field's metrics on FOLDER/labels.npz; run by benchmarks/metrics.py in the peers' environment.

    python benchmarks/peers/metrics_field.py FOLDER [CELLPOSE_METRICS_PY]

Prints one JSON object of CPU milliseconds (best of two, after a first call that compiles).
"""

import importlib.util
import json
import sys
import time
import types
from pathlib import Path

import numpy as np
import tifffile
from ctc_metrics.utils.representations import match


def raise_(error):
    """All that StarDist's matching uses of csbdeep."""
    raise error


def load(name, path):
    """A module from its file, without its package's heavy imports."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best(function):
    """Shortest of two times in milliseconds."""
    times = []
    for _ in range(2):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def main():
    folder = Path(sys.argv[1])
    with np.load(folder / "labels.npz") as file:
        truth, predicted = file["truth"], file["predicted"]
    for name, labels in (("truth", truth), ("predicted", predicted)):
        tifffile.imwrite(folder / f"{name}.tif", labels)
    for name in ("csbdeep", "csbdeep.utils", "cellpose", "cellpose.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["csbdeep.utils"]._raise = raise_
    stardist = load(
        "stardist_matching", Path(importlib.util.find_spec("stardist").submodule_search_locations[0], "matching.py")
    )
    times = {"ctcmetrics_seg_det_ms": best(lambda: match(str(folder / "truth.tif"), str(folder / "predicted.tif")))}
    stardist.matching(truth[:64, :64], predicted[:64, :64])
    times["stardist_ap_ms"] = best(lambda: stardist.matching(truth, predicted, (0.5, 0.75, 0.9)))
    if len(sys.argv) > 2 and sys.argv[2]:
        cellpose = load("cellpose.metrics", sys.argv[2])
        times["cellpose_ap_ms"] = best(lambda: cellpose.average_precision(truth, predicted))
    print(json.dumps(times))


if __name__ == "__main__":
    main()
