"""Checks that a class of one's own keeps what influray relies on: the laws that its own methods are tested by.

A check runs all laws of its seam; random numbers are made of a seed. docs/plugins.md shows them in use.
"""

from influray.testing.featurizers import check_featurizer
from influray.testing.projectors import check_projector
from influray.testing.scorers import check_scorer
from influray.testing.selectors import check_selector

__all__ = ["check_featurizer", "check_projector", "check_scorer", "check_selector"]
