"""What benchmarks/screen.py judges: real images set apart, controls made of them, and novelties planted among them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rivals import authenticity, neighbour_distance, rarity_score
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import ConvexHull
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from unseen import unseen_extractor

from monai_diverse.data import FloatArray, IntArray, LabelledImages, load_images, near_duplicate_groups, split_by_group
from monai_diverse.features import PCA, CachedFeatures, EfficientNetLite0, EfficientNetTextures
from monai_diverse.screening import FittedScreen, HullMap, NoveltyScreen, OutlierGate
from monai_diverse.screening.control_cases import control_cases

SETS = {"breast": "breastmnist.npz", "busi": "busi_breastmnist_split_64.npz", "pneumonia": "pneumoniamnist_reordered.npz"}
OTHER = {"breast": "pneumonia", "busi": "pneumonia", "pneumonia": "breast"}
TWINS = 0.95
"""Images that correlate above this are one group."""
MIXTURE = ("white noise", "smooth noise", "inverted", "shuffled patches", "other modality", "wrong label")
"""What a poor generator might draw, beside near-copies: planted novelties are looked for among these and unseen real images."""
COPIES = ("near-copy: JPEG", "near-copy: blur", "near-copy: 1 pixel shift")
RIVALS = ("tsne_hull", "neighbour_distance", "rarity_score", "authenticity")
CLUSTERS = 12


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Real images of one split: what is known, what limits are read off, what nothing saw."""

    reference: LabelledImages
    calibration: LabelledImages
    unseen: LabelledImages
    other: FloatArray


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Images that are judged together.

    Attributes:
        kinds: (n,) what each is.
        groups: (n,) the patient or group that each was made of.
        scores: by gate and by method, (n,); higher is worse for a gate, newer for a method.
        passes: by gate, (n,): it does not reject the image.
        accepted: by method, (n,): `ours` and each rival.
    """

    kinds: np.ndarray
    groups: IntArray
    scores: dict[str, np.ndarray]
    passes: dict[str, np.ndarray]
    accepted: dict[str, np.ndarray]


def parts_of(name: str, data: Path, seed: int) -> Parts:
    """The official train split is known. Of val and test, what has no near-duplicate in train is halved, near-duplicates together."""
    splits = [load_images(data / SETS[name], split) for split in ("train", "val", "test")]
    images, labels = (np.concatenate([getattr(s, part) for s in splits]) for part in ("images", "labels"))
    groups, count = near_duplicate_groups(images, TWINS), len(splits[0])
    whole = LabelledImages(images=images, labels=labels, groups=groups)
    apart = count + np.flatnonzero(~np.isin(groups[count:], groups[:count]))
    calibration, unseen = split_by_group(whole[apart], 2, seed)
    other = load_images(data / SETS[OTHER[name]], "test").images
    return Parts(reference=whole[np.arange(count)], calibration=whole[apart][calibration], unseen=whole[apart][unseen], other=other)


def official_parts(name: str, data: Path) -> Parts:
    """The official splits as they are meant: train is known, val calibrates, test is unseen; without near-duplicates across them."""
    parts = parts_of(name, data, 0)
    splits = [load_images(data / SETS[name], split) for split in ("train", "val", "test")]
    images = np.concatenate([s.images for s in splits])
    groups, first, second = near_duplicate_groups(images, TWINS), len(splits[0]), len(splits[0]) + len(splits[1])

    def part(split: LabelledImages, own: IntArray, *others: IntArray) -> LabelledImages:
        kept = np.flatnonzero(~np.isin(own, np.concatenate(others)))
        return LabelledImages(images=split.images[kept], labels=split.labels[kept], groups=own[kept])

    train, val, test = groups[:first], groups[first:second], groups[second:]
    return Parts(reference=parts.reference, calibration=part(splits[1], val, train), unseen=part(splits[2], test, train, val), other=parts.other)


def apart(parts: Parts, seed: int) -> tuple[Parts, LabelledImages]:
    """Parts whose reference is one half of the train split, and the other half, which the generator saw."""
    mine, others = split_by_group(parts.reference, 2, seed)
    seen = parts.reference[others]
    return Parts(reference=parts.reference[mine], calibration=parts.calibration, unseen=parts.unseen, other=parts.other), seen


def screen_for(work: Path) -> NoveltyScreen:
    """The default screen, its features kept on disk."""
    textures = CachedFeatures(extractor=EfficientNetTextures(), folder=work / "features")
    return NoveltyScreen(extractor=CachedFeatures(extractor=EfficientNetLite0(), folder=work / "features"), outlier=OutlierGate(textures=textures))


def control_pool(screen: FittedScreen, parts: Parts, count: int, seed: int, only: tuple[str, ...] | None = None) -> tuple[LabelledImages, np.ndarray]:
    """Unseen real images and `count` of every control among `only`; what each is."""
    images, labels, kinds, groups = [], [], [], []
    for case in control_cases(screen, parts.unseen, None, parts.other, count, seed):
        if only is not None and case.name not in only:
            continue
        images += [case.image(i) for i in range(len(case.labels))]
        labels.append(case.labels)
        kinds += [case.name] * len(case.labels)
        groups.append(case.groups)
    return LabelledImages(images=np.stack(images), labels=np.concatenate(labels), groups=np.concatenate(groups)), np.array(kinds)


def judged(screen: FittedScreen, work: Path, parts: Parts, data: LabelledImages, kinds: np.ndarray) -> Pool:
    """What each gate and each rival says of the images."""
    views = screen.embed(data.images, data.labels)
    scores: dict[str, np.ndarray] = {reason: gate.score(views) for reason, gate in screen.gates.items()}
    passes = {reason: scores[reason] <= gate.threshold for reason, gate in screen.gates.items()}
    accepted: dict[str, np.ndarray] = {"ours": np.all(list(passes.values()), axis=0)}
    extractor = CachedFeatures(extractor=EfficientNetLite0(), folder=work / "features")
    known, aside, asked = (extractor(part.images) for part in (parts.reference, parts.calibration, data))
    for name, score in (("neighbour_distance", neighbour_distance), ("rarity_score", rarity_score), ("authenticity", authenticity)):
        scores[name] = score(known, asked)
        # as the screen's alpha: of real images that nothing was fitted on, one in twenty lies above
        limit = 0.0 if name == "authenticity" else float(np.quantile(score(known, aside), 0.95))
        accepted[name] = scores[name] > limit
    hull = HullMap.of(known, asked)
    # how far outside, for its size: the published filter has no score of its own, and a map no unit
    edges = ConvexHull(hull.real)
    scores["tsne_hull"] = (edges.equations @ np.c_[hull.judged, np.ones(len(asked))].T).max(axis=0) / edges.volume**0.5
    accepted["tsne_hull"] = hull.accepted
    scores["ours"] = screen.gates["not_novel"].distances.excess(views)
    return Pool(kinds=kinds, groups=data.group_ids, scores=scores, passes=passes, accepted=accepted)


def planted(name: str, data: Path, work: Path, seed: int, most: int) -> Iterator[tuple[Parts, LabelledImages]]:
    """Splits from which a cluster of one class is withheld; its images, which a screen should find, come with each.

    The clusters are k-means' in whitened features of EfficientNet-Lite2, which no screen here judges with. Of those with 4 to 15 % of the images
    of their class, the `most` that lie farthest apart are taken: largest median distance from a member to the nearest image outside.
    """
    parts = parts_of(name, data, seed)
    sets = (parts.reference, parts.calibration, parts.unseen)
    extractor = CachedFeatures(extractor=unseen_extractor(), folder=work / "features")
    features = [extractor(part.images) for part in sets]
    components = PCA(n_components=32).fit(features[0])
    known, labels = components.transform(features[0]), parts.reference.labels
    candidates: list[tuple[float, list[np.ndarray]]] = []
    for label in np.unique(labels):
        fitted = KMeans(CLUSTERS, n_init=4, random_state=seed).fit(known[labels == label])
        members = [(part.labels == label) * (1 + fitted.predict(components.transform(f))) for part, f in zip(sets, features, strict=True)]
        for cluster in range(1, CLUSTERS + 1):
            inside = members[0] == cluster
            if 0.04 <= inside.sum() / (labels == label).sum() <= 0.15:
                nearest = NearestNeighbors(n_neighbors=1).fit(known[~inside]).kneighbors(known[inside])[0]
                candidates.append((float(np.median(nearest)), [m == cluster for m in members]))
    for _, held in sorted(candidates, key=lambda candidate: -candidate[0])[:most]:
        groups = np.unique(np.concatenate([part.group_ids[mask] for part, mask in zip(sets, held, strict=True)]))
        left = [part[np.flatnonzero(~np.isin(part.group_ids, groups))] for part in sets]
        novel = _joined([part[np.flatnonzero(mask)] for part, mask in zip(sets, held, strict=True) if mask.any()])
        yield Parts(reference=left[0], calibration=left[1], unseen=left[2], other=parts.other), novel


def deformed(unseen: LabelledImages, count: int, seed: int, strength: float = 0.05) -> LabelledImages:
    """Unseen images under a smooth random deformation by a twentieth of their side: shapes that no real image has, in real texture."""
    rng = np.random.default_rng(seed)
    source = rng.permutation(len(unseen))[:count]
    return LabelledImages(images=np.stack([_deform(unseen.images[i], strength, rng) for i in source]), labels=unseen.labels[source])


def _deform(image: FloatArray, strength: float, rng: np.random.Generator) -> FloatArray:
    side = image.shape[-1]
    field = gaussian_filter(rng.normal(size=(2, *image.shape[1:])), (0, side / 8, side / 8), mode="reflect")
    field *= strength * side / field.std()
    where = np.stack(np.meshgrid(*(np.arange(s, dtype=float) for s in image.shape[1:]), indexing="ij")) + field
    moved: FloatArray = np.clip(map_coordinates(image[0], where, order=1, mode="reflect"), 0, 1)[None].astype(np.float32)
    return moved


def precision_at(scores: np.ndarray, eligible: np.ndarray, novel: np.ndarray, recall: int) -> float | None:
    """Precision when the fewest images with the highest score among the eligible ones are taken that hold `recall` novel ones; ties all count.

    None: not so many novel ones are eligible.
    """
    order = np.sort(scores[eligible & novel])[::-1]
    if recall < 1 or len(order) < recall:
        return None
    taken = eligible & (scores >= order[recall - 1])
    return float((taken & novel).sum() / taken.sum())


def _joined(sets: list[LabelledImages]) -> LabelledImages:
    return LabelledImages(
        images=np.concatenate([s.images for s in sets]),
        labels=np.concatenate([s.labels for s in sets]),
        groups=np.concatenate([s.group_ids for s in sets]),
    )


def with_planted(pool: LabelledImages, kinds: np.ndarray, novel: LabelledImages) -> tuple[LabelledImages, np.ndarray]:
    """The pool with the planted novelties after it."""
    groups: IntArray = novel.group_ids + 1 + int(pool.group_ids.max())
    novel = LabelledImages(images=novel.images, labels=novel.labels, groups=groups)
    return _joined([pool, novel]), np.concatenate([kinds, ["planted"] * len(novel)])
