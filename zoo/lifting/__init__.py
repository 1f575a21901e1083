"""The 3D-from-2D lift of Tome et al. (sec. 5.3) and the fit of its prior (sec. 4)."""

from zoo.lifting.calibration import calibrate
from zoo.lifting.layer import MIN_JOINTS, LiftResult, PPCALift

__all__ = ["MIN_JOINTS", "LiftResult", "PPCALift", "calibrate"]
