"""The code that travels in every archive. Needs nothing but the standard library, numpy and the model's engine.

`modelway_handler.py` and the package `modelway_runtime` are copied to the root of an archive as they are.
"""
