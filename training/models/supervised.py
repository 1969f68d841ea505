"""A LightningModule around any `nn.Module`: classification by cross entropy or regression by squared error."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import nn

from training.interface import call, primary_output
from training.recipe import OptimizerConfig, Task


class SupervisedModule(lightning.LightningModule):
    """Trains `network` on batches of `(inputs, target)`; logs `train_loss`, `val_loss` and `val_accuracy` per epoch.

    Args:
        network: The model; its first output is what the loss is taken of: logits [N, C], or values shaped as the target.
        task: Cross entropy with integer targets [N], or mean squared error.
        optimizer: AdamW with one cycle of the learning rate over the whole run.
    """

    def __init__(self, network: nn.Module, *, task: Task, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.network = network
        self.task = task
        self.optimizer_config = optimizer

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the network answers."""
        return self.network(*inputs)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Loss of a training batch."""
        loss, _, _ = self._loss(batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Loss and accuracy of a validation batch."""
        loss, output, target = self._loss(batch)
        self.log("val_loss", loss)
        if self.task == "classification":
            self.log("val_accuracy", (output.argmax(-1) == target).float().mean())

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule that warms up and ends near zero."""
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(self.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.learning_rate, total_steps=max(2, int(self.trainer.estimated_stepping_batches))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs, target = batch
        output = primary_output(call(self.network, inputs))
        if self.task == "classification":
            return nn.functional.cross_entropy(output, target), output, target
        return nn.functional.mse_loss(output, target.reshape(output.shape).to(output.dtype)), output, target
