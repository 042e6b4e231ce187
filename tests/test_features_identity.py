"""What the fingerprint of a network with its preprocess holds: everything that decides the vectors, and nothing that does not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from monai_diverse.errors import RecipeError
from monai_diverse.features import CachedFeatures, ModuleFeatures


class Pool(Enum):
    MAX = 1
    AVG = 2


class Pooled(nn.Module):
    """Pools as attributes that it does not print say."""

    def __init__(self, pool: Any = "max") -> None:
        super().__init__()
        self.pool = pool
        self._private: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) if self.pool == "max" else x.mean((2, 3))


def double(x: Tensor) -> Tensor:
    return x * 2


def half(x: Tensor) -> Tensor:
    return x / 2


SETTINGS: list[Any] = [
    *("max", "avg", b"max", None, True, 1, 1.0, 2j, float("nan"), "None", "1", ..., slice(3), range(3), np.float32(1), torch.float16),
    *((), (1, 2), (2, 1), [1, (2,)], {1, 2}, {"a": 1}, {"a": 2}, {"b": 1}, ("max", None), Pool.MAX, Pool.AVG, Pool, nn.ReLU),
    *(torch.zeros(2), torch.ones(2), torch.zeros(2, 1), np.zeros(2), np.ones(2, np.float32), [torch.zeros(1)], [nn.Linear(1, 1)], [nn.ReLU()]),
    *(torch.relu, torch.sigmoid, functional.relu, double, half, torch.zeros(1, dtype=torch.complex64).conj(), {"a": double}),
]


def of(preprocess: Any) -> str:
    return ModuleFeatures(nn.Flatten(), preprocess=preprocess).fingerprint


def test_attributes_of_every_kind_are_told_apart() -> None:
    prints = [ModuleFeatures(Pooled(setting)).fingerprint for setting in SETTINGS]
    assert prints == [ModuleFeatures(Pooled(setting)).fingerprint for setting in SETTINGS]
    assert len(set(prints)) == len(SETTINGS)
    assert len({of(Pooled(setting)) for setting in SETTINGS}) == len(SETTINGS)
    hidden = Pooled()
    hidden._private = "other"
    nested = nn.Sequential(nn.Identity(), Pooled("avg"))
    prints += [ModuleFeatures(module).fingerprint for module in (hidden, nested, nn.Sequential(nn.Identity(), Pooled()))]
    assert len(set(prints)) == len(SETTINGS) + 3
    assert ModuleFeatures(Pooled({"a", "b", "c"})).fingerprint == ModuleFeatures(Pooled({"c", "b", "a"})).fingerprint
    assert ModuleFeatures(Pooled({"a": 1, "b": 2})).fingerprint == ModuleFeatures(Pooled({"b": 2, "a": 1})).fingerprint


def test_a_cache_never_gives_the_features_of_another_setting(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((3, 1, 6, 6), dtype=np.float32)
    for pool, expected in (("max", images.max((2, 3))), ("avg", images.mean((2, 3)))):
        cached = CachedFeatures(extractor=ModuleFeatures(Pooled(pool)), folder=tmp_path)
        np.testing.assert_allclose(cached(images), expected, atol=1e-6)


def test_what_does_not_decide_the_output_does_not_count() -> None:
    network = Pooled()
    before = ModuleFeatures(network).fingerprint
    vars(network).update(name_or_path="elsewhere", pretrained_cfg={"file": "elsewhere"})
    assert ModuleFeatures(network.train()).fingerprint == before


@pytest.mark.parametrize(
    "held", [object(), functools.partial(double), torch.zeros(2, 2).to_sparse(), np.array([object()]), torch.zeros(1, device="meta")]
)
def test_attributes_that_cannot_be_hashed_are_left_out(held: Any) -> None:
    assert ModuleFeatures(Pooled(held)).fingerprint == ModuleFeatures(Pooled(object())).fingerprint


def test_parts_that_hold_each_other_end() -> None:
    network, other = Pooled(), Pooled()
    network.pool, other.pool = [other], [network]
    assert ModuleFeatures(network).fingerprint == ModuleFeatures(network).fingerprint


def scaled(factor: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


def through(inner: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def outer(x: Tensor) -> Tensor:
        return inner(x) + 1

    return outer


def wrapper(factor: float) -> Callable[[Tensor], Tensor]:
    @functools.wraps(functional.relu)
    def scale(x: Tensor) -> Tensor:
        return x * factor

    return scale


def generator(power: int) -> Callable[[Tensor], Tensor]:
    return lambda x: sum(x**k for k in range(power))  # type: ignore[return-value]


def with_default(factor: float) -> Callable[[Tensor], Tensor]:
    def scale(x: Tensor, factor: float = factor) -> Tensor:
        return x * factor

    return scale


def with_keyword(factor: float) -> Callable[[Tensor], Tensor]:
    def scale(x: Tensor, *, factor: float = factor) -> Tensor:
        return x * factor

    return scale


FUNCTIONS: list[Callable[[], Any]] = [
    *(lambda: None, lambda: double, lambda: half, lambda: torch.sigmoid, lambda: functional.relu, lambda: functional.avg_pool2d),
    *(lambda: lambda x: x * 2, lambda: lambda x: x * 3, lambda: lambda x: x + 2, lambda: lambda x: torch.sin(x), lambda: lambda x: torch.cos(x)),
    *(lambda: scaled(2), lambda: scaled(3), lambda: scaled(2.0), lambda: scaled(torch.ones(1)), lambda: scaled(torch.zeros(1))),
    *(lambda: through(double), lambda: through(half), lambda: through(scaled(2)), lambda: through(scaled(3)), lambda: through(nn.ReLU())),
    *(lambda: through(nn.ReLU6()), lambda: generator(2), lambda: generator(3), lambda: with_default(1), lambda: with_default(2)),
    *(lambda: with_keyword(1), lambda: with_keyword(2), lambda: wrapper(1), lambda: wrapper(2)),
]


def test_functions_are_told_apart_by_all_that_they_compute_with() -> None:
    prints = [of(make()) for make in FUNCTIONS]
    assert prints == [of(make()) for make in FUNCTIONS]
    assert len(set(prints)) == len(FUNCTIONS)


SCALE = 2


def by_global(x: Tensor) -> Tensor:
    return x * SCALE


def by_nested_global(x: Tensor) -> Tensor:
    return torch.stack([part * SCALE for part in x])


def recursive(x: Tensor) -> Tensor:
    return x if float(x.sum()) < 1 else recursive(x / SCALE)


@pytest.mark.parametrize("function", [by_global, by_nested_global, recursive, through(by_global)])
def test_what_a_function_reads_from_its_module_counts(function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(function)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3)
    assert of(function) != before


def test_a_new_name_counts() -> None:
    def function(x: Tensor) -> Tensor:
        return x

    names = iter(("function", "second", "third"))
    prints = set()
    for name in names:
        function.__name__ = name
        prints.add(of(function))
    function.__name__ = "function"
    function.__qualname__ = "elsewhere"
    function_moved = of(function)
    function.__module__ = "elsewhere"
    assert len(prints | {function_moved, of(function)}) == 5


def test_the_fingerprint_is_of_when_the_extractor_was_made() -> None:
    factors = [2.0]
    extractor = ModuleFeatures(nn.Flatten(), preprocess=scaled(factors))
    before = of(scaled([2.0]))
    factors[0] = 3.0
    assert extractor.fingerprint == before


PRINTED = """
from torch import nn
from monai_diverse.features import ModuleFeatures
network = nn.Flatten()
network.kinds = {"max", "avg", "sum"}
print(ModuleFeatures(network, preprocess=lambda x: x * 2 if x.ndim in {3, 4} or str(x) in {"a", "b", "c"} else x).fingerprint)
"""


def test_other_processes_agree() -> None:
    command = [sys.executable, "-c", PRINTED]
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in "12"]
    assert len({subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout for env in environments}) == 1


class Called:
    def __call__(self, x: Tensor) -> Tensor:
        return x

    def method(self, x: Tensor) -> Tensor:
        return x


REFUSED: list[Any] = [
    functools.partial(functional.interpolate, size=8),
    Called(),
    Called().method,
    torch.ones(1).mul,
    functools.lru_cache(double),
    through(functools.partial(double)),
    scaled(Called()),
    3,
]


@pytest.mark.parametrize("preprocess", REFUSED)
def test_a_preprocess_that_cannot_be_hashed_is_refused(preprocess: Any) -> None:
    with pytest.raises(RecipeError, match=r"^preprocess: expected an nn.Module, or a function .*, got one of \S+, which cannot be hashed; .*$"):
        ModuleFeatures(nn.Flatten(), preprocess=preprocess)
