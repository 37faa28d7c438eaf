"""B-DISTIL: a teacher taken apart into an ensemble of small students, of which any prefix is a predictor.

Source: Dennis et al., Progressive Ensemble Distillation: Building Ensembles for Efficient Inference, NeurIPS 2023 (arXiv 2302.10093).
"""

from quorate.distil.bounds import best_eta, convergence, generalisation, held_out_error, infeasibility
from quorate.distil.combining import Combination, student_weights
from quorate.distil.cutting import Cut, Ladder, Size, cut, ladder
from quorate.distil.distillation import Distillation, distil
from quorate.distil.early import PartStudent, early_students, from_teacher
from quorate.distil.ensemble import Distilled
from quorate.distil.game import Certificate, Game
from quorate.distil.links import Link
from quorate.distil.pool import Candidate, Fixed, Pool
from quorate.distil.round_loss import LossSettings, RoundLoss
from quorate.distil.rules import Rules
from quorate.distil.shaping import SearchWeights, robust_bound
from quorate.distil.student import ChainStudent, Joint
from quorate.distil.teacher import Teacher

__all__ = [
    "Candidate", "Certificate", "ChainStudent", "Combination", "Cut", "Distillation", "Distilled", "Fixed", "Game", "Joint", "Ladder",
    "Link", "LossSettings", "PartStudent", "Pool", "RoundLoss", "Rules", "SearchWeights", "Size", "Teacher", "best_eta", "convergence",
    "cut", "distil", "early_students", "from_teacher", "generalisation", "held_out_error", "infeasibility", "ladder", "robust_bound",
    "student_weights",
]  # fmt: skip
