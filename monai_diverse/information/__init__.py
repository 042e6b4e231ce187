"""How much a sample, or a set of samples, says that the reference does not: in nats, relative to one feature space.

By the data-processing inequality, samples of a model carry no more information about the true distribution than the images
that it was trained on. These scores say what is new relative to the reference under the chosen features, no more.
"""

from monai_diverse.information.diversity import rke, vendi_score
from monai_diverse.information.gain import GainTracker, InformationGain
from monai_diverse.information.neighbours import Neighbours
from monai_diverse.information.surprisal import Surprisal, intrinsic_dimension

__all__ = ["GainTracker", "InformationGain", "Neighbours", "Surprisal", "intrinsic_dimension", "rke", "vendi_score"]
