"""What a treatment does beside random controls: the mean difference and its interval over seeds and draws.

Shape suffixes: S seeds, R random draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Student's t, two-sided 95 %, by degrees of freedom; beyond the table Fisher and Cornish 1960 to two terms.
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z95 = 1.959964


@dataclass(frozen=True)
class Effect:
    """A mean difference and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def paired_effect(treated_S: np.ndarray, control_SR: np.ndarray) -> Effect:
    """Return the mean over seeds and draws of treated - control, with an interval over both.

    A seed trains the treated rows and every control, so differences are taken within it. Their spread over seeds and
    the spread of the controls over draws are two sources of error, whose variances add up; the degrees of freedom are
    Welch and Satterthwaite's, rounded down: with few seeds and draws the interval is wide, as it should be.

    Source: Satterthwaite 1946; crossed random factors as in Cornfield and Tukey 1956, without the interaction's term,
    which both spreads hold already: the interval errs on the wide side.

    Raises:
        ValueError: fewer than two seeds or two draws.
    """
    treated_S, control_SR = np.asarray(treated_S, np.float64), np.asarray(control_SR, np.float64)
    seeds, draws = control_SR.shape
    if seeds < 2 or draws < 2:
        raise ValueError(f"{seeds} seeds and {draws} draws give no interval; 2 of each are enough")
    value = float(treated_S.mean() - control_SR.mean())
    of_seeds = float(np.var(treated_S - control_SR.mean(axis=1), ddof=1)) / seeds
    of_draws = float(np.var(control_SR.mean(axis=0), ddof=1)) / draws
    variance = of_seeds + of_draws
    if variance == 0:
        return Effect(value, (value, value))
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_draws**2 / (draws - 1))
    half = student_95(max(1, int(freedom + 1e-9))) * math.sqrt(variance)
    return Effect(value, (value - half, value + half))


def student_95(freedom: int) -> float:
    """Return the number of standard errors on each side of a 95 % interval with so many degrees of freedom."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    return _Z95 + (_Z95**3 + _Z95) / (4 * freedom) + (5 * _Z95**5 + 16 * _Z95**3 + 3 * _Z95) / (96 * freedom**2)
