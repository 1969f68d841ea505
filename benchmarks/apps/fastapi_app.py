"""What one writes by hand in an afternoon: FastAPI, orjson, ONNX Runtime. No batching, no limits, no metrics, no versions."""

from __future__ import annotations

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from onnx_model import OnnxModel

app = FastAPI()
model = OnnxModel()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Rows as bytes or as JSON; the answer has the same form."""
    body = await request.body()
    if request.headers["content-type"] == "application/octet-stream":
        logits = model.run(np.frombuffer(body, np.float32).reshape(-1, model.width))
        return Response(logits.tobytes(), media_type="application/octet-stream")
    logits = model.run(orjson.loads(body)["input"])
    return Response(orjson.dumps(logits, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
