from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from monai_diverse.bank import SampleBank, select
from monai_diverse.cli.main import main
from monai_diverse.data import load_images
from monai_diverse.data.medmnist import medmnist_file
from monai_diverse.errors import DataError, MissingExtraError, RecipeError, StorageError
from monai_diverse.report import study_markdown, write_study
from monai_diverse.sources.builtin import DATA
from monai_diverse.storage import read_json
from monai_diverse.study import Selection, Study, StudyPlan, outcome, study_steps
from monai_diverse.study import runs as runs_module
from monai_diverse.study.cohort import Cohort
from monai_diverse.study.conduct import Cell, chosen_ratio, draws
from monai_diverse.study.crew import Crew, in_order
from monai_diverse.study.runs import settings, sweep
from monai_diverse.study.synthetic import found
from monai_diverse.study.user import user_of
from monai_diverse.study.workers import find_banks, run_jobs
from tests.conftest import OUTLIER_FACTORS


def screen_of(level: float, tolerance: float = 50.0) -> dict[str, Any]:
    gates = {
        "novelty": {"target": "monai_diverse.screening.NoveltyGate", "arguments": {"alpha": 0.9}},
        "relevance": {"target": "monai_diverse.screening.RelevanceGate", "arguments": {"level": level}},
        "outlier": {"target": "monai_diverse.screening.OutlierGate", "arguments": {"textures": None, **dict.fromkeys(OUTLIER_FACTORS, tolerance)}},
    }
    return {"target": "monai_diverse.NoveltyScreen", "arguments": {"extractor": {"target": "monai_diverse.features.PixelFeatures"}, **gates}}


CLASSIFIER = {"steps": 4, "batch_size": 8, "channels": [8, 8, 8, 8], "check_every": 2}


@pytest.fixture(params=["processes", "ray"])
def crew(request: pytest.FixtureRequest) -> Crew:
    if request.param == "processes":
        return Crew(workers=2)
    request.getfixturevalue("ray_here")
    return Crew(workers=2, ray="auto")


@pytest.fixture(scope="module")
def content(tiny_model: Path, blob_file: Path) -> dict[str, Any]:
    """A plan whose every part is small."""
    return {
        "name": "blobs",
        "data": str(blob_file),
        "regime": "pretrained",
        "source": {"target": "monai_diverse.DiffusersSource", "arguments": {"folder": str(tiny_model), "steps": 3}},
        "split_file": str(tiny_model / "split.json"),
        "sizes": [0.25, 1.0],
        "ratios": [0.2, 0.5],
        "seeds": 2,
        "arms": ["real", "balanced", "duplicates", "random", "relevant", "diverse", "diverse_ungated", "brute_force", "extra_real"],
        "trainings": ["mixed", "pretrain", "fade", "balanced"],
        "augment": [True],
        "pool": 160,
        "guide": None,
        "screen": screen_of(level=0.034),
        "max_evaluations": 3 * 64,
        "batch_size": 32,
        "classifier": CLASSIFIER,
        "twin_correlation": 0.9999,
    }


@pytest.fixture(scope="module")
def strict(content: dict[str, Any]) -> dict[str, Any]:
    """The same in the other regime."""
    training = {"steps": 2, "batch_size": 8, "channels": [16, 32], "check_every": 2, "validation_draws": 1, "twin_correlation": 0.9999}
    return {k: v for k, v in content.items() if k not in ("source", "split_file")} | {
        **{"regime": "strict", "training": training, "sizes": [0.5], "ratios": [0.5], "arms": ["real", "duplicates", "random", "diverse"]},
        **{"trainings": ["mixed"], "steps": 2, "max_evaluations": 64, "screen": screen_of(level=0.2)},
    }


@pytest.fixture(scope="module")
def plan(content: dict[str, Any]) -> StudyPlan:
    return StudyPlan.from_json(content)


