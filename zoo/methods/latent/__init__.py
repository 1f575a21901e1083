"""Katircioglu et al. 2017: regression into the latent space of a pose autoencoder.

``method`` has the single-frame and temporal networks, ``kde`` kernel dependency estimation.
"""

from zoo.methods.latent.kde import LatentKDE
from zoo.methods.latent.method import LatentPose

__all__ = ["LatentKDE", "LatentPose"]
