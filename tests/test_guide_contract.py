"""Every guide keeps the public contract."""

from monai_diverse.features import PixelFeatures
from monai_diverse.sampling import (
    BoostAndSkip,
    Branch,
    Churn,
    Diverse,
    EarlyChoice,
    GuideSettings,
    Particle,
    Polish,
    Semantic,
    Shield,
    Together,
)
from monai_diverse.testing import GuideContract


class TestShield(GuideContract):
    def settings(self) -> GuideSettings:
        return Shield()


class TestBranch(GuideContract):
    def settings(self) -> GuideSettings:
        return Branch(sigma=1.0)


class TestDiverse(GuideContract):
    def settings(self) -> GuideSettings:
        return Diverse(branch=Branch(sigma=1.0))


class TestSemantic(GuideContract):
    def settings(self) -> GuideSettings:
        return Semantic(extractor=PixelFeatures(max_side=6))


class TestParticle(GuideContract):
    def settings(self) -> GuideSettings:
        return Particle()


class TestBoostAndSkip(GuideContract):
    def settings(self) -> GuideSettings:
        return BoostAndSkip()


class TestChurn(GuideContract):
    def settings(self) -> GuideSettings:
        return Churn()


class TestPolish(GuideContract):
    def settings(self) -> GuideSettings:
        return Polish()


class TestEarlyChoice(GuideContract):
    def settings(self) -> GuideSettings:
        return EarlyChoice(extractor=PixelFeatures(max_side=6))


class TestTogether(GuideContract):
    def settings(self) -> GuideSettings:
        return Together(guides=(Branch(sigma=2.0), Particle(), Shield(), Churn()))
