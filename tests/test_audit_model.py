from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from monai_diverse.audit import BiasVerdict, Effect, Membership, ModelAudit, Sampler, audit_model, audit_steps
from monai_diverse.audit.denoising import loss_factor
from monai_diverse.audit.distances import FLOOR
from monai_diverse.audit.memorisation import LEAST_IN_A_CELL, Memorisation
from monai_diverse.audit.nearest import OTHER, OUT, OWN
from monai_diverse.audit.one_model import AuditSettings
from monai_diverse.audit.samplers import Draws, default_samplers
from monai_diverse.audit.sets import AuditSets
from monai_diverse.bank import BankHeader, BankWriter, SampleBank
from monai_diverse.data import LabelledImages
from monai_diverse.datasheet import audit_digest, audit_lines
from monai_diverse.errors import DataError, RecipeError
from monai_diverse.sampling import NoiseSchedule, Shield
from monai_diverse.sources import BuiltinSource, CallableSource, FolderSource
from monai_diverse.sources.builtin import ASSETS, builtin_data
from monai_diverse.sources.conditioning import Conditioning
from monai_diverse.sources.diffusion import DiffusionSource
from monai_diverse.storage import read_json

BETAS = NoiseSchedule.from_diffusers({"num_train_timesteps": 200, "beta_schedule": "squaredcos_cap_v2"})
FLOW = NoiseSchedule.from_flow(200)
KEYS = {
    "kind", "version", "seed", "confidence", "tolerance", "seconds", "source", "features", "sets", "class_names", "samplers", "control", "membership",
    "pairs", "verdict", "limits", "mirrored",
}  # fmt: skip
ROW = {
    "name", "guidance", "scheduler", "steps", "guide", "images", "nfe", "bias", "own_nearer", "by_class", "c_t", "authenticity", "gap_ratio",
    "against_first", "concentration", "flat",
}  # fmt: skip


