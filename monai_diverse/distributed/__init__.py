"""Growing on several workers: processes of this machine, or actors of a Ray cluster; the bank is that of a single process."""

from monai_diverse.distributed.processes import Processes
from monai_diverse.distributed.ray_actors import RayActors

__all__ = ["Processes", "RayActors"]
