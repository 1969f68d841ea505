"""Archives, TorchServe, the gateway, roll-out planning, the controller, the control API."""
