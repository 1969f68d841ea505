"""A small convolutional network for single-channel images of 8 by 8 pixels."""

from __future__ import annotations

import torch
from torch import nn

# Of all 1,797 images. Constants, not measured on the training split: the graph must not depend on the seed of a split.
_PIXEL_MEAN = 4.8842
_PIXEL_STD = 6.0168


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers. Raw pixels in: normalisation is part of the graph, so it travels with the weights.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        num_classes: Number of logits.
        dropout: Fraction of hidden units left out while training.
    """

    def __init__(self, width: int = 16, num_classes: int = 10, dropout: float = 0.2) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be 1 or more, not {width}")
        self.register_buffer("mean", torch.tensor(_PIXEL_MEAN))
        self.register_buffer("std", torch.tensor(_PIXEL_STD))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.features = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(2 * width * 16, 64),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(64, num_classes),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float32 [N, 1, 8, 8] with pixels 0..16 -> logits [N, num_classes]."""
        logits: torch.Tensor = self.classifier(self.features((image - self.mean) / self.std))
        return logits
