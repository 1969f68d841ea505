"""The gateway on Envoy: what it is told (pure rendering), what it tells (pure parsing), and the adapter around both."""

from serving.envoy.access_log import rotate_access_log
from serving.envoy.config import EnvoyConfig
from serving.envoy.files import check, prepare
from serving.envoy.gateway import EnvoyGateway
from serving.envoy.process import process

__all__ = ["EnvoyConfig", "EnvoyGateway", "check", "prepare", "process", "rotate_access_log"]
