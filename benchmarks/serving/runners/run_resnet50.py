"""ResNet-50 on a GPU as a Cog runner that takes images as tensors."""

import models
import numpy as np
import torch
from cog import BaseRunner


class Runner(BaseRunner):
    def setup(self) -> None:
        self.model = models.resnet50().half().cuda().to(memory_format=torch.channels_last)
        for count in (1, 2, 4, 8, 16, 32):
            self.infer({"images": np.zeros((count, 224, 224, 3), np.uint8)})

    def run(self, seed: int) -> int:
        images = np.random.default_rng(seed).integers(0, 256, (1, 224, 224, 3), np.uint8)
        return int(self.infer({"images": images})["label"][0])

    def infer(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pinned = torch.from_numpy(tensors["images"].copy()).pin_memory()
        with torch.inference_mode():
            images = pinned.cuda(non_blocking=True).permute(0, 3, 1, 2).half().div_(255)
            labels = self.model(images.contiguous(memory_format=torch.channels_last)).argmax(1)
        return {"label": labels.cpu().numpy()}
