"""The 3D-from-2D lift of Tome et al. and the fit of its prior."""
