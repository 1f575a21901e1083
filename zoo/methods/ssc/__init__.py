"""Self-supervised correction of 3D poses: a recurrent pose machine that projects its own answer.

Keze Wang, Liang Lin, Chenhan Jiang, Chen Qian, Pengxu Wei: "3D Human Pose Machines with
Self-supervised Learning", TPAMI 2019, https://arxiv.org/abs/1901.03798. Equations, sections and
tables are of that paper.

**In**: ``image`` (B, T, 3, 368, 368), clips of T = 5 frames at 2 fps. **Out**: ``pred_3d`` mm and
``pred_2d`` px of every frame, from it and the earlier frames of its clip.

For each frame t (Eq. 1)::

    f_2D, p_2D = Psi_R(I_t)             fifteen convolutions; one layer to the 2D pose
    p_3D = Psi_T(f_2D, H_(t-1))         adaption to a vector, two LSTM layers
    q_3D = Psi_C(p_3D)                  regression function, a copy that can be corrected
    q_2D = Psi_P(q_3D)                  projection, trained to give the 2D pose

``forward`` answers p_3D ("without self-correction"). At test time ``zoo.correction`` changes copies
of Psi_C and Psi_P for each frame, so that q_2D comes nearer to the 2D pose seen, and answers with
q_3D, or with p_3D where that moved too far; ``correction`` holds its settings, which ``zoo test``,
``zoo predict`` and the callback follow.

=====================  =============================================================================
Table 5                here
=====================  =============================================================================
ours                   ``SSC()``
w/o SSC train + test   ``SSC(projector="none")``: the first two steps, no Psi_C, no Psi_P
w/o SSC test           ``SSC(correction="off")``, the same weights as ``SSC()``
w/o projection         ``SSC(projector="multitask")``: 2D and 3D heads trained together
w/o temporal           ``SSC(temporal=False)``
w/ single frame        ``SSC(reset_every=1)``, the same weights: states are reset at every frame
w/o external           no 2D-only samples in the data
w/ HG features         ``SSC(other2d="hourglass", pose2d="other")``: p_2D of the correction by a
                       stacked hourglass that is trained beside it
w/ 2D GT               ``SSC(pose2d="gt")``, the same weights: p_2D of the correction is the label
=====================  =============================================================================

**Stages of training** (``phases()``, Algorithm 1): ``pose2d``, Psi_R (Eq. 5); ``lift``, Psi_T with
Psi_R frozen (Eq. 6); ``project``, Psi_C and Psi_P (Eq. 2); ``joint``, everything (Eq. 7 and the
labelled terms). 2D-only samples (``valid_3d`` false) can be in every batch: their 3D losses are
zero, their projection loss trains all modules in ``joint``.

**Choices where the paper is silent or contradicts itself**, most after the authors' published code

* p_2D comes from a fully connected layer (sec. 3.4), not from maxima of 128 feature maps (3.1).
  The first step trains heatmaps beside it (the authors' trunk comes from them), which Eq. 5 has
  not: ``pretrain="head"``.
* Biases of output layers start at 1/2, the middle of normalised units; weights are Xavier's, but in
  the trunk.
* Eq. 7 is printed between 2D and 3D numbers. Here: projected against labelled 2D
  (``proj_target="gt"``, the code), or against p_2D (``"pred"``, the text), which is then detached;
  and Eq. 5, Eq. 6 and the 3D part of Eq. 2 beside it, so that no step lacks labels.
* Both LSTM layers run forwards (Eq. 1); the code's second one runs backwards
  (``second_lstm="backward"``: then no frame is answered before its clip ends).
* Two more convolutions stand before the adaption module (code; ``special_channels=0``: not).
* Joint dropout: joints of p_3D are set to zero where they enter Psi_C; joints of the 2D target,
  which at zero would teach a wrong place, are left out of the loss. Only in training.
* Step 2 keeps Psi_R frozen (Algorithm 1), though sec. 3.4 trains it too (``train_trunk``).
* Batch norm is in the hidden layers of Psi_P, and evaluates during the correction.
* Losses are half the squares, summed over coordinates, mean over labelled frames. ``bone_weight``
  adds the code's loss on bone vectors, by autograd (the code reaches the child joint only).
* Max-min normalisation and limb scaling of targets as in ``rpsm`` (``zoo.pose_machine``).
* Lengths of training, the batch, and optimiser and rate of the correction are not printed.

**Differences from the paper**: 17 joints, as everywhere in the zoo, where the authors' code has 16;
the trunk starts from nothing or, with ``machine_weights``, from a pose machine of the zoo. Three
rows of Table 5 are digit for digit rows of Lin et al. 2017 ("w/o SSC train + test", "w/o temporal",
"w/o external") and so no ablations of this network.

**Source**: own work from the paper; none of the authors' code.
"""

from zoo.methods.ssc.method import SSC

__all__ = ["SSC"]