@pytest.fixture(scope="module")
def study(plan: StudyPlan, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return conducted(plan, tmp_path_factory.mktemp("study"))


def conducted(plan: StudyPlan, out: Path, *, test: bool = True) -> Study:
    study = Study.begin(plan, out, test=test)
    for _ in study_steps(study):
        pass
    return study


# --- the plan


def test_a_plan_is_its_json(plan: StudyPlan, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(plan.as_json()))
    assert StudyPlan.load(file) == plan
    assert StudyPlan.load(file).fingerprint == plan.fingerprint
    assert dataclasses.replace(plan, seeds=3).fingerprint != plan.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regime": "loose"}, "regime: expected one of pretrained, strict, got 'loose'"),
        ({"arms": ["real", "diverse"]}, "arms: expected 'random' among them, which the primary analysis needs"),
        ({"arms": ["real", "random", "duplicates", "diverse", "divers"]}, "expected one of real, balanced"),
        ({"sizes": [0, 0.5]}, "sizes: expected shares above 0 and up to 1"),
        ({"sizes": [0.5, 0.5]}, "sizes: expected a list of one or more different values"),
        ({"ratios": []}, "ratios: expected a list of one or more different values"),
        ({"seeds": 1}, "seeds: expected a whole number from 2, got 1"),
        ({"labels": "even"}, "labels: expected 'reference', 'balanced' or a list of shares, got 'even'"),
        ({"subsets": 3}, "subsets: expected 1..2"),
        ({"regime": "strict"}, "source: expected none in the regime 'strict'"),
        ({"primary": {"arm": "real"}}, "primary: expected an arm with a bank"),
        ({"primary": {"sizes": [0.1]}}, "sizes: expected 0.1 among them, which the primary analysis needs"),
        ({"primary": {"metric": "f1"}}, "metric: expected balanced_accuracy, accuracy, auc or recall_0"),
        ({"primary": {"metric": "ece"}}, "metric: expected balanced_accuracy"),
        ({"primary": {"metric": "recall_01"}}, "metric: expected balanced_accuracy"),
        ({"surprise": 1}, "study: unknown key 'surprise'"),
        ({"classifier": {"stepz": 3}}, "classifier: unknown key 'stepz'"),
        ({"seed": 2**15}, "seed: expected a whole number in 0..32767"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_one_line(content: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        StudyPlan.from_json(content | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_setting_of_the_classifier_leaves_the_others_as_they_are(content: dict[str, Any]) -> None:
    plain = StudyPlan.from_json({name: value for name, value in content.items() if name != "classifier"}).classifier
    assert plain.check_every == 20
    assert StudyPlan.from_json(content | {"classifier": {"steps": 7}}).classifier == dataclasses.replace(plain, steps=7)
    assert StudyPlan.from_json(content | {"classifier": {"check_every": None}}).classifier.check_every is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"primary": {"metric": "recall_2"}}, "metric: expected a recall of class 0..1, got 'recall_2'"),
        ({"labels": [1.0, 1.0, 1.0]}, "labels: expected 2 shares from 0, one a class"),
        ({"sizes": [0.001, 1.0]}, "sizes: expected a share that leaves an image of every class, got 0.001"),
    ],
)
def test_what_the_data_do_not_allow_is_said_before_anything_is_trained(
    content: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, DataError), match=re.escape(message)):
        Study.begin(StudyPlan.from_json(content | change), tmp_path)
    Study.begin(StudyPlan.from_json(content), tmp_path)  # the folder is not bound to the plan that could not be


def test_too_small_a_share_of_what_the_generator_saw_is_said_before_samples_are_drawn(content: dict[str, Any], tmp_path: Path) -> None:
    enough_of_all = 0.6 / min(load_images(content["data"], "train").class_counts)
    study = Study.begin(StudyPlan.from_json(content | {"sizes": [enough_of_all]}), tmp_path)
    with pytest.raises(DataError, match="sizes: expected a share that leaves an image of every class, got"):
        list(study_steps(study))
    assert not list(tmp_path.glob("banks/pool-*"))


