#!/usr/bin/env python3
"""Fine-tuning WavLM as a user of transformers and PyTorch writes it: padded, masked batches, DistributedDataParallel over gloo, fused AdamW. The peer of
encoder_step.py. The last line that it prints is JSON: losses of the global batch and the slowest rank's seconds, per step.

Usage: encoder_step_peer.py DATA.npz --ranks N --batch N --size base --start START.pt
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import WavLMConfig, WavLMModel

QUIET = dict(hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
             feat_extract_norm="layer", do_stable_layer_norm=True)
SIZES = {
    "tiny": dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7, num_conv_pos_embeddings=8,
                 num_conv_pos_embedding_groups=2),
    "base": dict(),
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
}
DIM, HIDDEN, CLASSES = 64, 64, 4


class Model(nn.Module):
    """WavLM, and muster's late_fusion of one modality."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.fusion = nn.Linear(encoder.config.hidden_size, DIM)
        self.input, self.output = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, waves, mask):
        frames = self.encoder(waves, attention_mask=mask).last_hidden_state
        valid = self.encoder._get_feature_vector_attention_mask(frames.shape[1], mask)[..., None].to(frames.dtype)
        mean = (frames * valid).sum(1) / valid.sum(1)
        return self.output(F.relu(self.input(F.relu(self.fusion(mean)))))


def make_model(size):
    model = Model(WavLMModel(WavLMConfig(**{**QUIET, **SIZES[size]})))
    model.encoder.freeze_feature_encoder()
    return model


def classifier_state(model):
    """All parameters by muster's names."""
    state = {f"encoders.audio.{name}": value.detach().contiguous() for name, value in model.encoder.named_parameters()}
    for name, layer in (("encoder.audio", model.fusion), ("head.input", model.input), ("head.output", model.output)):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight.detach(), layer.bias.detach()
    return state


def train(rank, arguments, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.FileStore(store, arguments.ranks), rank=rank, world_size=arguments.ranks)
    data = np.load(arguments.data)
    starts = np.concatenate([[0], data["lengths"].cumsum()])
    values, labels = torch.from_numpy(data["values"]), torch.from_numpy(data["labels"])
    model = make_model(arguments.size)
    model.load_state_dict(torch.load(arguments.start))
    model.encoder.masked_spec_embed.requires_grad_(False)
    model.train()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0, fused=True)
    own = arguments.batch // arguments.ranks
    losses, seconds = [], []
    for first in range(0, len(labels) - arguments.batch + 1, arguments.batch):
        torch.distributed.barrier()
        began = time.time()
        samples = range(first + rank * own, first + (rank + 1) * own)
        waves = []
        for i in samples:
            x = values[starts[i]:starts[i + 1]]
            waves.append((x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-7))
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=torch.long) for x in waves], batch_first=True)
        logits = parallel(nn.utils.rnn.pad_sequence(waves, batch_first=True), mask)
        loss = F.cross_entropy(logits, labels[samples.start:samples.stop])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        figures = torch.tensor([loss.item() / arguments.ranks, 0.0])
        torch.distributed.all_reduce(figures)
        elapsed = torch.tensor(time.time() - began)
        torch.distributed.all_reduce(elapsed, torch.distributed.ReduceOp.MAX)
        losses.append(figures[0].item())
        seconds.append(elapsed.item())
    if rank == 0:
        print(json.dumps({"losses": losses, "seconds": seconds}))
        sys.stdout.flush()
    torch.distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--start", required=True)
    parser.add_argument("--rank", type=int, help="of one of the processes that this program starts")
    parser.add_argument("--store", help="where they meet")
    arguments = parser.parse_args()
    if arguments.rank is not None:
        return train(arguments.rank, arguments, arguments.store)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [subprocess.Popen([sys.executable, *sys.argv, "--rank", str(rank), "--store", os.path.join(folder, "store")], env=environment)
                 for rank in range(arguments.ranks)]
        sys.exit(max(abs(rank.wait()) for rank in ranks))


if __name__ == "__main__":
    main()
