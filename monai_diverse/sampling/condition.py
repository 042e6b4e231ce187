"""How the label enters: classifier-free guidance inside an interval of noise levels, and conditions that are noised at first."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from monai_diverse.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022) inside an interval of noise levels (Kynkaanniemi et al. 2024).

    prediction = null + scale * (conditional - null); outside the interval, and at scale 1, the conditional alone.

    Attributes:
        scale: 1 is the plain conditional model; more is more typical of the class and less diverse. Costs a second
            evaluation a step wherever it acts.
        sigma_min: lowest noise-to-signal ratio at which it acts.
        sigma_max: highest.
    """

    scale: float = 1.0
    sigma_min: float = 0.0
    sigma_max: float = float("inf")

    def __post_init__(self) -> None:
        if self.scale < 0 or self.sigma_min > self.sigma_max:
            raise RecipeError(f"guidance: expected scale >= 0 and sigma_min <= sigma_max, got {self.scale}, {self.sigma_min}, {self.sigma_max}")

    def acts(self, sigma: float) -> bool:
        """Whether a second, unconditional evaluation is needed at this noise level."""
        return self.scale != 1.0 and self.sigma_min <= sigma <= self.sigma_max


@dataclass(frozen=True, kw_only=True)
class CADS:
    """Settings of condition-annealed sampling (Sadat et al., ICLR 2024): conditions are noised at first and clean in the end.

    At strong noise the network hardly knows what it is asked for, so that samples of one class spread; towards the end it does.

    Attributes:
        tau1: time, 1 for pure noise and 0 for clean, until which from the end conditions are left alone.
        tau2: time from which on they are noise alone; in between linear.
        noise: standard deviation of the noise, in the condition's own units; the paper's s.
        mixing: share of the rescaled condition, which has its own mean and standard deviation back, in what the network is told; the paper's
            psi.
    """

    tau1: float = 0.6
    tau2: float = 0.9
    noise: float = 0.1
    mixing: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.tau1 < self.tau2 <= 1:
            raise RecipeError(f"cads: expected 0 <= tau1 < tau2 <= 1, got {self.tau1} and {self.tau2}")
        if not 0 <= self.noise < float("inf") or not 0 <= self.mixing <= 1:
            raise RecipeError(f"cads: expected noise from 0 and mixing of 0 to 1, got {self.noise} and {self.mixing}")

    def clean(self, t: float) -> float:
        """Share of the condition's variance at time t: 1 up to tau1, 0 from tau2 on (the paper's gamma)."""
        return min(1.0, max(0.0, (self.tau2 - t) / (self.tau2 - self.tau1)))


def annealed(y: Tensor, t: float, noise: Tensor, settings: CADS) -> Tensor:
    """Conditions y at time t: sqrt(gamma) y + s sqrt(1 - gamma) noise, rescaled to y's mean and standard deviation, mixed with the unrescaled.

    Args:
        y: (n, ...) conditions; mean and standard deviation are those of each row. A row of one number is not rescaled: it would be undone.
        t: 1 for pure noise, 0 for clean.
        noise: standard normal, shaped as y.
        settings: see `CADS`.
    """
    gamma = settings.clean(t)
    if gamma == 1:
        return y
    mixed: Tensor = gamma**0.5 * y + settings.noise * (1 - gamma) ** 0.5 * noise
    axes = tuple(range(1, y.ndim))
    if settings.mixing == 0 or y[:1].numel() < 2:
        return mixed
    centred = mixed - mixed.mean(axes, keepdim=True)
    rescaled: Tensor = centred / centred.std(axes, keepdim=True).clamp_min(1e-12) * y.std(axes, keepdim=True) + y.mean(axes, keepdim=True)
    return settings.mixing * rescaled + (1 - settings.mixing) * mixed
