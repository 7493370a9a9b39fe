"""The model: a small convolutional network, in plain PyTorch.

A network is called with the features as one float32 tensor, columns in their order, and has to answer with
probabilities, one column a class.
"""

from __future__ import annotations

import mlflow
import pandas as pd
import torch
from torch import nn

SIDE = 8


def train(
    features: pd.DataFrame,
    label: pd.Series,
    *,
    width: int = 16,
    epochs: int = 15,
    learning_rate: float = 0.01,
    batch: int = 64,
) -> nn.Module:
    """The fitted network, on the CPU. The keyword arguments are `train.parameters` of drivetrain.yaml."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Copied once and cut into batches there: 370 kB fit any GPU. Images that do not are loaded batch by batch, with
    # DataLoader(..., pin_memory=True) and .to(device, non_blocking=True).
    pixels = torch.from_numpy(features.to_numpy("float32")).to(device)
    digits = torch.from_numpy(label.to_numpy("int64")).to(device)
    network = convolutional(width, classes=int(digits.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    steps = len(pixels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        losses = []
        for chosen in torch.randperm(len(pixels), device=device).split(batch)[:steps]:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network(pixels[chosen]), digits[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mlflow.log_metric("loss", float(torch.stack(losses).mean()), step=epoch)
    return nn.Sequential(network, nn.Softmax(dim=1)).cpu().eval()


def convolutional(width: int, classes: int) -> nn.Sequential:
    """Rows of 64 pixels in, one score a class out. Made of PyTorch's own modules, so that it loads without this file."""
    return nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.BatchNorm2d(1),  # brings the brightness to one scale, so that raw pixels can be sent
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(2 * width * (SIDE // 2) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )
