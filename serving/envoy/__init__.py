"""The gateway on Envoy: what it is told (pure rendering), what it tells (pure parsing), and the adapter around both."""
