"""Training with Lightning: the only file that runs a `lightning.Trainer`.

Nothing is written to disk: Lightning's checkpoints are pickles, and this project has none.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from torch import nn

from registry.errors import UsageError
from training.models.supervised import SupervisedModule
from training.recipe import Recipe

# (epoch from 1, metrics of the epoch)
OnEpoch = Callable[[int, Mapping[str, float]], None]


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch, data loader workers included."""
    lightning.seed_everything(seed, workers=True, verbose=False)


def fit(model: nn.Module, data: lightning.LightningDataModule, recipe: Recipe, *, on_epoch: OnEpoch) -> None:
    """Train the model in place, on whatever device the recipe chooses; leaves it on the CPU in evaluation mode.

    A `LightningModule` trains as it says; any other module by `SupervisedModule`.

    Raises:
        UsageError: Lightning finds that model, data and trainer settings do not fit each other.
    """
    module = model
    if not isinstance(module, lightning.LightningModule):
        module = SupervisedModule(model, task=recipe.task, optimizer=recipe.optimizer)
    module.train()  # Lightning keeps the mode that it finds
    with _lightning_quiet(), _determinism_restored(), cpu_threads(recipe.trainer.num_cpu_threads):
        try:
            _trainer(recipe, on_epoch).fit(module, datamodule=data)
        except MisconfigurationException as error:
            raise UsageError(f"the recipe cannot be trained ({' '.join(str(error).split())})", "See docs/training.md.") from error
    model.to("cpu").eval()


def _trainer(recipe: Recipe, on_epoch: OnEpoch) -> lightning.Trainer:
    config = recipe.trainer
    return lightning.Trainer(
        max_epochs=config.max_epochs,
        accelerator=config.accelerator,
        devices=config.devices,
        precision=config.precision,  # type: ignore[arg-type]  # Lightning checks the text itself
        gradient_clip_val=config.gradient_clip_val,
        accumulate_grad_batches=config.accumulate_grad_batches,
        limit_train_batches=config.limit_train_batches,
        limit_val_batches=config.limit_val_batches,
        deterministic=config.deterministic,
        callbacks=[_EpochReporter(on_epoch)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


class _EpochReporter(lightning.Callback):
    """Passes on what the modules logged, once per epoch, after validation."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self._on_epoch = on_epoch

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report the epoch that just ended."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        self._on_epoch(trainer.current_epoch + 1, metrics)


@contextmanager
def cpu_threads(num_threads: int | None) -> Iterator[None]:
    """That many threads for torch's CPU operations as long as the block lasts; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Without Lightning's notices about devices, and its advice to use many loader workers: our data is in memory."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]  # it uses both names
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*", category=PossibleUserWarning)
            # Lightning calls a form of torch's tree helpers that torch has just deprecated.
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _determinism_restored() -> Iterator[None]:
    # The Trainer turns deterministic algorithms on for the process and leaves them on.
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
