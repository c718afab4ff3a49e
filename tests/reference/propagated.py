"""Influence foretold from vectors, the plain way: a ridge regression by the normal equations, a network of all pairs."""

from __future__ import annotations

import math

import numpy as np
import torch


def linear_prediction(vector_LD, score_LT, asked_BD, ridge: float) -> np.ndarray:
    """Minimise |Y - b - X w|^2 + ridge * s * |w|^2, s the mean squared distance from the mean, and return b + x w."""
    count, width = vector_LD.shape
    scale = np.mean([((x - vector_LD.mean(axis=0)) ** 2).sum() for x in vector_LD])
    with_one_LX = np.hstack([vector_LD, np.ones((count, 1))])
    penalty = ridge * scale * np.diag([1.0] * width + [0.0])
    weight_XT = np.linalg.solve(with_one_LX.T @ with_one_LX + penalty, with_one_LX.T @ score_LT)
    return np.hstack([asked_BD, np.ones((len(asked_BD), 1))]) @ weight_XT


def network_prediction(row_LD, target_TD, score_LT, asked_BD, hidden, epochs, rate, decay, seed, step=64) -> np.ndarray:
    """Train Linear(2 D, H), ReLU, Linear(H, 1) on every pair (row, target), side by side, and return what it says."""

    def standardised(vector_BD, by_BD):
        mean_D = by_BD.mean(axis=0)
        return (vector_BD - mean_D) / math.sqrt(np.mean((by_BD - mean_D) ** 2))

    x, v, asked = standardised(row_LD, row_LD), standardised(target_TD, target_TD), standardised(asked_BD, row_LD)
    mean_T, std_T = score_LT.mean(axis=0), score_LT.std(axis=0)
    D, generator = x.shape[1], torch.Generator().manual_seed(seed)

    def even(size, fan):
        return (2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1) / math.sqrt(fan)

    first, last = torch.nn.Linear(2 * D, hidden).double(), torch.nn.Linear(hidden, 1).double()
    with torch.no_grad():
        first.weight[:, :D] = even((D, hidden), 2 * D).T
        first.weight[:, D:] = even((D, hidden), 2 * D).T
        first.bias[:] = even((hidden,), 2 * D)
        last.weight[0] = even((hidden,), hidden)
        last.bias[:] = even((1,), hidden)
    network = torch.nn.Sequential(first, torch.nn.ReLU(), last)
    adam = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(step):
            pairs = [np.concatenate([x[i], v[j]]) for i in rows.tolist() for j in range(len(v))]
            wanted = [(score_LT[i, j] - mean_T[j]) / std_T[j] for i in rows.tolist() for j in range(len(v))]
            adam.zero_grad()
            (network(torch.tensor(np.array(pairs)))[:, 0] - torch.tensor(wanted)).square().mean().backward()
            adam.step()
    every = np.array([np.concatenate([one, other]) for one in asked for other in v])
    with torch.no_grad():
        found = network(torch.tensor(every)).numpy().reshape(len(asked), len(v))
    return found * std_T + mean_T
