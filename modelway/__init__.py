"""The front door: command line, settings, composition root, Python client."""