def test_a_folder_keeps_one_plan(plan: StudyPlan, tmp_path: Path) -> None:
    Study.begin(plan, tmp_path)
    Study.begin(plan, tmp_path)
    with pytest.raises(RecipeError, match="a plan is fixed once it runs"):
        Study.begin(dataclasses.replace(plan, seeds=3), tmp_path)


def test_another_processor_is_warned_of(plan: StudyPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AVX512", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        Study.begin(plan, tmp_path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with pytest.warns(UserWarning, match="begun with the vector instructions AVX512, goes on with AVX2"):
        Study.begin(plan, tmp_path)
    with pytest.warns(UserWarning, match="AVX512"):  # what was mixed stays mixed
        Study.begin(plan, tmp_path)
    assert read_json(tmp_path / "processors.json") == {"instructions": ["AVX512", "AVX2"]}


# --- who plays which part


def test_draws_are_nested_and_keep_class_shares(plan: StudyPlan, tmp_path: Path) -> None:
    cohort = Cohort.load(plan, tmp_path)
    everything = np.arange(len(cohort.train))
    for draw in range(3):
        small, large = (cohort.drawn(everything, size, draw, 0) for size in (0.1, 0.4))
        assert set(small) < set(large)
        assert np.bincount(cohort.train.labels[small]).tolist() == [round(0.1 * n) for n in cohort.train.class_counts]
    assert not np.array_equal(cohort.drawn(everything, 0.1, 0, 0), cohort.drawn(everything, 0.1, 1, 0))
    with pytest.raises(DataError, match="expected a share that leaves an image of every class"):
        cohort.drawn(everything, 0.001, 0, 0)


def test_user_extra_and_generator_share_what_they_may(study: Study) -> None:
    groups = study.cohort.train.group_ids
    for cell in study.cells:
        for stock in cell.stocks:
            user = stock.user
            assert set(user.reals) <= set(user.generator.seen)
            assert not set(groups[user.reals]) & set(groups[user.extra])
            assert not set(user.reals) & set(user.generator.aside)
    assert len(study.cells[1].stocks) == 1
    assert len(study.cells[0].stocks) == draws(study.plan, 0.25) == 2


def test_twins_of_test_images_are_found(plan: StudyPlan, blob_file: Path, tmp_path: Path) -> None:
    with np.load(blob_file) as archive:
        arrays = dict(archive)
    arrays["test_images"] = arrays["test_images"].copy()
    arrays["test_images"][3] = arrays["train_images"][7]
    arrays["test_images"][4] = arrays["val_images"][2]
    np.savez(tmp_path / "twins.npz", **arrays)
    cohort = Cohort.load(dataclasses.replace(plan, data=str(tmp_path / "twins.npz")), tmp_path)
    assert np.flatnonzero(~cohort.test_apart).tolist() == [3, 4]


def test_the_medmnist_name_must_be_known(plan: StudyPlan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="medmnist:liver: expected one of breastmnist, pneumoniamnist"):
        Cohort.load(dataclasses.replace(plan, data="medmnist:liver"), tmp_path)


def test_a_medmnist_file_that_is_there_is_checked_and_taken(tmp_path: Path) -> None:
    """The shipped file is the published one, byte for byte, so nothing needs to be downloaded."""
    shutil.copy(DATA, tmp_path / "breastmnist.npz")
    assert medmnist_file("breastmnist", tmp_path) == tmp_path / "breastmnist.npz"
    with (tmp_path / "breastmnist.npz").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match="medmnist:breastmnist: expected the published file, but") as caught:
        medmnist_file("breastmnist", tmp_path)
    assert "\n" not in str(caught.value)


# --- arms


def test_selection_by_information_gain_takes_what_tells_most_first(study: Study) -> None:
    bank = study.cells[0].stocks[0].found.grown["diverse"]
    ranked = Selection(order="information_gain").ranked(bank)
    assert np.all(np.diff(bank.scores["information_gain"][ranked]) <= 0)
    assert sorted(ranked) == Selection().ranked(bank).tolist() == list(range(len(bank)))
    with pytest.raises(RecipeError, match="order: expected one of grown, information_gain, got 'best'"):
        Selection(order="best")  # type: ignore[arg-type]


