import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from monai_diverse import SampleBank, __version__, demo
from monai_diverse.demo import DemoConfig, demo_recipe, run_demo
from monai_diverse.errors import BankMismatchError
from monai_diverse.job import Job
from monai_diverse.recipe import Recipe
from monai_diverse.report import Pictures, write_report
from monai_diverse.screening import Verdict
from monai_diverse.sources.builtin import builtin_data
from monai_diverse.study import ClassifierConfig

STEPS = 5
SMALL = DemoConfig(quick=True, seed=7, max_evaluations=64 * STEPS, classifier=ClassifierConfig(seeds=(7, 8), steps=5, channels=(4, 4, 8, 8)))


def small_recipe(config: DemoConfig) -> Recipe:
    """The demo's recipe with rough images, and, since those are seldom novel, with a lax gate for novelty."""
    recipe = demo_recipe(config)
    lax = {"novelty": {"target": "monai_diverse.screening.NoveltyGate", "arguments": {"alpha": 0.3}}}
    return replace(recipe, source=replace(recipe.source, arguments={"steps": STEPS}), screen=replace(recipe.screen, arguments=lax))


@pytest.fixture(scope="module")
def job() -> Job:
    """Fitted once, which takes longer than all else; what is fitted does not depend on the seed."""
    return Job.prepare(small_recipe(SMALL))


@pytest.fixture(scope="module")
def prepared(job: Job) -> Iterator[None]:
    """Demos that are small and take the fitted job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "demo_recipe", small_recipe)
        patch.setattr(demo, "Job", SimpleNamespace(prepare=lambda recipe: replace(job, recipe=recipe)))
        yield


@pytest.fixture(scope="module")
def ran(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pictures]:
    """The demo's folder, and the pictures that it made a report of."""
    folder, shown = tmp_path_factory.mktemp("demo") / "report", []

    def kept(out: Path, summary: dict, pictures: Pictures) -> Path:
        shown.append(pictures)
        return write_report(out, summary, pictures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "write_report", kept)
        stages = [progress.stage for progress in run_demo(folder, SMALL)]
    assert list(dict.fromkeys(stages)) == ["prepare", "diverse", "random", "classify", "report"]
    return folder, shown[0]


@pytest.fixture(scope="module")
def out(ran: tuple[Path, Pictures]) -> Path:
    return ran[0]


@pytest.fixture(scope="module")
def shown(ran: tuple[Path, Pictures]) -> Pictures:
    return ran[1]


@pytest.fixture(scope="module")
def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_summary_has_its_promised_shape(summary: dict) -> None:
    assert (summary["version"], summary["seed"], summary["quick"]) == (__version__, 7, True)
    assert summary["seconds"] > 0
    assert summary["environment"]["packages"]["torch"]
    assert summary["environment"]["instructions"] == torch.backends.cpu.get_cpu_capability()
    for name in ("diverse", "random", "heldout_real"):
        found = summary["yield"][name]
        assert found["ci95"][0] <= found["per_10k"] <= found["ci95"][1]
        assert found["per_10k"] == pytest.approx(1e4 * found["accepted"] / found["drawn"])
    assert summary["yield"]["diverse"]["nfe"] == summary["yield"]["random"]["nfe"] == 64 * STEPS
    assert list(summary["rejections"]) == list(Verdict.REASONS)
    assert sum(summary["rejections"].values()) + summary["bank"]["size"] == 64
    assert list(summary["classifier"]) == ["real", "standard", "duplicates", "random", "diverse"]
    for arm in summary["classifier"].values():
        assert arm["seeds"] == 2
        for metric in ("balanced_accuracy", "auc", "accuracy"):
            assert 0 <= arm[metric]["mean"] <= 1
            assert arm[metric]["ci95"][0] <= arm[metric]["mean"] <= arm[metric]["ci95"][1]


def test_no_number_is_missing(summary: dict) -> None:
    def numbers(value: object) -> list[float]:
        if isinstance(value, dict):
            return [n for v in value.values() for n in numbers(v)]
        if isinstance(value, list):
            return [n for v in value for n in numbers(v)]
        return [value] if isinstance(value, float) else []

    assert all(math.isfinite(n) for n in numbers(summary))


def test_bank_is_the_one_that_the_summary_names(out: Path, summary: dict) -> None:
    bank = SampleBank.open(out / summary["bank"]["path"])
    bank.verify()
    assert (len(bank), bank.fingerprint) == (summary["bank"]["size"], summary["bank"]["fingerprint"])


def test_control_banks_match_the_class_counts(out: Path) -> None:
    bank = SampleBank.open(out / "bank")
    for name in ("duplicates", "random"):
        (control,) = (out / "controls").glob(f"*/{name}")
        assert list(SampleBank.open(control).class_counts) == list(bank.class_counts)


