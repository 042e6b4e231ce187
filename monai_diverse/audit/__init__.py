"""Does a diffusion model lean towards its training patients?"""

from monai_diverse.audit.bias import Effect
from monai_diverse.audit.membership import Membership
from monai_diverse.audit.one_model import AuditProgress, AuditSettings, ModelAudit, audit_model, audit_steps
from monai_diverse.audit.samplers import Sampler
from monai_diverse.audit.stopping import BiasMonitor, BiasRecord, watch
from monai_diverse.audit.stops import Stop
from monai_diverse.audit.trainer import TwinTrainer, UNetTrainer
from monai_diverse.audit.twin_recipe import TwinRecipe
from monai_diverse.audit.twin_result import TwinAudit
from monai_diverse.audit.twins import TwinProgress, audit_twins, twin_result, twin_steps
from monai_diverse.audit.verdict import BiasVerdict

__all__ = [
    "AuditProgress",
    "AuditSettings",
    "BiasMonitor",
    "BiasRecord",
    "BiasVerdict",
    "Effect",
    "Membership",
    "ModelAudit",
    "Sampler",
    "Stop",
    "TwinAudit",
    "TwinProgress",
    "TwinRecipe",
    "TwinTrainer",
    "UNetTrainer",
    "audit_model",
    "audit_steps",
    "audit_twins",
    "twin_result",
    "twin_steps",
    "watch",
]
