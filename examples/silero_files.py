"""silero-vad and what its imports need, from its package: `python silero_files.py DIRECTORY`.

silero_vad.onnx   the package's ONNX file: input, state and the sample rate in; speech probability and new state out
silero_vad.pt     the network inside the package's TorchScript file, with its state as input and output
onnx.npz          input [n, 576], state [n, 2, 128]: 512 samples at 16 kHz behind the 64 before them, and the state there
script.npz        the same under the TorchScript file's names: x, state
request.json      one request

The package's TorchScript file itself keeps the state from call to call. Behind a batching server the next call is another
caller's, so that its certificate fails; the network inside it takes the state as an input, and passes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import silero_vad
import torch

RATE = 16_000
CHUNK = 512
CONTEXT = 64
_SECONDS = 2.0


def write_files(directory: Path) -> None:
    """Write everything that the imports need into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    data = Path(silero_vad.__file__).parent / "data"
    shutil.copyfile(data / "silero_vad.onnx", directory / "silero_vad.onnx")
    network = inner_network(data / "silero_vad.jit")
    torch.jit.save(network, str(directory / "silero_vad.pt"))
    chunks, states = zip(*(walk(network, signal) for signal in (silence(), noise(), vowels())), strict=True)
    inputs, state = np.concatenate(chunks), np.concatenate(states)
    np.savez(directory / "onnx.npz", input=inputs, state=state)
    np.savez(directory / "script.npz", x=inputs, state=state)
    (directory / "request.json").write_text(json.dumps(request(inputs[-1:], state[-1:])), encoding="utf-8")


def inner_network(file: Path) -> torch.jit.ScriptModule:
    """The stateless network for 16 kHz in the package's TorchScript file."""
    return torch.jit.load(str(file))._model.eval()


def walk(network: torch.nn.Module, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given along a signal: chunks behind their context [n, 576], and the states before them [n, 2, 128]."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), signal])
    state, chunks, states = torch.zeros(2, 1, 128), [], []
    for start in range(0, len(signal) - CHUNK + 1, CHUNK):
        chunk = padded[start : start + CONTEXT + CHUNK][None]
        chunks.append(chunk)
        states.append(state.numpy().transpose(1, 0, 2).copy())
        with torch.no_grad():
            _, state = network(torch.from_numpy(chunk), state)
    return np.concatenate(chunks), np.concatenate(states)


def silence() -> np.ndarray:
    """Two seconds of nothing but the last bit of a converter."""
    return (np.random.default_rng(0).normal(size=int(_SECONDS * RATE)) * 3e-5).astype(np.float32)


def noise() -> np.ndarray:
    """Two seconds of a hiss."""
    return (np.random.default_rng(1).normal(size=int(_SECONDS * RATE)) * 0.02).astype(np.float32)


def vowels() -> np.ndarray:
    """Two seconds of sung vowels: pulses of a throat through three resonances of a mouth, in syllables, the pitch falling."""
    count = int(_SECONDS * RATE)
    time = np.arange(count) / RATE
    phase = np.cumsum((140 - 15 * time + 4 * np.sin(2 * np.pi * 5 * time)) / RATE)
    pulses = (np.diff(np.floor(phase), prepend=0.0) > 0).astype(np.float64)
    formants = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
    speech = np.zeros(count)
    for index, resonances in enumerate(formants * 2):
        part = slice(index * count // 8, (index + 1) * count // 8)
        sound = pulses[part]
        for frequency in resonances:
            sound = _resonance(sound, frequency, bandwidth=80 + frequency / 20)
        speech[part] = sound / np.abs(sound).max() * np.hanning(len(sound)) ** 0.3
    return (0.4 * speech + 0.001 * np.random.default_rng(2).normal(size=count)).astype(np.float32)


def request(inputs: np.ndarray, state: np.ndarray) -> dict[str, object]:
    """A request of the Open Inference Protocol v2."""
    tensors = {"input": inputs, "state": state}
    return {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in tensors.items()
        ]
    }


def _resonance(sound: np.ndarray, frequency: float, *, bandwidth: float) -> np.ndarray:
    """A digital resonator of two poles (Klatt 1980)."""
    radius = np.exp(-np.pi * bandwidth / RATE)
    first, second = 2 * radius * np.cos(2 * np.pi * frequency / RATE), -(radius**2)
    out = np.zeros(len(sound) + 2)
    for index, sample in enumerate(sound):
        out[index + 2] = (1 - first - second) * sample + first * out[index + 1] + second * out[index]
    return out[2:]


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