def test_the_plans_of_the_benchmarks_can_be_read() -> None:
    plans = sorted((Path(__file__).parents[1] / "benchmarks" / "studies").rglob("*.yaml"))
    assert {StudyPlan.load(file).regime for file in plans} == {"pretrained", "strict"}


def test_arms_have_equal_counts_and_the_right_images(study: Study) -> None:
    for cell in study.cells:
        for stock in cell.stocks:
            for ratio in study.plan.ratios:
                ours = stock.bank("diverse", ratio)
                assert np.all(np.array(ours.class_counts) <= stock.asked(ratio))
                assert len(ours) > 0
                for control in set(study.plan.arms) - {"real", "balanced", "diverse"}:
                    bank = stock.bank(control, ratio)
                    assert np.all(np.array(bank.class_counts) <= ours.class_counts)
                    if control == "random":
                        assert bank.class_counts == ours.class_counts
                reals = study.cohort.train.images
                for control, own in (("duplicates", stock.user.reals), ("extra_real", stock.user.extra)):
                    bank = stock.bank(control, ratio)
                    assert set(bank.seeds.tolist()) <= set(own.tolist())
                    assert np.abs(bank.images[:] - reals[bank.seeds]).max() <= 0.5 / 255 + 1e-6


def test_arms_that_found_fewer_are_shown_them_no_oftener(study: Study) -> None:
    stock = study.cells[0].stocks[0]
    ours = stock.bank("diverse", 0.5)
    assert stock.shares("diverse", 0.5) == stock.shares("random", 0.5) == stock.shares("duplicates", 0.5) == pytest.approx(1 / 3)
    few = dataclasses.replace(stock, found=dataclasses.replace(stock.found, accepted={"tsne_hull": np.arange(3)}))
    held = np.array(few.bank("tsne_hull", 0.5).class_counts)
    assert 0 < held.sum() < len(ours)
    assert held[0] / ours.class_counts[0] != held[1] / ours.class_counts[1]
    shown = np.array(few.arm("tsne_hull", ratio=0.5, augment=True, training="mixed").prob)
    np.testing.assert_allclose(shown / (1 - shown), 0.5 * held / ours.class_counts)


def test_further_reals_are_shown_as_often_as_the_users_own_of_their_class(study: Study) -> None:
    stock = study.cells[0].stocks[0]
    one_sided = stock.user.extra[study.cohort.train.labels[stock.user.extra] == 0]
    stock = dataclasses.replace(stock, user=dataclasses.replace(stock.user, extra=one_sided))
    extra, own = np.array(stock.bank("extra_real", 0.5).class_counts), np.bincount(study.cohort.train.labels[stock.user.reals])
    assert extra[0] > 0 == extra[1]
    np.testing.assert_allclose(stock.arm("extra_real", ratio=0.5, augment=True, training="mixed").prob, extra / (extra + own))


