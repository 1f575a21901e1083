"""The 3D pose prior of Tome et al. (sec. 4): aligned probabilistic PCA and its mixture."""

from zoo.prior.alignment import FitProgress
from zoo.prior.model import Prior, fit_prior, mirror_poses, normalise_poses, pose_size

__all__ = ["FitProgress", "Prior", "fit_prior", "mirror_poses", "normalise_poses", "pose_size"]
