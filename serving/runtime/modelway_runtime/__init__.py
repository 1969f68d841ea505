"""What a worker does: check the archive's files, load the model, prove the golden set, answer requests.

This package is copied into archives. It must not import anything of Modelway, nor anything but the standard library,
numpy, `orjson` if it is there, and the engine of its model. Its own modules are imported relatively, so it works
both from an archive and as `serving.runtime.modelway_runtime`.
"""
