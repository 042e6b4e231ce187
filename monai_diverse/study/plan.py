"""What a study does, fixed before it runs: YAML in, one frozen value out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from monai_diverse.components import Component, from_mapping, read_yaml
from monai_diverse.data import require_labels
from monai_diverse.errors import RecipeError
from monai_diverse.recipe import DIVERSE
from monai_diverse.storage import fingerprint_of
from monai_diverse.study.config import ClassifierConfig
from monai_diverse.study.selection import Selection
from monai_diverse.training import TrainConfig

Regime = Literal["pretrained", "strict"]
Training = Literal["mixed", "pretrain", "fade", "balanced"]
REAL = ("real", "balanced")
"""Arms that add nothing."""
CEILING = "extra_real"
METRIC = re.compile(r"balanced_accuracy|accuracy|auc|recall_(0|[1-9][0-9]*)")
"""What can be compared: more is better."""
CHECK_EVERY = 20
ARMS = (*REAL, "duplicates", "random", "relevant", "tsne_hull", "diverse", "diverse_ungated", "brute_force", CEILING)


@dataclass(frozen=True, kw_only=True)
class Primary:
    """The comparisons that are tested; all others are exploratory.

    Attributes:
        arm: the arm that should be better.
        controls: than each of these, at the arm's own ratio and counts.
        metric: of the test images: balanced_accuracy, accuracy, auc or recall_0, recall_1, ... of a class.
        training: how both are trained.
        augment: whether both augment.
        sizes: in the cells of these sizes; None: in all.
    """

    arm: str = "diverse"
    controls: tuple[str, ...] = ("random", "duplicates")
    metric: str = "balanced_accuracy"
    training: Training = "mixed"
    augment: bool = True
    sizes: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("controls", "sizes"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        for arm in (self.arm, *self.controls):
            _require_one_of("primary", arm, ARMS)
        if not self.controls or any(arm in REAL for arm in (self.arm, *self.controls)):
            raise RecipeError(f"primary: expected an arm with a bank, and controls with banks for it, got {self.arm!r} and {self.controls}")
        if not METRIC.fullmatch(str(self.metric)):
            raise RecipeError(f"metric: expected balanced_accuracy, accuracy, auc or recall_0, recall_1, ... of a class, got {self.metric!r}")


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Every choice of a study.

    Attributes:
        name: for reports.
        data: an `.npz` file or folder with splits train, val and test; `builtin`; or `medmnist:NAME`, which is downloaded beside the results.
        regime: `pretrained`: the generator saw the whole generator split, and the user has a share of its labelled images. `strict`: the
            generator saw the user's images alone, and is trained by the study.
        source: the generator, in the regime `pretrained`; None: the study trains it.
        split_file: JSON with what `source` saw and what was set aside, as `monai-diverse train` writes; None: the shipped model's.
        training: settings of the trainings that the study makes.
        sizes: shares of the labelled images that the user has, one cell each.
        ratios: bank samples for each real image that are tried; validation chooses one a cell.
        seeds: runs of each arm; seeds are paired over arms.
        subsets: different draws of the user's images; seed s has draw s modulo this. None: one a seed; but one alone where the user has all, or where
            each draw would need a generator of its own.
        arms: what is compared.
        trainings: `mixed`: bank samples replace items by chance. `pretrain`: half of the steps on the bank, then half on reals. `fade`: as
            `mixed`, but that chance falls to 0 over the training. `balanced`: as `mixed`, but items of all classes are shown equally often.
        augment: with MONAI's usual random transforms, without, or both; trainings that are not the primary one only as that one does, and for the
            primary arm and its controls.
        labels: classes of what is grown, as in a recipe, and of what the arms take: `reference`, with the shares of the user's images; `balanced`,
            as many of each class, so that rarer classes get more different samples.
        pool: unguided samples that are drawn once: for the arms `random`, `relevant`, `tsne_hull` and `brute_force`.
        guide: of the arm `diverse`.
        screen: as in a recipe.
        selection: which of the accepted samples the arms that grow take.
        surplus: how many more samples are grown than the largest ratio asks for, to choose from, as a factor.
        max_evaluations: network evaluations that a bank of the arm `diverse` may cost.
        steps: inference steps; None for the source's own number.
        batch_size: samples a round, as in a recipe.
        classifier: how classifiers are trained; its seeds are not used, and where a file leaves out `check_every` it is 20.
        primary: what is tested.
        twin_correlation: images whose pixels correlate above this count as one group.
        seed: of the whole study.
        folder: where relative paths start.
        allow: packages that components may come from, beside this one.
    """

    data: str
    regime: Regime
    name: str = "study"
    source: Component | None = None
    split_file: str | None = None
    training: TrainConfig = field(default_factory=TrainConfig)
    sizes: tuple[float, ...] = (0.1, 0.25, 1.0)
    ratios: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    seeds: int = 10
    subsets: int | None = None
    arms: tuple[str, ...] = ARMS
    trainings: tuple[Training, ...] = ("mixed", "pretrain")
    augment: tuple[bool, ...] = (True, False)
    labels: str | tuple[float, ...] = "reference"
    pool: int = 2000
    guide: Component | None = field(default_factory=lambda: Component(target="monai_diverse.sampling.Diverse"))
    screen: Component = field(default_factory=lambda: Component(target="monai_diverse.NoveltyScreen"))
    selection: Selection = field(default_factory=Selection)
    surplus: float = 1.25
    max_evaluations: int = 40_000
    steps: int | None = None
    batch_size: int = 64
    classifier: ClassifierConfig = field(default_factory=lambda: ClassifierConfig(check_every=CHECK_EVERY))
    primary: Primary = field(default_factory=Primary)
    twin_correlation: float = 0.95
    seed: int = 0
    folder: Path = field(default=Path(), compare=False)
    allow: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("sizes", "ratios", "arms", "trainings", "augment"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Sequence) or not value or len(set(value)) < len(value):
                raise RecipeError(f"{name}: expected a list of one or more different values, got {value!r}")
            object.__setattr__(self, name, tuple(value))
        _require_one_of("regime", self.regime, get_args(Regime))
        for names, allowed in ((self.arms, ARMS), (self.trainings, get_args(Training)), (self.augment, (True, False))):
            for value in names:
                _require_one_of("study", value, allowed)
        if not all(isinstance(v, int | float) and 0 < v <= 1 for v in self.sizes):
            raise RecipeError(f"sizes: expected shares above 0 and up to 1, got {list(self.sizes)}")
        if not all(isinstance(v, int | float) and 0 < v < float("inf") for v in self.ratios):
            raise RecipeError(f"ratios: expected numbers above 0, got {list(self.ratios)}")
        for name, least in (("seeds", 2), ("pool", 1), ("max_evaluations", 1)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise RecipeError(f"{name}: expected a whole number from {least}, got {getattr(self, name)!r}")
        require_labels(self.labels)
        if not self.surplus >= 1:
            raise RecipeError(f"surplus: expected at least 1, got {self.surplus}")
        if self.subsets is not None and not 1 <= self.subsets <= self.seeds:
            raise RecipeError(f"subsets: expected 1..{self.seeds}, the number of seeds, got {self.subsets}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**15:
            raise RecipeError(f"seed: expected a whole number in 0..{2**15 - 1}, got {self.seed!r}")
        if self.regime == "strict" and self.source is not None:
            raise RecipeError("source: expected none in the regime 'strict', whose generators the study trains; leave it out")
        self._require_primary()

    def _require_primary(self) -> None:
        primary = self.primary
        for what, value, held in (
            *(("arms", arm, self.arms) for arm in ("real", primary.arm, *primary.controls)),
            ("trainings", primary.training, self.trainings),
            ("augment", primary.augment, self.augment),
            *(("sizes", size, self.sizes) for size in primary.sizes or ()),
        ):
            if value not in held:
                raise RecipeError(f"{what}: expected {value!r} among them, which the primary analysis needs, got {list(held)}")

    @classmethod
    def load(cls, path: Path | str, allow: Sequence[str] = ()) -> StudyPlan:
        """Reads a plan from YAML; its relative paths start at the file's folder.

        Raises:
            RecipeError: no such file, not YAML, unknown or missing keys, values that cannot be meant.
        """
        content = read_yaml(Path(path), "a study with data and regime")
        return replace(cls.from_json(content), folder=Path(path).parent, allow=tuple(allow))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StudyPlan:
        """Makes a plan of plain values; the inverse of `as_json`."""
        values = dict(content)
        if isinstance(values.get("classifier"), Mapping):
            values["classifier"] = {"check_every": CHECK_EVERY} | dict(values["classifier"])
        if values.get("guide") == DIVERSE:
            values["guide"] = {"target": "monai_diverse.sampling.Diverse"}
        kinds: dict[str, type] = {"source": Component, "guide": Component, "screen": Component, "primary": Primary, "selection": Selection}
        kinds |= {"classifier": ClassifierConfig, "training": TrainConfig}
        for key, kind in kinds.items():
            if values.get(key) is not None:
                values[key] = from_mapping(kind, _tuples(values[key]), key)
            elif key not in ("source", "guide"):
                values.pop(key, None)
        if isinstance(values.get("labels"), list):
            values["labels"] = tuple(values["labels"])
        plan: StudyPlan = from_mapping(cls, values, "study", hidden=("folder", "allow"))
        return plan

    def as_json(self) -> dict[str, Any]:
        """Plain values, without where the file lay."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("folder", "allow")}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that was chosen."""
        return fingerprint_of(self.as_json())


def _require_one_of(what: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise RecipeError(f"{what}: expected one of {', '.join(map(str, allowed))}, got {value!r}")


def _tuples(values: Any) -> Any:
    """Settings keep lists as tuples; a component's arguments stay as they are."""
    if not isinstance(values, Mapping) or "target" in values:
        return values
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if hasattr(value, "__dataclass_fields__"):
        return {key: _plain(part) for key, part in asdict(value).items()}
    return value
