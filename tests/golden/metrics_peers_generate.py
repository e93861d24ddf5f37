"""Record what other tools' metrics give on small label images, into metrics_peers.json.

Run in an environment of its own with the peers (they are no dependency of the project):
    pip install py-ctcmetrics networkx; pip install --no-deps stardist; pip install scipy scikit-image tqdm
    git show HEAD:cellpose/metrics.py > cellpose_metrics.py        # in a clone of MouseLand/cellpose
    python tests/golden/metrics_peers_generate.py cellpose_metrics.py COMMIT
"""

import importlib.metadata
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import networkx
import numpy as np
import tifffile
from ctc_metrics.scripts.evaluate import evaluate_sequence

HERE = Path(__file__).parent
THRESHOLDS = (0.3, 0.5, 0.75, 0.9)


def load(name, path, stubs=()):
    """A peer's module from its file, without its package's heavy imports."""
    for stub in stubs:
        sys.modules.setdefault(stub, types.ModuleType(stub))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def disks(rng, size, n, radius):
    labels = np.zeros((size, size), np.int32)
    ys, xs = np.mgrid[:size, :size]
    for index in range(1, n + 1):
        y, x, r = (*rng.uniform(0, size, 2), rng.uniform(radius / 2, radius))
        labels[(ys - y) ** 2 + (xs - x) ** 2 < r * r] = index
    return labels


def cases():
    """name → (truth, prediction); numbered ones have background and objects in both, the others are edge cases."""
    rng = np.random.default_rng(20)
    found = {}
    for number in range(4):
        truth = disks(rng, 64, 14, 9)
        found[f"moved {number}"] = truth, np.roll(truth, (number, 2 * number), (0, 1))
        found[f"unrelated {number}"] = truth, disks(rng, 64, 12, 10)
        merged = truth.copy()
        merged[(merged > 0) & (merged % 3 == 0)] = 1
        found[f"merged {number}"] = truth, merged
        split = np.where((truth > 0) & (np.mgrid[:64, :64][1] % 16 < 6), truth + 100, truth)
        found[f"split {number}"] = truth, split
        found[f"missed and spurious {number}"] = np.where(truth > 4, truth, 0), np.where(truth < 10, truth, 0)
        blocks = rng.integers(0, 9, (2, 8, 8)).repeat(6, 1).repeat(6, 2)
        found[f"blocks, ids with gaps {number}"] = blocks[0] * 5, blocks[1] * 3
    full = np.arange(1, 17).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    found["no background"] = full, full
    found["both empty"] = np.zeros((16, 16), int), np.zeros((16, 16), int)
    square = np.zeros((16, 16), int)
    square[4:12, 4:12] = 1
    found["prediction empty"] = square, np.zeros((16, 16), int)
    found["truth empty"] = np.zeros((16, 16), int), square
    half = np.where(np.arange(16) < 8, square, 0)
    found["IoU of exactly one half"] = square, half
    found["uint16 ids past 32,767 (one cell, perfect)"] = (
        np.where(square > 0, 40_001, 0),
        np.where(square > 0, 40_001, 0),
    )
    return found


def sequence(pairs):
    """SEG and DET of py-ctcmetrics on the images as one sequence, each image twice: its program needs links in time."""
    with tempfile.TemporaryDirectory() as folder:
        result, truth = Path(folder, "01_RES"), Path(folder, "01_GT")
        for part in (result, truth / "TRA", truth / "SEG"):
            part.mkdir(parents=True)
        tracks = {"res": [], "man": []}
        for frame, (true, predicted) in enumerate(pair for pair in pairs for _ in range(2)):
            # ids of their own in each pair of frames: every object is a track of two frames
            true, predicted = (np.where(a > 0, a + 1000 * (frame // 2), 0).astype(np.uint16) for a in (true, predicted))
            tifffile.imwrite(result / f"mask{frame:03d}.tif", predicted)
            tifffile.imwrite(truth / "TRA" / f"man_track{frame:03d}.tif", true)
            tifffile.imwrite(truth / "SEG" / f"man_seg{frame:03d}.tif", true)
            for key, labels in (("res", predicted), ("man", true)):
                tracks[key] += [f"{i} {frame} {frame + 1} 0" for i in np.unique(labels) if i and frame % 2 == 0]
        (result / "res_track.txt").write_text("\n".join(tracks["res"]))
        (truth / "TRA" / "man_track.txt").write_text("\n".join(tracks["man"]))
        return attempt(
            lambda: {k: evaluate_sequence(str(result), str(truth), ["SEG", "DET"], 1)[k] for k in ("SEG", "DET")}
        )


def attempt(function):
    """The value, or the name of the error that the peer raises."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]


def networkx_mma(truth, predicted):
    """MMA by a general maximum-weight matching on the graph of overlaps."""
    both = (truth > 0) & (predicted > 0)
    pairs, counts = np.unique(np.stack([truth[both], predicted[both]]), axis=1, return_counts=True)
    graph = networkx.Graph()
    for (a, b), weight in zip(pairs.T.tolist(), counts.tolist(), strict=True):
        graph.add_edge(("truth", a), ("predicted", b), weight=weight)
    total = sum(graph.edges[edge]["weight"] for edge in networkx.max_weight_matching(graph))
    union = int(((truth > 0) | (predicted > 0)).sum())
    return total / union if union else None


def raise_(error):
    """All that StarDist's matching uses of csbdeep."""
    raise error


def runs(labels):
    """[value, length, value, length, …] of the flattened image."""
    flat = labels.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return np.stack([flat[starts], np.diff(starts, append=flat.size)], axis=1).ravel().tolist()


def main():
    cellpose = load("cellpose.metrics", sys.argv[1], ["cellpose", "cellpose.utils"])
    stardist_file = importlib.util.find_spec("stardist").submodule_search_locations[0] + "/matching.py"
    sys.modules["csbdeep"], sys.modules["csbdeep.utils"] = (
        types.ModuleType("csbdeep"),
        types.ModuleType("csbdeep.utils"),
    )
    sys.modules["csbdeep.utils"]._raise = raise_
    stardist = load("stardist_matching", stardist_file)
    rows = []
    for name, (truth, predicted) in cases().items():
        dense = truth.max() < 10_000  # Cellpose's table is (largest id + 1)²: 12.8 GB for id 40,001
        ap = (
            attempt(lambda t=truth, p=predicted: cellpose.average_precision(t, p, list(THRESHOLDS))[0].tolist())
            if dense
            else None
        )
        star = [attempt(lambda t=truth, p=predicted, h=h: stardist.matching(t, p, h)._asdict()) for h in THRESHOLDS]
        keys = ("tp", "fp", "fn", "accuracy", "panoptic_quality", "mean_matched_score")
        rows.append(
            {
                "name": name,
                "shape": truth.shape,
                "truth": runs(truth),
                "prediction": runs(predicted),
                "ctc": sequence([(truth, predicted)]),
                "cellpose_ap": ap,
                "stardist": [{k: float(s[k]) for k in keys} if isinstance(s, dict) else s for s in star],
                "networkx_mma": networkx_mma(truth, predicted),
            }
        )
    usual = [pair for name, pair in cases().items() if name[-1].isdigit()]
    content = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("py-ctcmetrics", "stardist", "networkx", "numpy")
        }
        | {"cellpose commit": sys.argv[2]},
        "thresholds": THRESHOLDS,
        "ctc_sequence_of_all_numbered": sequence(usual),
        "cases": rows,
    }
    (HERE / "metrics_peers.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
