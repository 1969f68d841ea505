"""The gateway on Envoy: what it is told (pure rendering), what it tells (pure parsing), and the adapter around both."""

from serving.envoy.config import EnvoyConfig
from serving.envoy.files import prepare
from serving.envoy.gateway import EnvoyGateway
from serving.envoy.process import process

__all__ = ["EnvoyConfig", "EnvoyGateway", "prepare", "process"]
