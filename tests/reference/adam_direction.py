"""The direction of Adam, one number at a time."""

from __future__ import annotations

import math


def adam_number(g, m, v, beta1, beta2, epsilon, mode, momentum) -> float:
    m_next = (beta1 * m if momentum else 0.0) + (1 - beta1) * g
    v_next = beta2 * v + (1 - beta2) * g * g
    return m_next / math.sqrt(v_next + epsilon) if mode == "less" else m_next / (math.sqrt(v_next) + epsilon)
