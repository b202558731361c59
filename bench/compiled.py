"""The compiled ensemble beside its models: `python bench/compiled.py`, or with --rounds 9.

The default models are trained once on 8,640 bars, of a file of candles (--candles) or of a
simulated market. Then every figure is measured in turn with its peers, one thread each, and the
ratios are taken round by round: a busy machine is busy for both. Times of one row are wall time;
those of 100,000 rows and of whole processes are CPU time.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

BARS, ROWS = 8_640, 100_000
Timed = Callable[[], object]


def prepare(folder: Path, source: str) -> dict[str, Any]:
    """Train, save, compile and verify; return everything that is measured."""
    import pandas as pd
    from sklearn.ensemble import VotingClassifier

    from crypto_ml.bundle import load_bundle, save_bundle
    from crypto_ml.candles import load_candles
    from crypto_ml.compiled import compile_bundle, load_compiled, verify_compiled
    from crypto_ml.ensemble import ProductionEnsemble
    from crypto_ml.features import feature_matrix, feature_schema
    from crypto_ml.labels import make_labels
    from crypto_ml.models import fit_final
    from crypto_ml.settings import load_settings
    from crypto_ml.simulate import simulate

    defaults = load_settings().defaults
    candles = load_candles(source, days=360) if source else simulate("sim:clear", bars=BARS).candles
    matrix, labels = feature_matrix(candles).dropna(), make_labels(candles)
    rows = matrix.index.intersection(labels.frame.index)
    X, y = matrix.loc[rows], labels.frame.loc[rows, "y"]
    parameters = {name: getattr(defaults, name) for name in defaults.weights}
    models = fit_final(X, y, parameters, seed=defaults.seed, jobs=1)
    market = candles.market
    save_bundle(
        folder / "bundle",
        ProductionEnsemble(models, defaults.weights),
        feature_schema=feature_schema(),
        label_definition=labels.definition,
        market={k: str(getattr(market, k)) for k in ("exchange", "symbol", "timeframe")},
        training_span=(rows[0], rows[-1]),
        run_id="bench",
        git={"commit": "none", "dirty": False},
    )
    data = compile_bundle(folder / "bundle")
    check = verify_compiled(data, load_bundle(folder / "bundle"))
    print(
        f"{len(data) / 1e6:.1f} MB, largest difference {check.max_difference:.2e} on {check.rows}"
    )
    (folder / "ensemble.onnx").write_bytes(data)
    (folder / "models.pickle").write_bytes(pickle.dumps(models))
    voting = VotingClassifier(list(models.items()), voting="soft", weights=[0.4, 0.4, 0.2])
    voting.estimators_, voting.classes_ = list(models.values()), np.array([0, 1])
    rng = np.random.default_rng(0)
    picked = X.to_numpy()[rng.integers(0, len(X), ROWS)]
    return {
        "candles": candles,
        "models": models,
        "voting": voting,
        "frame": X,
        "rows": np.ascontiguousarray(X.to_numpy()),
        "many": picked * (1 + 1e-3 * rng.normal(size=picked.shape)),
        "numba": load_compiled(data, engine="numba"),
        "onnxruntime": load_compiled(data, engine="onnxruntime"),
        "frames": pd.DataFrame,
    }


def three(models: dict[str, Any], rows: Any) -> Any:
    """Ask the three fitted models with NumPy, and weigh."""
    parts = [model.predict_proba(rows)[:, 1] for model in models.values()]
    return 0.4 * parts[0] + 0.4 * parts[1] + 0.2 * parts[2]


def microseconds(work: Callable[[int], object], times: int) -> np.ndarray:
    """Time single calls."""
    found = np.empty(times)
    for number in range(times):
        start = time.perf_counter()
        work(number)
        found[number] = time.perf_counter() - start
    return found * 1e6


def one_row(made: dict[str, Any], rounds: int) -> list[list[str]]:
    """Measure one row: median and 99th percentile, ours and peers in turn."""
    rows, count = made["rows"], len(made["rows"])
    frames = [made["frame"].iloc[[i]] for i in range(50)]
    kinds: dict[str, tuple[Callable[[int], object], int]] = {
        "VotingClassifier, DataFrame": (lambda i: made["voting"].predict_proba(frames[i]), 20),
        "three models, NumPy": (lambda i: three(made["models"], rows[i : i + 1]), 40),
        "ONNX Runtime": (lambda i: made["onnxruntime"].probability(rows[i % count]), 1000),
        "compiled": (lambda i: made["numba"].probability(rows[i % count]), 4000),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (work, times) in kinds.items():
            given = microseconds(work, times)
            found[name].append(np.percentile(given, [50, 99]))
    base = np.array(found["three models, NumPy"])
    limits = {"compiled": "300 and 200"}
    table = []
    for name, values in found.items():
        ratios = np.median(base / np.array(values), axis=0)
        middle = np.median(values, axis=0)
        table.append(
            [f"one row: {name}", f"{middle[0]:,.1f} µs, p99 {middle[1]:,.1f}",
             f"{ratios[0]:,.1f} and {ratios[1]:,.1f}", limits.get(name, "")]
        )  # fmt: skip
    return table


def in_turn(name: str, ours: Timed, peer: Timed, rounds: int, limit: str) -> list[str]:
    """Measure CPU time of two works in turn."""
    times = []
    for _ in range(rounds):
        pair = []
        for work in (peer, ours):
            start = time.process_time()
            work()
            pair.append(time.process_time() - start)
        times.append(pair)
    values = np.array(times)
    ratio = values[:, 0] / values[:, 1]
    spread = f"{np.median(ratio):,.1f} ({ratio.min():,.1f} to {ratio.max():,.1f})"
    return [name, f"{np.median(values[:, 1]) * 1e3:,.2f} ms", spread, limit]


def bar_to_probability(made: dict[str, Any], rounds: int) -> list[str]:
    """Measure a new bar: live features and kernels, beside feature_matrix and the models."""
    from crypto_ml.candles import candles_from_frame
    from crypto_ml.features import feature_matrix, warm_up
    from crypto_ml.live_features import LiveFeatures

    candles, compiled = made["candles"], made["numba"]
    live = LiveFeatures(compiled.feature_names, timeframe_ms=3_600_000)
    times = candles.index.as_unit("ms").asi8.tolist()
    bars = candles.frame[["open", "high", "low", "close", "volume"]].to_numpy()
    half, needed = len(times) // 2, warm_up(compiled.feature_names) + 1
    live.load(np.array(times[:half]), *bars[:half].T)
    window = candles_from_frame(candles.frame.iloc[-needed:], candles.market, "bench")
    place = iter(range(half, len(times)))

    def ours(_: int) -> float:
        at = next(place)
        return float(compiled.probability(live.update(times[at], *bars[at])))

    def peer(_: int) -> Any:
        return made["voting"].predict_proba(feature_matrix(window).iloc[[-1]])

    pairs = [
        (np.median(microseconds(peer, 10)), np.median(microseconds(ours, 400)))
        for _ in range(rounds)
    ]
    values = np.array(pairs)
    ratio = np.median(values[:, 0] / values[:, 1])
    return ["bar to probability", f"{np.median(values[:, 1]):,.1f} µs", f"{ratio:,.0f}", "300"]


OURS = """
from pathlib import Path
from crypto_ml.manifest import verify_files
from crypto_ml.folders import read_folder
from crypto_ml.signatures import trusted_keys, verify_folder
from crypto_ml.compiled import load_compiled
folder = Path({folder!r})
files = read_folder(folder / "signed")
verify_files(files, "bench")
verify_folder(files, trusted_keys(folder / "keys"), required=True)
print(load_compiled(files["ensemble.onnx"]).probability({row}))
"""
PICKLES = """
import pickle, numpy as np, sklearn.ensemble
models = pickle.load(open({folder!r} + "/models.pickle", "rb"))
print([model.predict_proba(np.array([{row}]))[0, 1] for model in models.values()])
"""


def cold_start(made: dict[str, Any], folder: Path, rounds: int) -> list[str]:
    """Measure whole processes: load, verify manifest and signature, first prediction."""
    from crypto_ml.manifest import Git, manifest_bytes
    from crypto_ml.signatures import new_key, sign_folder

    signed = folder / "signed"
    signed.mkdir()
    files = {p.name: p.read_bytes() for p in (folder / "bundle").iterdir() if p.suffix != ".json"}
    files["ensemble.onnx"] = (folder / "ensemble.onnx").read_bytes()
    files["manifest.json"] = manifest_bytes(files, "bench", Git(commit="none", dirty=False), {})
    for name, content in files.items():
        (signed / name).write_bytes(content)
    sign_folder(signed, new_key(folder / "keys", "bench"))
    given = {"folder": str(folder), "row": made["rows"][0].tolist()}

    def process(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-W", "ignore", "-c", code.format(**given)],
                       check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        after = os.times()
        used = after.children_user - before.children_user
        return used + after.children_system - before.children_system

    pairs = np.array([[process(PICKLES), process(OURS)] for _ in range(rounds)])
    ratio = np.median(pairs[:, 0] / pairs[:, 1])
    return ["cold start", f"{np.median(pairs[:, 1]) * 1e3:,.0f} ms", f"{ratio:,.1f}", "3"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--candles", default="")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder), given.candles)
        many = made["many"]
        table = one_row(made, given.rounds)
        table.append(bar_to_probability(made, given.rounds))
        for engine in ("onnxruntime", "numba"):
            name = f"{ROWS:,} rows, {engine}"
            limit = "8" if engine == "numba" else ""
            ours = made[engine]
            table.append(
                in_turn(name, lambda ours=ours: ours.predict_proba(many),
                        lambda: three(made["models"], many), 3, limit)
            )  # fmt: skip
        table.append(cold_start(made, Path(folder), given.rounds))
    print("| what | ours | times faster than scikit-learn | limit |\n|---|---:|---:|---:|")
    for line in table:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
