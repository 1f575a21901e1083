"""Lifting from the Deep: belief maps refined by a 3D pose model inside every stage.

Denis Tome, Chris Russell, Lourdes Agapito: "Lifting from the Deep: Convolutional 3D Pose Estimation
from a Single Image", CVPR 2017, https://arxiv.org/abs/1701.00295.

**In**: ``image`` (B, T, 3, 368, 368), one person in the middle; frames are independent (T is folded
into the batch). **Out**: ``pred_3d`` mm, ``pred_2d`` px, and ``std_3d`` mm, the spread of the final
lift's posterior. Training needs 2D joints alone; the 3D prior is fitted to the training set's poses
(``fit_statistics``) or read from a file of ``zoo prior fit``.

A stage of the convolutional pose machine (``zoo.cpm``) says where joints are (belief maps), the
lift (``zoo.lifting``) finds the most probable 3D pose behind their maxima, the pose is projected
back into maps, and both maps are fused before the next stage sees them (Figure 2):

===============  ===================================================================
``cpm``          ``LiftingFromTheDeep(lift_in_loop=False, components=1)``: no 3D in the loop
``tome-single``  ``LiftingFromTheDeep(components=1)``: one Gaussian as the prior
``tome-mixture`` ``LiftingFromTheDeep(components=3)``: three, as in its conclusion
===============  ===================================================================

**Choices where the paper is silent or has two readings**

* The network: ``network="vgg"`` as released, ``"9x9"`` as Figure 2 hints. It starts from nothing
  (see ``zoo.cpm`` on first weights) or, as in the paper, from a trained pose machine
  (``machine_weights``); the paper's own, trained on MPII, is not among the zoo's.
* The prior is exact probabilistic PCA (Eq. 1 as printed is no likelihood); basis size 25.
* Eq. 4 weighs the image by the model's own noise. Maxima of belief maps err more: ``gain`` says how
  much more; the authors' numbers amount to about 5.
* The camera's tilt is known in training and test, as the paper assumes of E, and searched where a
  batch does not tell it (``camera``). Inside the loop it is rounded to 2 degrees.
* The projected background is ``max(0, 1 - max over joints)``; w_t is a sigmoid, first 1/2.
* Targets are Gaussians of 7 px at 368 px, projected maps those of one cell.
* A joint without annotation or outside the picture has no loss in its channel; the background has
  loss where all joints are annotated (``zoo.heatmaps.belief_targets``).
* The final lift reads the last fused maps at the maximum and a quarter cell towards the higher
  neighbour. Size is a constant: the sum of squared limb lengths of every pose is ``size_mm`` ^2,
  by default that of the mean training person.

**Differences from the paper**: training rates are CPM's, the paper prints none.

**Source**: own work from the paper and its supplement; none of the authors' code.
"""

from zoo.methods.tome.method import LiftingFromTheDeep

__all__ = ["LiftingFromTheDeep"]
