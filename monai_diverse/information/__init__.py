"""How much a sample, or a set of samples, says that the reference does not: in nats, relative to one feature space.

By the data-processing inequality, samples of a model carry no more information about the true distribution than the images
that it was trained on. These scores say what is new relative to the reference under the chosen features, no more.
"""

from monai_diverse.information.choice import GainTracker
from monai_diverse.information.codebook import Codebook, FittedCodebook
from monai_diverse.information.describe import InformationSettings, LabelledFeatures, describe_information
from monai_diverse.information.diversity import rke, vendi_score
from monai_diverse.information.entropy import grassberger_entropy, kl_divergence, miller_madow_entropy, mutual_information, plug_in_entropy
from monai_diverse.information.gain import InformationGain
from monai_diverse.information.growing import GrowingNeighbours
from monai_diverse.information.ksg import ksg_mutual_information
from monai_diverse.information.neighbours import Neighbours
from monai_diverse.information.surprisal import Surprisal, intrinsic_dimension
from monai_diverse.information.unseen import Share, good_turing, unseen_mass

__all__ = [
    "Codebook",
    "FittedCodebook",
    "GainTracker",
    "GrowingNeighbours",
    "InformationGain",
    "InformationSettings",
    "LabelledFeatures",
    "Neighbours",
    "Share",
    "Surprisal",
    "describe_information",
    "good_turing",
    "grassberger_entropy",
    "intrinsic_dimension",
    "kl_divergence",
    "ksg_mutual_information",
    "miller_madow_entropy",
    "mutual_information",
    "plug_in_entropy",
    "rke",
    "unseen_mass",
    "vendi_score",
]
