"""The runtime's core alone: microseconds a request for decode, run and encode, without sockets and without a gateway.

python -m benchmarks.runtime_core [--rounds N]

The cases are interleaved round by round, so that a machine that slows down slows all of them; the figures are medians.
`engine` is ONNX Runtime called with one ready batch, which none of the others can beat.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bundles import write_onnx
from benchmarks.mlp import ATOL, INPUT, LAYERS, OUTPUT, Floats, expected_logits, payload, rows
from serving.runtime.modelway_runtime import backends
from serving.runtime.modelway_runtime.core import Core
from serving.runtime.modelway_runtime.protocols import JSON_LENGTH_HEADER, PROTOCOL_HEADER, Decoded, ModelInfo
from serving.runtime.modelway_runtime.tensors import Spec

BATCHES = (1, 8, 32)
_REQUESTS_PER_ROUND = 64  # a multiple of each batch
_OPTIONS = {"provider": "CPUExecutionProvider", "intra_op_threads": 1}

Request = tuple[dict[str, str], bytes]


def requests() -> dict[str, list[Request]]:
    """Protocol -> one request per row, as clients write them."""
    inputs = rows(_REQUESTS_PER_ROUND)
    common = {"content-type": "application/json", "accept": "*/*", "x-request-id": "7b7fd0ab-5d0e-4a5c-bd28-1f1e6ac0ee04"}
    made: dict[str, list[Request]] = {"v2 JSON": [], "v1 JSON": [], "predictions JSON": [], "v2 binary": [], "raw": []}
    for row in inputs:
        listed = [[float(str(value)) for value in row]]
        made["v2 JSON"].append(({PROTOCOL_HEADER: "v2-infer", **common}, payload(row[None])))
        made["v1 JSON"].append(({PROTOCOL_HEADER: "v1-predict", **common}, json.dumps({"instances": listed}).encode()))
        made["predictions JSON"].append(({PROTOCOL_HEADER: "predictions", **common}, json.dumps(listed).encode()))
        made["v2 binary"].append(_binary(row, common))
        raw = {PROTOCOL_HEADER: "predictions", **common, "content-type": "application/octet-stream", "accept": "application/octet-stream"}
        made["raw"].append((raw, row.tobytes()))
    return made


def _binary(row: Floats, common: dict[str, str]) -> Request:
    tensor = {"name": INPUT, "datatype": "FP32", "shape": [1, LAYERS[0]], "parameters": {"binary_data_size": row.nbytes}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {PROTOCOL_HEADER: "v2-infer", **common, "content-type": "application/octet-stream"}
    return ({**headers, JSON_LENGTH_HEADER.lower(): str(len(head))}, head + row.tobytes())


def measure(num_rounds: int) -> dict[str, dict[int, dict[str, float]]]:
    """Protocol -> batch -> stage -> microseconds per request; stages are decode, run (with encode) and total."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / backends.ONNX_FILE).parent.mkdir()
        write_onnx(root / backends.ONNX_FILE, 1)
        specs = (Spec(INPUT, "FP32", (-1, LAYERS[0])),), (Spec(OUTPUT, "FP32", (-1, LAYERS[-1])),)
        backend = backends.load(root, "onnxruntime", *specs, _OPTIONS)
    core = Core(ModelInfo("bench-mlp", "1", *specs, max_rows=1024), backend)
    cases = requests()
    _check(core, cases)
    inputs = rows(_REQUESTS_PER_ROUND)
    samples: dict[str, dict[int, dict[str, list[float]]]] = {
        name: {batch: {"decode": [], "run": [], "total": []} for batch in BATCHES} for name in (*cases, "engine")
    }
    for _ in range(num_rounds):
        for batch in BATCHES:
            for name, case in cases.items():
                decode_s, run_s = _time_core(core, case, batch)
                for stage, seconds in (("decode", decode_s), ("run", run_s), ("total", decode_s + run_s)):
                    samples[name][batch][stage].append(seconds)
            seconds = _time(lambda size=batch: [backend.run((inputs[at : at + size],)) for at in range(0, len(inputs), size)])  # type: ignore[misc]
            samples["engine"][batch]["total"].append(seconds)
    return {
        name: {
            batch: {stage: statistics.median(values) / _REQUESTS_PER_ROUND * 1e6 for stage, values in stages.items() if values}
            for batch, stages in batches.items()
        }
        for name, batches in samples.items()
    }


def _time_core(core: Core, case: Sequence[Request], batch: int) -> tuple[float, float]:
    decode_s = run_s = 0.0
    for start in range(0, len(case), batch):
        began = time.perf_counter()
        decoded: list[Any] = [core.decode(headers, body) for headers, body in case[start : start + batch]]
        middle = time.perf_counter()
        core.run(decoded)
        decode_s += middle - began
        run_s += time.perf_counter() - middle
    return decode_s, run_s


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _check(core: Core, cases: dict[str, list[Request]]) -> None:
    """Each request must be answered, and rightly, or there is nothing to measure."""
    expected = expected_logits(rows(_REQUESTS_PER_ROUND), 1)
    for name, case in cases.items():
        assert all(isinstance(core.decode(headers, body), Decoded) for headers, body in case), name
        for answer, want in zip(core.handle(case), expected, strict=True):
            assert answer.status == 200, (name, answer)
            if name == "raw":
                got = np.frombuffer(answer.body, np.float32)
            elif name == "v2 binary":
                got = np.frombuffer(answer.body[int(answer.headers[JSON_LENGTH_HEADER]) :], np.float32)
            else:
                body = json.loads(answer.body)
                values = body if isinstance(body, list) else body.get("predictions") or body["outputs"][0]["data"]
                got = np.asarray(values, np.float32).ravel()
            assert np.allclose(got, want, atol=ATOL), name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    results = measure(parser.parse_args().rounds)
    print(f"microseconds per request of one row of {LAYERS[0]} float32, median")
    print(f"{'':18}" + "".join(f"{f'batch {batch}':>26}" for batch in BATCHES))
    print(f"{'':18}" + f"{'decode':>10}{'run':>8}{'total':>8}" * len(BATCHES))
    for name, batches in results.items():
        cells = "".join(
            "".join(f"{batches[b].get(s, float('nan')):>{w}.1f}" for s, w in (("decode", 10), ("run", 8), ("total", 8))) for b in BATCHES
        )
        print(f"{name:18}{cells.replace('nan', '  -')}")


if __name__ == "__main__":
    main()
