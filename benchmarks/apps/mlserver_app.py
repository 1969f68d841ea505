"""A custom MLServer runtime as its documentation shows one: codecs decode and encode."""

from __future__ import annotations

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from onnx_model import OnnxModel


class OnnxRuntime(MLModel):
    """The ONNX file behind the Open Inference Protocol."""

    async def load(self) -> bool:
        """In each worker."""
        self._model = OnnxModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Rows of one request, or of the several that adaptive batching put together."""
        logits = self._model.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=[NumpyCodec.encode_output("logits", logits)])
