"""The model: a network with one hidden layer.

A network is called with the features as one float32 tensor, columns in their order, and has to answer with
probabilities, one column a class (a regression: with values).
"""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def train(
    features: pd.DataFrame,
    label: pd.Series,
    *,
    hidden: int = 64,
    epochs: int = 30,
    learning_rate: float = 0.003,
    batch: int = 64,
) -> nn.Module:
    """The fitted network. The keyword arguments are `train.parameters` of drivetrain.yaml."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.from_numpy(features.to_numpy("float32")).to(device)
    y = torch.from_numpy(label.to_numpy("int64")).to(device)
    network = nn.Sequential(
        nn.BatchNorm1d(x.shape[1]),  # brings every column to one scale, so that raw ones can be sent
        nn.Linear(x.shape[1], hidden),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(hidden, int(y.max()) + 1),
    ).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    loss_of = nn.CrossEntropyLoss()
    network.train()
    for _ in range(epochs):
        for inputs, wanted in DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True, drop_last=True):
            optimizer.zero_grad()
            loss_of(network(inputs), wanted).backward()
            optimizer.step()
    return nn.Sequential(network, nn.Softmax(dim=1)).cpu().eval()
