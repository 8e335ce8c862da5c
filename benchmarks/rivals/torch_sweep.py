"""A sweep as many write it: Optuna's grid around a loop of PyTorch, one trial after another."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import torch
from torch.nn import functional as F

from benchmarks.rivals import torch_
from convjax import data
from convjax.config import Experiment


def sweep(
    config: Experiment, rates: Sequence[float], seeds: Sequence[int], channels_last: bool
) -> dict[str, Any]:
    """Trains a network for each learning rate and seed; seconds, and the test accuracies.

    config: of the small network without augmentation, trained by AdamW on a cosine.
    """
    begun = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {"learning_rate": list(rates), "seed": list(seeds)}
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.GridSampler(space, seed=0)
    )
    loop = _Loop(config, channels_last)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_categorical("learning_rate", space["learning_rate"])
        return loop.train(float(rate), int(trial.suggest_categorical("seed", space["seed"])))

    study.optimize(objective)
    accuracies = [trial.value for trial in study.trials]
    return {"seconds": time.perf_counter() - begun, "accuracies": accuracies}


class _Loop:
    def __init__(self, config: Experiment, channels_last: bool):
        self.config = config
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.layout: Any = layout
        train = data.load(config.data.name, config.data.train, config.data.dir)
        test = data.load(config.data.name, config.data.test, config.data.dir)
        mean, std = data.channel_statistics(train.images)
        self.classes, self.side = len(train.classes), train.images.shape[1]

        def prepared(images: np.ndarray) -> torch.Tensor:
            pixels = (images.astype(np.float32) / 255 - mean) / std
            if channels_last:
                return torch.from_numpy(pixels).permute(0, 3, 1, 2)
            # Made anew: images of one channel are of both layouts, and PyTorch goes by the strides.
            return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

        # Normalised once and for all: the fastest that such a loop can be.
        self.train_set = prepared(train.images), torch.from_numpy(train.labels).long()
        self.test_set = prepared(test.images), torch.from_numpy(test.labels).long()

    def train(self, rate: float, seed: int) -> float:
        """The test accuracy after a training."""
        config = self.config
        torch.manual_seed(seed)
        channels, args = self.train_set[0].shape[1], config.model.args
        size = self.side // 2 ** (1 + args["stages"])
        net = torch_.small(self.classes, size, channels, **args)
        net = net.to(memory_format=self.layout)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.0, fused=True)
        images, labels = self.train_set
        batch, count = config.batch_size, len(labels)
        epoch = count // batch
        steps = max(round(config.epochs * epoch), 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        net.train()
        for step in range(steps):
            if step % epoch == 0:
                order = torch.randperm(count)
            chosen = order[step % epoch * batch :][:batch]
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.inference_mode():
            parts = [net(part).argmax(1) for part in self.test_set[0].split(config.eval_batch_size)]
        return float((torch.cat(parts) == self.test_set[1]).float().mean())
