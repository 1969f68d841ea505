"""Saves an ONNX file as an MLflow model of the onnx flavour: python mlflow_save.py MODEL.onnx DIRECTORY."""

from __future__ import annotations

import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    options = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    mlflow.onnx.save_model(
        onnx.load(sys.argv[1]),
        sys.argv[2],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options=options,
        pip_requirements=["onnxruntime"],
    )