def smooth(count: int, seed: int, classes: int = 2, shape: tuple[int, ...] = (6, 6)) -> LabelledImages:
    """Coarse random images, brighter at one end in class 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.random((count, 1, *shape), dtype=np.float32) * 0.8
    slope = np.linspace(0, 0.2, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    images[labels > 0] += slope
    return LabelledImages(images=images, labels=labels)


class Remembering(nn.Module):
    """The exact denoiser of a set of images in [-1, 1], class by class: whoever samples with it draws these images."""

    def __init__(self, known: LabelledImages, schedule: NoiseSchedule, prediction_type: str) -> None:
        super().__init__()
        self.images = torch.from_numpy(known.images) * 2 - 1
        self.labels, self.schedule, self.kind = torch.from_numpy(known.labels), schedule, prediction_type

    def forward(self, x: Tensor, timesteps: Tensor, rows: dict[str, Tensor]) -> Tensor:
        index = timesteps[0].long() - (1 if self.schedule.flow else 0)
        abar, scale = self.schedule.at(index), self.schedule.network_scale(index)
        plain = x / scale
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        distances = torch.cdist(plain.flatten(1), alpha * self.images.flatten(1)).square()
        if "class_labels" in rows:
            null = rows["class_labels"][:, None] == 2
            distances = distances.masked_fill(~null & (rows["class_labels"][:, None] != self.labels), torch.inf)
        clean = (torch.softmax(-distances / (2 * sigma**2), 1) @ self.images.flatten(1)).reshape(x.shape)
        noise = (plain - alpha * clean) / sigma
        return {
            "sample": clean,
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "flow": noise - clean,
            "rflow": clean - noise,
        }[self.kind]


def remembering(known: LabelledImages, kind: str = "v_prediction", *, null: bool = False, labelled: bool = True) -> DiffusionSource:
    schedule = FLOW if kind in ("flow", "rflow") else BETAS
    told = Conditioning({"class_labels": torch.arange(2)}, {"class_labels": 2} if null else None) if labelled else None
    return DiffusionSource(
        Remembering(known, schedule, kind),
        schedule,
        shape=known.images.shape[1:],
        prediction_type=kind,
        conditioning=told,
        steps=10,
        name="remembering",
        identity=["remembering"],
    )


@pytest.fixture(scope="module")
def train() -> LabelledImages:
    return smooth(60, 1)


@pytest.fixture(scope="module")
def heldout() -> LabelledImages:
    return smooth(60, 2)


def quick(source: Any, train: LabelledImages, heldout: LabelledImages, **more: Any) -> ModelAudit:
    return audit_model(source, train, heldout, **({"images": 60, "permutations": 99, "membership": Membership(levels=4, draws=2)} | more))


def test_a_model_that_remembers_is_found_out(train: LabelledImages, heldout: LabelledImages) -> None:
    audit = quick(remembering(train, null=True), train, heldout)
    own = audit.summary["samplers"][0]
    assert audit.verdict.word == "beyond"
    assert own["bias"]["p"] == 0.01
    assert own["own_nearer"]["value"] > 0.99
    assert own["authenticity"]["value"] < 0.1 < own["authenticity"]["heldout"]
    assert own["gap_ratio"]["value"] > 0.9 > 0.1 > own["gap_ratio"]["heldout"]
    assert audit.summary["membership"]["auc"]["value"] > 0.9
    assert abs(audit.summary["control"]["bias"]["value"]) < 0.1
    guided = {row["name"]: row for row in audit.summary["samplers"]}
    assert list(guided) == ["own", "guidance 2", "guidance 4", "DDIM", "shield"]
    assert guided["own"]["nfe"] == 60 * 10
    assert guided["guidance 2"]["nfe"] == 60 * 20
    pair = audit.summary["pairs"][0]
    assert pair["distance"] < 0.1 < pair["heldout_distance"]
    assert audit.pictures["samples"][0] == pytest.approx(train.images[pair["train_index"]], abs=0.05)
    assert (audit.pictures["train"][0] == train.images[pair["train_index"]]).all()
    assert len({p["train_index"] for p in audit.summary["pairs"]}) == len(audit.summary["pairs"]) <= 24


@pytest.mark.parametrize("kind", ["epsilon", "sample", "flow", "rflow"])
def test_a_model_of_others_is_cleared_whatever_it_predicts(kind: str, train: LabelledImages, heldout: LabelledImages) -> None:
    audit = quick(remembering(smooth(400, 3), kind), train, heldout)
    low, high = audit.summary["samplers"][0]["bias"]["ci"]
    assert low <= 0 <= high
    low, high = audit.summary["membership"]["auc"]["ci"]
    assert low <= 0.5 <= high
    assert [row["name"] for row in audit.summary["samplers"]] == ["own"]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow", "rflow"])
def test_losses_are_those_of_what_the_network_predicts(kind: str, train: LabelledImages) -> None:
    source, known = remembering(smooth(20, 4), kind), smooth(20, 4)
    settings = Membership(levels=3, draws=1, seed=5)
    images = train[np.arange(4)]
    found = list(settings.losses(source, images.images, images.labels))
    network, schedule = Remembering(known, source.schedule, kind), source.schedule
    for index, losses in zip(settings.indices(schedule), found, strict=True):
        noise = torch.from_numpy(np.random.default_rng([5, int(index)]).standard_normal((1, 1, 6, 6), dtype=np.float32))
        at, x0 = torch.tensor(int(index)), torch.from_numpy(images.images) * 2 - 1
        if schedule.flow:  # as flows are trained: (1 - s) x0 + s eps
            s = schedule.flow_time(at)
            x, target = (1 - s) * x0 + s * noise, (noise - x0) * (1 if kind == "flow" else -1)
        else:
            alpha, sigma = schedule.at(at).sqrt(), (1 - schedule.at(at)).sqrt()
            x, target = alpha * x0 + sigma * noise, {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[kind]
        out = network(x, schedule.network_timestep(at).expand(4), {"class_labels": torch.from_numpy(images.labels)})
        expected = (out - target).square().flatten(1).mean(1)
        assert losses == pytest.approx(expected.double().numpy(), rel=2e-3, abs=1e-5)
        assert loss_factor(source, int(index)) > 0


def test_losses_of_a_mirrored_source_do_not_know_left_from_right(train: LabelledImages) -> None:
    source = remembering(train)
    source.mirrored = True
    settings = Membership(levels=2, draws=2)
    there = list(settings.losses(source, train.images[:5], train.labels[:5]))
    back = list(settings.losses(source, np.ascontiguousarray(train.images[:5, ..., ::-1]), train.labels[:5]))
    assert np.array(there) == pytest.approx(np.array(back), rel=1e-5)


def test_levels_are_even_in_the_logarithm_of_noise() -> None:
    fine = NoiseSchedule.from_diffusers({"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"})
    ratios = fine.noise_ratio(torch.from_numpy(Membership().indices(fine))).log().diff()
    assert len(ratios) == 7
    assert ratios.numpy() == pytest.approx(np.full(7, np.log(1000) / 7), rel=0.05)


def test_auc_and_gap_are_taken_within_classes_and_resampled_by_group() -> None:
    rng = np.random.default_rng(0)
    labels, sides = np.r_[np.zeros(30), np.ones(50), np.zeros(40), np.ones(20)].astype(np.int64), np.repeat(np.array([OWN, OTHER]), [80, 60])
    losses = rng.random(140) + 5 * labels + 0.2 * (sides == OTHER)
    groups = np.arange(140)
    report = Membership(levels=1, draws=1).report(BETAS, [losses], labels, groups, sides)
    parts = [(labels == c) for c in (0, 1)]
    expected = sum(w * roc_auc_score(sides[p] == OTHER, losses[p]) for w, p in zip((3 / 8, 5 / 8), parts, strict=True))
    assert report["auc"]["value"] == pytest.approx(expected)
    assert report["levels"][0]["auc"] == report["auc"]
    gap = sum(w * (losses[p & (sides == OTHER)].mean() - losses[p & (sides == OWN)].mean()) for w, p in zip((3 / 8, 5 / 8), parts, strict=True))
    level = report["levels"][0]
    assert level["gap"]["value"] == pytest.approx(gap) == pytest.approx(level["loss_heldout"] - level["loss_train"])
    twice = [np.repeat(a, 2) for a in (losses, labels, groups, sides)]
    by_group = Membership(levels=1, draws=1).report(BETAS, [twice[0]], twice[1], twice[2], twice[3])
    by_image = Membership(levels=1, draws=1).report(BETAS, [twice[0]], twice[1], np.arange(280), twice[3])
    assert by_group["auc"]["value"] == pytest.approx(report["auc"]["value"])
    assert by_group["auc"]["ci"] == pytest.approx(report["auc"]["ci"])
    width = [r["auc"]["ci"][1] - r["auc"]["ci"][0] for r in (by_group, by_image)]
    assert width[1] < 0.85 * width[0]


@pytest.mark.parametrize(
    ("value", "ci", "p", "tolerance", "word"),
    [
        (0.03, (0.01, 0.05), 0.05, 0.02, "beyond"),
        (0.03, (0.01, 0.05), 0.051, 0.02, "unresolved"),
        (0.02, (0.01, 0.03), 0.001, 0.02, "unresolved"),
        (0.01, (0.0, 0.02), 0.001, 0.02, "within"),
        (0.01, (0.0, 0.0201), 0.001, 0.02, "unresolved"),
        (-0.1, (-0.2, 0.0), 1.0, 0.0, "within"),
        (0.03, (0.01, 0.05), 0.001, None, None),
    ],
)
def test_verdicts_at_their_edges(value: float, ci: tuple[float, float], p: float, tolerance: float | None, word: str | None) -> None:
    verdict = BiasVerdict.of(Effect(value=value, ci=ci, p=p), tolerance, "own")
    assert verdict.word == word
    assert verdict.as_json()["word"] == word
    assert ("nearer to" if value >= 0 else "farther from") in verdict.text
    assert verdict.text.endswith(".")


def test_percentages_are_of_the_distance_to_training_images() -> None:
    halved = BiasVerdict.of(Effect(value=np.log(2), ci=(np.log(1.25), np.log(4)), p=0.01), 0.02, "own").text
    assert "50.0 % nearer to training images than unseen ones (95 % interval 20.0 to 75.0 %, p = 0.01)" in halved
    farther = BiasVerdict.of(Effect(value=-0.05, ci=(-0.08, 0.01), p=0.9), 0.02, "own").text
    assert "5.1 % farther from training images than unseen ones (95 % interval −1.0 to 8.3 %" in farther


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"control": Effect(value=0.03, ci=(0.01, 0.05))}, "differ in more than what the model saw"),
        ({"smallest_p": 0.1}, "so few patients"),
        ({"flat": True}, "without any contrast"),
    ],
)
def test_what_makes_an_audit_worthless_leaves_it_unresolved(given: dict[str, Any], reason: str) -> None:
    for bias in (Effect(value=0.3, ci=(0.2, 0.4), p=0.001), Effect(value=0.0, ci=(-0.01, 0.01), p=0.5)):
        assert BiasVerdict.of(bias, 0.02, "own").word != "unresolved"
        verdict = BiasVerdict.of(bias, 0.02, "own", **given)
        assert verdict.word == "unresolved"
        assert reason in verdict.as_json()["reasons"][0]
    fine = {"control": Effect(value=0.0, ci=(-0.1, 0.1)), "smallest_p": 0.01}
    assert BiasVerdict.of(Effect(value=0.3, ci=(0.2, 0.4), p=0.001), 0.02, "own", **fine).word == "beyond"


def test_blank_samples_are_not_within(train: LabelledImages, heldout: LabelledImages) -> None:
    blank = LabelledImages(images=np.full_like(train.images, 0.5), labels=train.labels)
    audit = quick(blank, train, heldout)
    assert audit.verdict.word == "unresolved"
    assert audit.summary["samplers"][0]["flat"] == audit.summary["samplers"][0]["images"]


def test_a_collapse_onto_one_patient_shows_in_the_concentration(train: LabelledImages, heldout: LabelledImages) -> None:
    copied = LabelledImages(images=np.repeat(train.images[:2], 30, axis=0), labels=np.repeat(train.labels[:2], 30))
    concentration = quick(copied, train, heldout).summary["samplers"][0]["concentration"]
    assert concentration["value"] == 0.5
    assert concentration["heldout"] < 0.2


def test_a_mirrored_training_image_is_its_patients(train: LabelledImages, heldout: LabelledImages) -> None:
    turned = LabelledImages(
        images=np.concatenate([heldout.images, train.images[:3, ..., ::-1]]), labels=np.concatenate([heldout.labels, train.labels[:3]])
    )
    found = [AuditSets.of(train, turned, None, 0.95, mirrored=mirrored) for mirrored in (False, True)]
    assert np.flatnonzero(found[1].sides == OUT).tolist() == [0, 1, 2, 120, 121, 122]
    assert OUT not in found[0].sides
    assert [sets.as_json(2)["groups_from"] for sets in found] == ["near-duplicates"] * 2
    assert AuditSets.of(train, heldout, np.arange(120), 0.95).as_json(2)["groups_from"] == "given"


def test_the_usual_metrics_agree_with_their_definitions() -> None:
    rng = np.random.default_rng(1)
    train, real, samples = (rng.normal(size=(n, 4)).astype(np.float32) for n in (70, 60, 90))
    samples[:30] = train[:30] + 0.05
    half = np.arange(60) % 2 == 0
    memory = Memorisation((train,), (real,), half, 0)
    found = memory.of((samples,))

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.maximum(np.linalg.norm(a[:, None].astype(np.float64) - b[None], axis=2), FLOOR)

    among = distances(train, train)
    np.fill_diagonal(among, np.inf)
    for name, images in (("value", samples), ("heldout", real)):
        d = distances(images, train)
        assert found["authenticity"][name] == pytest.approx((d.min(1) > among.min(1)[d.argmin(1)]).mean())
        assert found["gap_ratio"][name] == pytest.approx((3 * d.min(1) < np.partition(d, 1, axis=1)[:, 1]).mean())
    ours, theirs = distances(samples, train), distances(real, train)
    scores, weights = [], []
    for cell in np.unique(memory._cells):
        a, b = (d.min(1)[memory._cells[d.argmin(1)] == cell] for d in (ours, theirs))
        if min(len(a), len(b)) >= LEAST_IN_A_CELL:
            wins = (a[:, None] > b[None]).sum() + 0.5 * (a[:, None] == b[None]).sum()
            scores.append((wins - len(a) * len(b) / 2) / np.sqrt(len(a) * len(b) * (len(a) + len(b) + 1) / 12))
            weights.append(len(b))
    assert found["c_t"]["value"] == pytest.approx(np.average(scores, weights=weights))
    assert found["c_t"]["value"] < -2 < found["c_t"]["heldout"]
    low, high = found["authenticity"]["ci"]
    exact = stats.binomtest(round(90 * found["authenticity"]["value"]), 90).proportion_ci(0.95)
    assert (low, high) == pytest.approx((exact.low, exact.high))


def test_who_is_in_both_sets_is_in_neither(train: LabelledImages, heldout: LabelledImages) -> None:
    twins = LabelledImages(images=np.concatenate([heldout.images, train.images[:3] * 0.9]), labels=np.r_[heldout.labels, train.labels[:3]])
    sets = AuditSets.of(train, twins, None, 0.95)
    assert np.flatnonzero(sets.sides == OUT).tolist() == [0, 1, 2, 120, 121, 122]
    assert sets.as_json(2)["heldout"] == {"images": 60, "groups": 60, "images_per_group": 1, "by_class": [30, 30], "dropped": 3}
    assert len(sets.compared) == 60
    named = np.arange(123)
    named[100] = 7
    sets = AuditSets.of(train, twins, named, 0.95)
    assert np.flatnonzero(sets.sides == OUT).tolist() == [7, 100]
    own = [LabelledImages(images=s.images, labels=s.labels, groups=np.arange(len(s)) + first) for s, first in ((train, 0), (twins, 58))]
    assert np.flatnonzero(AuditSets.of(own[0], own[1], None, 0.95).sides == OUT).tolist() == [58, 59, 60, 61]


def test_audits_are_json_repeat_themselves_and_follow_the_seed(train: LabelledImages, heldout: LabelledImages) -> None:
    source = CallableSource(
        lambda labels, seeds: np.stack([smooth(2, int(seed), shape=(6, 6)).images[label] for label, seed in zip(labels, seeds, strict=True)]),
        shape=(1, 6, 6),
        classes=2,
        name="random",
        version="1",
    )
    first, again, other = (quick(source, train, heldout, seed=seed).as_json() for seed in (1, 1, 2))
    assert first.keys() == KEYS
    assert {row.keys() <= ROW and row.keys() >= ROW for row in first["samplers"]} == {True}
    assert first["membership"] is None
    texts = [json.dumps({k: v for k, v in summary.items() if k != "seconds"}, allow_nan=False) for summary in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert [row["label"] for row in first["samplers"][0]["by_class"]] == [0, 1]


def test_three_dimensions_and_a_model_without_classes() -> None:
    train, heldout = smooth(30, 5, shape=(4, 4, 4)), smooth(30, 6, shape=(4, 4, 4))
    audit = quick(remembering(train, labelled=False), train, heldout, images=30)
    assert audit.summary["class_names"] == ["class 0"]
    assert audit.summary["sets"]["train"]["by_class"] == [30]
    assert audit.verdict.word == "beyond"
    assert audit.pictures["samples"].shape[1:] == (1, 4, 4, 4)


def test_images_alone_copies_and_few_of_them(train: LabelledImages, heldout: LabelledImages) -> None:
    audit = quick(train[np.arange(6)], train, heldout)
    row = audit.summary["samplers"][0]
    assert row["name"] == "bank"
    assert row["images"] == 6
    assert row["own_nearer"]["value"] == 1
    assert np.isfinite(row["bias"]["ci"]).all()
    assert audit.summary["pairs"][0]["distance"] == pytest.approx(FLOOR)
    assert {p["train_index"] for p in audit.summary["pairs"]} == set(range(6))
    one_class = quick(train[np.flatnonzero(train.labels == 1)], train, heldout).summary["samplers"][0]
    assert [part["label"] for part in one_class["by_class"]] == [1]


def test_banks_and_folders_are_audited_as_they_are(train: LabelledImages, heldout: LabelledImages, tmp_path: Path) -> None:
    seen = {"generator_train": {"path": "x", "mirrored": True}}
    header = BankHeader(
        recipe=seen, recipe_fingerprint="ab" * 32, source={"name": "m", "fingerprint": "f", "class_names": ["a", "b"]}, features={}, shape=(1, 6, 6),
        classes=2, dtype="float32",
    )  # fmt: skip
    turned = LabelledImages(images=np.ascontiguousarray(train.images[:20, ..., ::-1]), labels=train.labels[:20])
    with BankWriter.create_or_resume(tmp_path / "bank", header, resume=False) as writer:
        writer.append(turned.images, turned.labels, np.arange(100, 120), {}, {})
    audit = quick(SampleBank.open(tmp_path / "bank"), train, heldout)
    assert audit.summary["class_names"] == ["a", "b"]
    assert audit.verdict.word == "beyond"  # only because mirrored images count
    assert {p["seed"] for p in audit.summary["pairs"]} <= set(range(100, 120))
    assert quick(SampleBank.open(tmp_path / "bank"), train, heldout, mirrored=False).verdict.word != "beyond"
    np.savez(tmp_path / "drawn.npz", images=np.round(heldout.images[:, 0] * 255).astype(np.uint8), labels=heldout.labels)
    folder = FolderSource(tmp_path / "drawn.npz")
    assert quick(folder, train, smooth(40, 7)).summary["samplers"][0]["images"] == 60


def test_classes_are_drawn_as_often_as_train_has_them() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    draws = Draws.of(remembering(smooth(4, 0)), labels, 50, 3)
    assert np.bincount(draws.labels).tolist() == [35, 10, 5]
    assert len(set(draws.seeds.tolist())) == 50
    assert (np.diff(draws.labels) < 0).any()


def test_samplers_are_compared_on_the_same_seeds(train: LabelledImages, heldout: LabelledImages) -> None:
    chosen = (Sampler(name="a"), Sampler(name="b"), Sampler(name="away", guide=Shield(strength=1.0, sigma_min=0.05, distinct=0.0), steps=12))
    audit = quick(remembering(train), train, heldout, samplers=chosen)
    first, same, away = audit.summary["samplers"]
    assert first["against_first"] is None
    assert same["against_first"] == {"bias": {"value": 0.0, "ci": [0.0, 0.0]}}
    assert away["against_first"]["bias"]["value"] == pytest.approx(away["bias"]["value"] - first["bias"]["value"])
    assert (away["guide"], away["steps"], away["nfe"]) == ("Shield", 12, 720)


def test_progress_ends_with_the_audit(train: LabelledImages, heldout: LabelledImages) -> None:
    settings = AuditSettings(images=30, permutations=19, membership=Membership(levels=3, draws=1))
    steps = list(audit_steps(remembering(train), train, heldout, settings=settings))
    assert [s.audit is None for s in steps] == [True] * (len(steps) - 1) + [False]
    assert list(dict.fromkeys(s.stage for s in steps)) == ["sample: own", "membership", "control", "done"]
    assert all(0 <= s.share <= 1 for s in steps)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": 1}, "images: expected a whole number from 2, got 1"),
        ({"permutations": 5}, "permutations: expected a whole number from 19"),
        ({"seed": -1}, "seed: expected"),
        ({"tolerance": -0.1}, "tolerance: expected a bias from 0"),
        ({"twin_correlation": 1.0}, "twin_correlation: expected between 0 and 1"),
        ({"samplers": (Sampler(name="a"), Sampler(name="a"))}, "samplers: expected each name once"),
        ({"samplers": (Sampler(name="a", guidance=3.0),)}, "guidance scale 3.0: expected a model trained with a null class"),
    ],
)
def test_settings_that_cannot_be_meant(more: dict[str, Any], message: str, train: LabelledImages, heldout: LabelledImages) -> None:
    with pytest.raises(RecipeError, match=message):
        quick(remembering(train), train, heldout, **more)


def test_sets_that_do_not_fit(train: LabelledImages, heldout: LabelledImages) -> None:
    model = remembering(train)
    with pytest.raises(DataError, match="heldout: expected images of train's shape"):
        quick(model, train, smooth(20, 1, shape=(5, 5)))
    with pytest.raises(DataError, match="source: expected images of train's shape"):
        quick(model, smooth(20, 1, shape=(5, 5)), smooth(20, 2, shape=(5, 5)))
    with pytest.raises(DataError, match=r"heldout: expected at least 2 groups of class 1, .*, got 0"):
        quick(model, train, heldout[np.flatnonzero(heldout.labels == 0)])
    with pytest.raises(DataError, match=r"train: expected at least 2 groups of class 2, .*, got 0"):
        quick(smooth(12, 1, classes=3), train, heldout)
    with pytest.raises(DataError, match="groups: expected patients of one set alone, got all 60 held-out images in groups of both"):
        quick(model, train, heldout, groups=np.r_[np.arange(60) % 59, np.arange(60) % 50])
    with pytest.raises(DataError, match="groups: expected whole numbers"):
        quick(model, train, heldout, groups=np.arange(7))
    with pytest.raises(DataError, match="source: expected a SampleSource, a SampleBank or LabelledImages, got str"):
        quick("model", train, heldout)
    with pytest.raises(RecipeError, match="samplers: expected none with a LabelledImages"):
        quick(train, train, heldout, samplers=(Sampler(name="a"),))
    with pytest.raises(RecipeError, match="sampler a: expected no guidance and no scheduler"):
        Sampler(name="a", guidance=2.0).applied(CallableSource(lambda a, b: a, shape=(1, 6, 6), classes=2, name="x", version="1"))


def test_a_control_that_would_be_too_small_is_left_out(train: LabelledImages, heldout: LabelledImages) -> None:
    few = heldout[np.r_[np.flatnonzero(heldout.labels == 0)[:3], np.flatnonzero(heldout.labels == 1)[:3]]]
    assert quick(train, train, few).summary["control"] is None


def test_the_shipped_model_end_to_end() -> None:
    data, source = builtin_data(), BuiltinSource(steps=2)
    assert [s.name for s in default_samplers(source)] == ["own", "guidance 2", "guidance 4", "DDIM", "shield"]
    samplers = (Sampler(name="own"), Sampler(name="guided", guidance=3.0))
    few = [s[np.concatenate([np.flatnonzero(s.labels == c)[:8] for c in (0, 1)])] for s in (data.generator_train, data.calibration)]
    audit = audit_model(source, few[0], few[1], images=8, samplers=samplers, permutations=19, membership=Membership(levels=2, draws=1))
    summary = json.loads(json.dumps(audit.summary, allow_nan=False))
    assert summary.keys() == KEYS
    assert [row["nfe"] for row in summary["samplers"]] == [16, 32]
    assert len(summary["membership"]["levels"]) == 2
    assert summary["class_names"] == ["malignant", "normal or benign"]
    assert summary["samplers"][1]["against_first"]["bias"]["ci"] is not None
    assert 0 < summary["samplers"][0]["own_nearer"]["value"] < 1


def test_the_shipped_models_card_has_the_audit_of_its_weights() -> None:
    found = audit_digest(read_json(ASSETS / "audit.json"))
    assert found["source"]["fingerprint"] == BuiltinSource().fingerprint
    assert all(f"- {line}" in (ASSETS / "CARD.md").read_text() for line in audit_lines(found))
