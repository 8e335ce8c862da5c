"""One competitor on one network, inside a process of its own: it computes and takes the time.

It is told over the pipe of `benchmarks.worker` what to do next.
"""

from __future__ import annotations

import gc
import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.cases import CASES, COMPETITORS, Weights, images_of
from benchmarks.rivals import Rival
from convjax.allocator import give_back_freed_memory

# Losses of so many steps are compared: the third one comes after two updates, with momentum.
COMPARED = 3
FEW = 8  # images of which the logits in training mode are compared


class Contestant:
    """A competitor whose library is imported; `build` gives it a network.

    options: of the rival's `build`, beside those of the competitor.
    """

    def __init__(self, competitor: str, case: str, batch: int, options: dict[str, Any]):
        chosen = COMPETITORS[competitor]
        self.case = CASES[case]._replace(batch=batch)
        self.options = {**chosen.options, **options}
        self.module = importlib.import_module(f"benchmarks.rivals.{chosen.module}")
        self.memory_of_imports = machine.resident()
        self.losses: list[Any] = []
        self.peak: int | None = None
        self.estimates: dict[str, float] = {}
        self.predictors: dict[int, Callable[[], Any]] = {}

    def build(self, weights: Weights) -> None:
        """Makes the network with these weights."""
        self.rival: Rival = self.module.build(self.case, weights, **self.options)

    def train_logits(self) -> np.ndarray:
        """Logits of a few images in training mode, before any step."""
        return self.rival.train_logits(images_of(self.case, FEW, seed=1))

    def first_prediction(self, batch: int) -> tuple[float, np.ndarray]:
        """Seconds of the first inference of so many images, and its logits."""
        self.predictors[batch] = self.rival.predictor(images_of(self.case, batch, seed=2))
        begin = time.perf_counter()
        logits = self.rival.wait(self.predictors[batch]())
        seconds = time.perf_counter() - begin
        return seconds, _numpy(logits)

    def first_step(self) -> float:
        """Seconds of the first step, compilation included."""
        begin = time.perf_counter()
        self.rival.wait(self._step())
        return time.perf_counter() - begin

    def train(self, seconds: float) -> float:
        """Seconds of a step, as the mean over about that long; its first turn notes the memory."""
        if self.peak is None:
            gc.collect()
            give_back_freed_memory()
            machine.reset_peak()
        return self._turn("train", self._step, seconds, self._note_peak)

    def predict(self, batch: int, seconds: float) -> float:
        """Seconds to the logits of so many images, as the mean over about that long."""
        predict = self.predictors[batch]

        def once() -> Any:
            return self.rival.wait(predict())

        return self._turn(f"predict {batch}", once, seconds)

    def compared_losses(self) -> list[float]:
        """Losses of the first steps."""
        return [float(_numpy(loss)) for loss in self.losses]

    def peak_memory(self) -> int | None:
        """The most bytes that a step of training needs, over what the imports alone take.

        On a GPU, the most bytes of its memory. None where neither can be known.
        """
        return self.rival.device_peak() or self.peak

    def _turn(
        self,
        what: str,
        once: Callable[[], Any],
        seconds: float,
        after_first: Callable[[], None] = lambda: None,
    ) -> float:
        """One call that is waited for: long enough, it is the turn; else it warms up for others."""
        begin = time.perf_counter()
        self.rival.wait(once())
        alone = time.perf_counter() - begin
        after_first()
        if alone >= seconds:
            return alone
        expected = min(alone, self.estimates.get(what, alone))
        count = min(math.ceil(seconds / expected), 10_000)
        result = None
        begin = time.perf_counter()
        for _ in range(count):
            result = once()
        self.rival.wait(result)
        self.estimates[what] = (time.perf_counter() - begin) / count
        return self.estimates[what]

    def _step(self) -> Any:
        result = self.rival.step()
        if len(self.losses) < COMPARED:
            self.losses.append(result[0])
        return result

    def _note_peak(self) -> None:
        if self.peak is None:
            peak = machine.peak()
            self.peak = None if peak is None else peak - self.memory_of_imports


def _numpy(value: Any) -> np.ndarray:
    """What a library returned, as float32."""
    if hasattr(value, "float"):  # PyTorch's bfloat16 is unknown to NumPy.
        value = value.float().cpu()
    return np.asarray(value, np.float32)