def test_page_opens_from_disk_and_names_no_place(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert 'src="http' not in page
    assert str(out) not in page + (out / "summary.json").read_text()
    for text in ("held-out", "95 %", "CC BY 4.0", "Not for clinical use"):
        assert text in page, text
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (out / "figures").iterdir())


def test_nearest_images_come_from_the_set_that_is_named(shown: Pictures, summary: dict) -> None:
    seen = builtin_data().generator_train.images
    held = {image.tobytes() for image in np.concatenate([seen, seen[..., ::-1]])}
    assert shown.nearest_set == summary["references"]["against"]["copies"] == "generator_train"
    assert summary["references"]["against"]["novelty"] == "reference"
    assert summary["references"]["sets"]["generator_train"]["shape"][0] == 2 * summary["references"]["sets"]["reference"]["shape"][0]
    assert summary["references"]["sets"]["generator_train"]["mirrored"]
    assert len(shown.diverse) == summary["bank"]["size"] > 0
    assert {image.tobytes() for image in shown.nearest} <= held


def test_every_gate_shows_both_sides_of_its_threshold(out: Path, shown: Pictures, summary: dict) -> None:
    bank = SampleBank.open(out / "bank")
    assert summary["thresholds"] == {name: gate["threshold"] for name, gate in bank.header.features["gates"].items()}
    assert {edge.gate: edge.threshold for edge in shown.borderline} == summary["thresholds"]
    by_gate = {edge.gate: edge for edge in shown.borderline}
    assert by_gate["not_novel"].passed < len(by_gate["not_novel"].scores)
    for edge in by_gate.values():
        assert 0 < edge.passed <= 4
        for score, verdict in zip(edge.scores, edge.verdicts, strict=True):
            assert score <= edge.threshold or verdict is not None
            assert verdict != edge.gate or score > edge.threshold


def test_map_places_the_reference_and_what_was_accepted(shown: Pictures, summary: dict) -> None:
    found = shown.map
    assert found is not None
    assert found.drawn["real"] == summary["references"]["sets"]["reference"]["shape"][0]
    assert found.drawn["accepted"] == summary["bank"]["size"]
    assert 0 < found.variance[1] <= found.variance[0] < 1


def test_information_scores_stand_beside_those_of_unguided_draws_and_real_images(out: Path, summary: dict) -> None:
    found, size = summary["information"], summary["bank"]["size"]
    assert found["counts"]["diverse"] == found["counts"]["random"] == size
    assert found["counts"]["calibration"] == summary["references"]["sets"]["calibration"]["shape"][0]
    assert found["size"] == size
    gains = {name: found["scores"]["information_gain"][name]["median"] for name in ("diverse", "random", "calibration")}
    assert gains["diverse"] > gains["calibration"]
    page = (out / "report.html").read_text()
    assert "How much the samples add" in page
    assert "data-processing inequality" in page


def test_an_empty_bank_leaves_the_unguided_draws_to_describe(job: Job) -> None:
    data = builtin_data()
    nothing = job.screen.embed(data.test.images[:0], data.test.labels[:0])
    found = demo._information(job.screen, nothing, job.screen.embed(data.test.images[:30], data.test.labels[:30]))
    assert list(found["counts"]) == ["random", "reference", "calibration"]
    assert found["counts"]["random"] == 30


def test_finished_demo_runs_again_from_its_bank(out: Path, summary: dict) -> None:
    *_, last = run_demo(out, SMALL)
    again = json.loads((out / "summary.json").read_text())
    assert last.stage == "report"
    assert again["bank"] == summary["bank"]
    assert again["classifier"] == summary["classifier"]


def test_folder_of_another_demo_is_refused(out: Path, summary: dict) -> None:
    with pytest.raises(BankMismatchError, match="recipe"):
        list(run_demo(out, DemoConfig(quick=True, seed=8)))
    assert SampleBank.open(out / "bank").fingerprint == summary["bank"]["fingerprint"]


def test_calibration_control_and_test_images_are_apart() -> None:
    """Nothing that judges was seen: the screen's sets hold neither control nor test images."""
    data = builtin_data()
    recipe = demo_recipe(SMALL)
    sets = [recipe.reference.load(Path()), recipe.calibration.load(Path()), data.validation[data.validation_unseen]]
    hashes = [{image.tobytes() for image in part.images} for part in sets]
    assert not hashes[0] & hashes[1]
    assert not hashes[0] & hashes[2]
    assert not hashes[1] & hashes[2]
    np.testing.assert_array_equal(sets[0].images, data.generator_train.images)


def test_full_and_quick_differ_in_amount_only() -> None:
    full, quick = (DemoConfig.of(quick=quick, seed=1) for quick in (False, True))
    assert demo_recipe(full).fingerprint({}) == demo_recipe(quick).fingerprint({})
    assert full.max_evaluations > quick.max_evaluations