def test_a_bank_without_a_class_is_not_trained_on(content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A screen that accepts nothing: the study says so, and does not call it a null result."""
    screen = screen_of(level=0.034, tolerance=1e-6)
    small = content | {"sizes": [1.0], "ratios": [0.5], "trainings": ["mixed"], "screen": screen}
    study = Study.begin(StudyPlan.from_json(small), tmp_path)
    said = [progress.detail for progress in study_steps(study)]
    reason = "no sample of class 0 or 1 was accepted for 1 of 1 users"
    assert f"1 of the reals: not tested, {reason}" in said
    found = json.loads(json.dumps(outcome(study), allow_nan=False))
    (cell,) = found["cells"]
    assert (cell["untested"], cell["ratio"], cell["comparisons"], cell["ratios"]) == (reason, None, [], [])
    assert {row["arm"] for row in cell["arms"]} == {"real", "balanced"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small))
    assert main(["study", str(tmp_path / "study.yaml"), "--out", str(tmp_path)]) == 0
    for text in (write_study(tmp_path, found).read_text(), study_markdown(found), capsys.readouterr().out):
        assert f"At 100 % ({cell['real']['images']} images) nothing was tested: {reason}." in text
        assert "null result" not in text


def test_a_smaller_ratio_is_a_part_of_a_larger_one(study: Study) -> None:
    stock = study.cells[0].stocks[0]
    for arm in ("diverse", "random", "duplicates"):
        small, large = (set(stock.bank(arm, ratio).seeds.tolist()) for ratio in study.plan.ratios)
        assert small < large


def test_each_setting_is_trained_on_every_seed_once(study: Study) -> None:
    plan = study.plan
    for cell in study.cells:
        asked = set(sweep(plan)) | set(settings(plan, cell.ratio or 0))
        assert {result.setting for result in cell.results} == asked
        assert len(cell.results) == len(asked) * plan.seeds


def test_validation_chooses_the_ratio(study: Study) -> None:
    cell, plan = study.cells[0], study.plan
    for wanted in plan.ratios:
        results = [
            dataclasses.replace(r, run=dataclasses.replace(r.run, validation={"balanced_accuracy": float(r.setting.ratio == wanted)}, metrics={}))
            for r in cell.results
        ]
        assert chosen_ratio(plan, results) == wanted


@pytest.mark.parametrize(("labels", "shares"), [("balanced", (0.5, 0.5)), ((1.0, 3.0), (0.25, 0.75))])
def test_arms_take_the_shares_of_classes_that_the_plan_says(study: Study, labels: Any, shares: tuple[float, float]) -> None:
    stock = study.cells[1].stocks[0]
    first = stock.user.reals[np.flatnonzero(stock.cohort.train.labels[stock.user.reals] == 0)]
    stock = dataclasses.replace(stock, user=dataclasses.replace(stock.user, reals=np.setdiff1d(stock.user.reals, first[::2])))
    other = dataclasses.replace(stock, plan=dataclasses.replace(study.plan, labels=labels))
    ratio = 0.2
    np.testing.assert_array_equal(other.asked(ratio), np.round(ratio * len(stock.user.reals) * np.array(shares)))
    held = np.bincount(stock.found.grown["diverse"].labels, minlength=2)
    expected = np.minimum(np.minimum(other.asked(ratio), held), np.bincount(stock.pool.labels, minlength=2))
    for name in ("diverse", "random"):
        np.testing.assert_array_equal(other.bank(name, ratio).class_counts, expected)
    assert other.bank("diverse", ratio).class_counts != stock.bank("diverse", ratio).class_counts


def test_the_smallest_ratio_asks_for_every_class(study: Study) -> None:
    stock = study.cells[0].stocks[0]
    own = np.bincount(study.cohort.train.labels[stock.user.reals])
    assert stock.asked(0.01).tolist() == [1, 1]
    np.testing.assert_array_equal(stock.asked(2.0), 2 * own)


def test_an_arm_that_is_to_take_none_of_a_class_is_not_trained(study: Study) -> None:
    stock = study.cells[1].stocks[0]
    one_sided = dataclasses.replace(stock, plan=dataclasses.replace(study.plan, labels=(1.0, 0.0)))
    assert one_sided.lacking().tolist() == [1]


def test_a_small_pool_makes_all_arms_small(study: Study) -> None:
    """`random` is taken from the pool, and no arm may have more."""
    stock = study.cells[1].stocks[0]
    tiny = select(study.cells[0].stocks[0].pool, np.arange(3), study.out / "tiny")
    short = dataclasses.replace(stock, pool=tiny, found=dataclasses.replace(stock.found, accepted={}))
    assert short.bank("random", 0.5).class_counts == short.bank("diverse", 0.5).class_counts == tiny.class_counts
    none = dataclasses.replace(short, pool=select(tiny, np.flatnonzero(tiny.labels == 0), study.out / "none"))
    assert none.lacking().tolist() == [1]


# --- the outcome


def test_the_outcome_is_complete_and_honest(study: Study) -> None:
    found = json.loads(json.dumps(outcome(study), allow_nan=False))
    assert [cell["size"] for cell in found["cells"]] == [0.25, 1.0]
    assert found["instructions"] == [torch.backends.cpu.get_cpu_capability()]
    primary = [row for cell in found["cells"] for row in cell["comparisons"] if row["primary"]]
    assert {(row["control"], row["training"], row["augment"]) for row in primary} == {("random", "mixed", True), ("duplicates", "mixed", True)}
    assert len(primary) == 4
    for cell in found["cells"]:
        beside = {(row["arm"], row["control"]) for row in cell["comparisons"] if row["arm"] != "diverse"}
        assert beside == {("random", "real"), ("relevant", "random"), ("extra_real", "real")}
        assert cell["untested"] is None
    assert all((row["auc"] is None) == (row["training"] != "mixed") for cell in found["cells"] for row in cell["comparisons"])
    assert {row["training"] for cell in found["cells"] for row in cell["comparisons"]} == {"mixed", "pretrain", "fade", "balanced"}
    assert all(row["difference"]["p"] <= row["difference"]["p_holm"] <= 1 for row in primary)
    assert all(row["difference"]["p_holm"] is None for cell in found["cells"] for row in cell["comparisons"] if not row["primary"])
    for cell, held in zip(found["cells"], study.cells, strict=True):
        for row in cell["arms"]:
            runs = [
                r.run for r in held.results if (r.setting.arm, r.setting.training, r.setting.ratio) == (row["arm"], row["training"], row["ratio"])
            ]
            assert row["seeds"] == len(runs) == 2
            assert sum(row["by_class"]) == pytest.approx(row["images"])
            assert row["metrics"]["balanced_accuracy"]["mean"] == pytest.approx(np.mean([run.metrics["balanced_accuracy"] for run in runs]))
            assert {"ece", "recall_0", "recall_1", "auc", "accuracy"} < set(row["metrics"])
        assert {"heldout_real", "diverse", "brute_force"} < set(cell["yields"])


def test_an_arm_that_found_nothing_is_left_out(study: Study) -> None:
    def emptied(cell: Cell) -> Cell:
        results = [dataclasses.replace(r, by_class=(0, 0)) if r.setting.arm == "relevant" else r for r in cell.results]
        return dataclasses.replace(cell, results=results)

    found = outcome(dataclasses.replace(study, cells=[emptied(cell) for cell in study.cells]))
    for cell in found["cells"]:
        assert "relevant" not in {row["arm"] for row in cell["arms"]} | {row["control"] for row in cell["comparisons"]}
        assert {"real", "random", "brute_force"} < {row["arm"] for row in cell["arms"]}


def test_a_finished_study_trains_nothing_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs_module, "run_study", refuse)
    again = conducted(study.plan, study.out)
    assert outcome(again) == outcome(study)


def test_an_interrupted_study_goes_on_to_the_same_outcome(study: Study, tmp_path: Path) -> None:
    for stop in (1, 4, 9, 25):
        steps = study_steps(Study.begin(study.plan, tmp_path))
        for _ in range(stop):
            next(steps)
        steps.close()
    resumed = conducted(study.plan, tmp_path)

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if key != "seconds"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    assert timeless(outcome(resumed)) == timeless(outcome(study))


def test_several_workers_give_the_same_results_in_the_same_order(study: Study, tmp_path: Path, crew: Crew) -> None:
    cell = study.cells[0]
    stocks = [dataclasses.replace(stock, out=tmp_path) for stock in cell.stocks]  # a folder without results
    wanted = [result for result in cell.results if result.setting.training == "mixed"][:8]
    jobs = [(result.setting, result.seed % len(stocks), result.seed) for result in wanted]
    for before, now in zip(wanted, run_jobs(jobs, stocks, study.scored(), crew=crew), strict=True):
        assert (now.setting, now.seed, now.images, now.run.metrics) == (before.setting, before.seed, before.images, before.run.metrics)
    assert len(list((tmp_path / "runs").iterdir())) == len(jobs)


def test_outcomes_come_in_the_order_of_the_tasks() -> None:
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b"), (3, "d")]))) == ["a", "b", "c", "d"]


def test_a_crew_that_cannot_be_had_is_one_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="workers: expected at least 1, got 0"):
        Crew(workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'monai-diverse\[ray\]'"):
        list(study_steps(Study.begin(study.plan, study.out), crew=Crew(ray="auto")))


def test_a_killed_worker_is_said_in_one_line_and_errors_come_through(crew: Crew) -> None:
    """And no thread is left that would use the pool, or Ray, after its end."""
    crew = dataclasses.replace(crew, workers=1)  # a second one would only be loaded
    threads = threading.enumerate()
    with pytest.raises(StorageError, match="study: a process was killed, perhaps for want of memory; run again with fewer --workers"):
        list(crew.each(int, (), os._exit, [1, 2]))
    with pytest.raises(RecipeError, match=r"absent.yaml: expected a study with data and regime"):
        list(crew.each(int, (), StudyPlan.load, ["absent.yaml", "absent.yaml"]))
    assert [thread for thread in threading.enumerate() if thread not in threads] == []


def test_more_workers_than_the_cluster_has_places(ray_here: None) -> None:
    with pytest.raises(RecipeError, match=r"workers: expected at most \d+, one a (GPU|core) of the cluster, got 1000"):
        list(Crew(workers=1000, ray="auto").each(int, (), abs, [1]))


def test_several_processes_grow_the_same_banks(study: Study, tmp_path: Path) -> None:
    stocks = [stock for cell in study.cells for stock in cell.stocks]
    users = [
        user_of(study.plan, study.cohort, user.generator, size=user.size, draw=user.draw, scored=np.empty(0, dtype=np.int64), out=tmp_path)
        for user in (stock.user for stock in stocks)
    ]
    tasks = [(user, stock.pool) for user, stock in zip(users, stocks, strict=True)]
    twin = dataclasses.replace(users[0], size=users[0].size + 1e-6)  # rounds to the same images
    numbers = [number for number, _ in find_banks(study.plan, study.cohort, [*tasks, (twin, stocks[0].pool)], tmp_path, crew=Crew(workers=2))]
    assert numbers[-1] == len(stocks) + 1
    assert len(numbers) == len(stocks)
    for user, stock in zip(users, stocks, strict=True):
        now = found(study.plan, study.cohort, user, stock.pool, tmp_path)
        assert now.yields == stock.found.yields
        assert {arm: places.tolist() for arm, places in now.accepted.items()} == {
            arm: places.tolist() for arm, places in stock.found.accepted.items()
        }
        for arm, bank in now.grown.items():
            assert bank.fingerprint == stock.found.grown[arm].fingerprint
            assert np.array_equal(bank.images[:], stock.found.grown[arm].images[:])


def test_several_processes_train_generators_and_draw_pools(strict: dict[str, Any], tmp_path: Path) -> None:
    """Of two draws, in two processes, the same as one after another."""
    plan = StudyPlan.from_json(strict | {"subsets": 2})
    made = []
    for workers in (1, 2):
        study = Study.begin(plan, tmp_path / str(workers))
        said = []
        for progress in study_steps(study, crew=Crew(workers=workers)):
            if progress.stage == "banks":
                break
            said.append(progress)
        assert [(p.done, p.total) for p in said if p.stage == "generator"][-1] == (4, 4)
        assert [(p.done, p.total) for p in said if p.stage == "pool"][-1] == (2 * plan.pool, 2 * plan.pool)
        weights = sorted((tmp_path / str(workers) / "generators").glob("*/unet/*.safetensors"))
        pools = sorted((tmp_path / str(workers) / "banks").glob("pool-*"))
        assert len(weights) == len(pools) == 2
        made.append([[file.read_bytes() for file in weights], [SampleBank.open(pool).fingerprint for pool in pools]])
    assert made[0] == made[1]


def test_development_never_reads_the_test_images(plan: StudyPlan, content: dict[str, Any], blob_file: Path, tmp_path: Path) -> None:
    """With other test images and labels in the file, everything but their hash is the same."""
    arms = ("real", "duplicates", "random", "diverse", "extra_real")
    small = dataclasses.replace(plan, sizes=(0.25, 1.0), ratios=(0.5,), arms=arms, trainings=("mixed",))
    with np.load(blob_file) as archive:
        arrays = dict(archive)
    arrays["test_images"], arrays["test_labels"] = 255 - arrays["test_images"], 1 - arrays["test_labels"]
    np.savez(tmp_path / "other.npz", **arrays)
    found = []
    for data in (blob_file, tmp_path / "other.npz"):
        split = read_json(Path(content["split_file"]))
        split.pop("data_sha256")
        (tmp_path / f"{data.stem}.json").write_text(json.dumps(split))
        own = dataclasses.replace(small, data=str(data), split_file=str(tmp_path / f"{data.stem}.json"))
        study = conducted(own, tmp_path / data.stem, test=False)
        assert len(study.scored()) == len(study.cells[0].stocks[0].user.generator.aside)
        few, all_reals = (cell.stocks[0].user for cell in study.cells)
        assert len(few.extra) > 0
        assert not np.isin(study.cohort.train.group_ids[few.extra], study.scored().group_ids).any()  # no arm sees what is scored
        assert len(all_reals.extra) == 0
        summary = outcome(study)
        assert summary["scored_on"] == "development"
        found.append([[row["metrics"] for row in cell["arms"]] for cell in summary["cells"]])
    assert found[0] == found[1]


def test_in_the_strict_regime_a_generator_sees_the_users_images_alone(strict: dict[str, Any], blob_file: Path, tmp_path: Path) -> None:
    study = conducted(StudyPlan.from_json(strict), tmp_path)
    (stock,) = study.cells[0].stocks
    user, train = stock.user, load_images(blob_file, "train")
    seen = load_images(user.generator.data, "train")
    assert user.generator.trained
    assert sorted(user.reals) == sorted([*user.generator.seen, *user.generator.aside])
    assert len(user.reals) == sum(round(0.5 * count) for count in train.class_counts)
    np.testing.assert_allclose(seen.images, train.images[user.reals], atol=1e-6)
    assert not set(user.extra) & set(user.reals)
    assert outcome(study)["generator"]["images"] == len(user.generator.seen) < len(user.reals)


def test_the_command_writes_page_and_json_and_says_what_was_primary(
    content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = content | {"sizes": [1.0], "ratios": [0.5], "arms": ["real", "duplicates", "random", "diverse"], "trainings": ["mixed"]}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(small))
    assert main(["study", str(file), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "random" in said
    assert "Holm" in said
    assert "bar" in said
    found = read_json(tmp_path / "out" / "study.json")
    assert found["plan"] == StudyPlan.from_json(small).as_json()
    assert "blobs" in (tmp_path / "out" / "study.html").read_text()
    assert main(["study", str(tmp_path / "nothing.yaml"), "--out", str(tmp_path / "x")]) == 2
    assert "nothing.yaml: expected a study with data and regime" in capsys.readouterr().err


def test_stages_follow_one_another(plan: StudyPlan, study: Study) -> None:
    stages = [progress.stage for progress in study_steps(Study.begin(plan, study.out))]
    order = ["generator", "pool", "banks", "sweep", "arms"]
    assert all(order.index(a) <= order.index(b) for a, b in pairwise(stages))
    assert {"pool", "banks", "sweep", "arms"} == set(stages)
