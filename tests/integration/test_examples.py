"""Each example goes from its package to answered requests: its script runs on a live platform, and its answers are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from support.live_platform import LivePlatform

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def examples(platform: LivePlatform, tmp_path_factory: pytest.TempPathFactory):
    """Run a script by name; its standard output and the directory with its files."""

    def run(name: str) -> tuple[str, Path]:
        work = tmp_path_factory.mktemp(name)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        # The fastest certificate is not what this test is about: one variant is enough.
        env = {**platform.env, "PATH": path, "GATEWAY": platform.settings.gateway_url, "VARIANTS": "onnx-fp32"}
        done = subprocess.run(
            ["sh", str(EXAMPLES / f"{name}.sh"), str(work)],
            env=env,
            cwd=platform.home.parent,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{name}.sh: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, work

    return run


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def _labels(line: str) -> list[str]:
    """The names of an answer of TorchServe's path, the best first."""
    answer = json.loads(line)
    return [name for name, _ in sorted(answer.items(), key=lambda item: -item[1])]


def _infer(platform: LivePlatform, model: str, inputs) -> dict[str, np.ndarray]:
    """Answers of the Open Inference Protocol v2, by name."""
    names = {"float32": "FP32", "int64": "INT64", "uint8": "UINT8"}
    tensors = [
        {"name": name, "datatype": names[str(array.dtype)], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in inputs.items()
    ]
    answer = httpx.post(f"{platform.settings.gateway_url}/v2/models/{model}/infer", json={"inputs": tensors}, timeout=60)
    assert answer.status_code == 200, answer.text
    return {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer.json()["outputs"]}


def test_a_photograph_of_a_cat_is_a_cat(platform, examples):
    printed, work = examples("efficientnet")
    cat, coffee = printed.splitlines()[-2:]
    assert _labels(cat)[0] in {"tabby", "tiger cat", "Egyptian cat"}, cat
    assert _labels(coffee)[0] == "espresso", coffee

    from efficientnet_files import LiteNet

    eager = LiteNet().eval()
    eager.load_state_dict(torch.load(work / "weights.pth", weights_only=True))
    pixels = np.load(work / "sample.npz")["image"][:2]
    with torch.no_grad():
        expected = eager((torch.from_numpy(pixels).float() - 127) / 128).numpy()
    got = _infer(platform, "efficientnet", {"image": pixels})["logits"]
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_similar_sentences_are_closer_than_unrelated_ones(platform, examples):
    _, work = examples("minilm")

    from minilm_files import SentenceEncoder, encode
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    sentences = ["A man is eating food.", "Someone has a meal.", "The rocket left the atmosphere.", "Le train est en retard"]
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(sentences)], "data": sentences}]}
    answer = httpx.post(f"{platform.settings.gateway_url}/v2/models/minilm/infer", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    embedding = next(output for output in answer.json()["outputs"] if output["name"] == "embedding")
    got = np.array(embedding["data"]).reshape(embedding["shape"])
    closeness = got @ got.T
    assert closeness[0, 1] > 0.5 > closeness[0, 2]

    eager = SentenceEncoder().eval()
    state = load_file(work / "model.safetensors")
    state.pop("embeddings.position_ids")
    eager.load_state_dict(state)
    inputs = encode(Tokenizer.from_file(str(work / "serving" / "tokenizer.json")), sentences)
    with torch.no_grad():
        expected = eager(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    cosine = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_speech_is_told_from_noise_and_silence_as_the_package_does(platform, examples):
    _, work = examples("silero")

    import silero_files

    package = torch.jit.load(str(Path(silero_files.silero_vad.__file__).parent / "data" / "silero_vad.jit"))
    heard = {}
    for name, signal in (("silence", silero_files.silence()), ("noise", silero_files.noise()), ("speech", silero_files.vowels())):
        package.reset_states()
        with torch.no_grad():
            expected = [
                float(package(torch.from_numpy(signal[None, start : start + 512]), 16000)) for start in range(0, len(signal) - 511, 512)
            ]
        for model, argument in (("silero", "input"), ("silero-script", "x")):
            probabilities = _stream(platform, model, argument, signal)
            np.testing.assert_allclose(probabilities, expected, atol=2e-3)
        heard[name] = np.array(expected)
    assert heard["silence"].max() < 0.2
    assert heard["noise"].mean() < 0.2
    assert heard["speech"].max() > 0.5
    assert json.loads((work / "request.json").read_text())["inputs"][1]["shape"] == [1, 2, 128]


def _stream(platform: LivePlatform, model: str, argument: str, signal: np.ndarray) -> list[float]:
    """Speech probabilities of a signal, chunk by chunk, each answer's state handed to the next request."""
    padded = np.concatenate([np.zeros(64, np.float32), signal])
    state, probabilities = np.zeros((1, 2, 128), np.float32), []
    for start in range(0, len(signal) - 511, 512):
        answer = _infer(platform, model, {argument: padded[None, start : start + 576], "state": state})
        state = answer["stateN"].astype(np.float32)
        probabilities.append(float(answer["output"][0, 0]))
    return probabilities
