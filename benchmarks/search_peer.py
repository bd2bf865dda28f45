#!/usr/bin/env python3
"""One trial as a PyTorch user writes it: MIAR (docs/models.md) on padded batches, trained on an .npz file by a process of its own. benchmarks/search.py
starts one for every trial of its peer. The last line that it prints is JSON: parameters, and the validation MAE of the best weights.

Usage: search_peer.py DATA.npz [--learning-rate R] [--dropout P] [--weight-decay W] [--batch-size N] [--epochs N] [--best BEST.pt] [--evaluate WEIGHTS.safetensors]
"""
import argparse
import json
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def linear(inputs, outputs, stacked=1):
    layer = nn.Linear(inputs, outputs)
    for part in layer.weight.chunk(stacked):
        nn.init.xavier_uniform_(part)
    nn.init.zeros_(layer.bias)
    return layer


def sinusoids(length, dim):
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


class Block(nn.Module):
    def __init__(self, dim, ffn_dim, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.ModuleDict({"query": linear(dim, dim), "key_value": linear(dim, 2 * dim, 2), "output": linear(dim, dim)})
        self.ffn = nn.ModuleDict({"input": linear(dim, ffn_dim), "output": linear(ffn_dim, dim)})

    def forward(self, z, normed, context, mask):
        """z and normed [N, Tq, dim], context [N, Tk, dim]; mask [N, 1, 1, Tk], true where there is a frame, or None -> [N, Tq, dim]."""
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys, values = self.attention["key_value"](context).chunk(2, -1)
        taken = F.scaled_dot_product_attention(split(self.attention["query"](normed)), split(keys), split(values), mask)
        z = z + self.dropout(self.attention["output"](taken.transpose(1, 2).flatten(2)))
        return z + self.dropout(self.ffn["output"](F.gelu(self.ffn["input"](self.ffn_norm(z)))))


class Miar(nn.Module):
    """Parameters have muster's names. As in muster, the last layer computes only the tokens, since nothing else of it is read."""

    def __init__(self, dims, frames, dropout, dim=64, layers=2, heads=4, ffn_dim=256, alignment_dim=64):
        super().__init__()
        self.names, streams = list(dims), [*dims, "joint"]
        self.encoder = nn.ModuleDict({m: nn.ModuleDict({"input": linear(dims[m], dim), "norm": nn.LayerNorm(dim)}) for m in dims})
        self.alignment = nn.ModuleDict({m: nn.ModuleDict({
            "projection": nn.ModuleDict({"input": linear(dim, dim), "output": linear(dim, alignment_dim)}), "norm": nn.LayerNorm(alignment_dim)}) for m in dims})
        self.token = nn.ParameterDict({k: nn.Parameter(0.02 * torch.randn(dim)) for k in streams})
        self.token_norm = nn.ModuleDict({k: nn.LayerNorm(dim) for k in streams})
        self.layers = nn.ModuleList(nn.ModuleDict({k: Block(dim, ffn_dim, heads, dropout) for k in streams}) for _ in range(layers))
        self.gate = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.head = nn.ModuleDict({"input": linear((len(dims) + 2) * dim, dim), "output": linear(dim, 1)})
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoids(frames, dim), persistent=False)

    def forward(self, features, valid):
        """features {m: [N, T, D]}; valid [N, T]: which frames there are, or None when all -> predictions [N], {m: embeddings [N, alignment_dim]}."""
        names = self.names
        count, length = next(iter(features.values())).shape[:2]
        z = {"joint": self.token["joint"].expand(count, 1, -1)}
        for m in names:
            frames = self.encoder[m]["norm"](self.encoder[m]["input"](features[m]) + self.positions[:length])
            z[m] = torch.cat([self.token[m].expand(count, 1, -1), frames], 1)
        masks = {k: None for k in z}
        if valid is not None:
            others, own = valid.repeat(1, len(names) - 1), torch.cat([valid.new_ones(count, 1), valid], 1)
            masks = {k: (own.repeat(1, len(names)) if k == "joint" else others)[:, None, None] for k in z}
        for number, layer in enumerate(self.layers):
            normed = {k: layer[k].attention_norm(z[k]) for k in z}
            context = {k: torch.cat([normed[m] if k == "joint" else normed[m][:, 1:] for m in names if m != k], 1) for k in z}
            read = 1 if number + 1 == len(self.layers) else length + 1
            z = {k: layer[k](z[k][:, :read], normed[k][:, :read], context[k], masks[k]) for k in z}
        tokens = {k: self.token_norm[k](z[k][:, 0]) for k in [*names, "joint"]}
        stacked = torch.stack(list(tokens.values()), 1)
        fused = (self.gate(stacked).softmax(1) * stacked).sum(1)
        hidden = self.dropout(F.gelu(self.head["input"](torch.cat([fused, stacked.flatten(1)], 1))))
        embeddings = {}
        for m in names:
            projection = self.alignment[m]["projection"]
            embeddings[m] = F.normalize(self.alignment[m]["norm"](projection["output"](F.gelu(projection["input"](tokens[m])))), dim=-1)
        return self.head["output"](hidden)[:, 0], embeddings


def alignment_loss(embeddings, temperature=0.07):
    """Symmetric InfoNCE, mean over the pairs of modalities."""
    names, total = list(embeddings), 0
    own = torch.arange(len(embeddings[names[0]]))
    pairs = [(p, q) for i, p in enumerate(names) for q in names[i + 1:]]
    for p, q in pairs:
        scores = embeddings[p] @ embeddings[q].T / temperature
        total = total + (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    return total / len(pairs)


class Data:
    """An .npz file: features padded to one length, lengths, labels and splits; features standardized by the training frames."""

    def __init__(self, path):
        file = np.load(path)
        self.splits, self.labels = file["split"], torch.from_numpy(file["label"])
        names = [name for name in file.files if name not in ("label", "split", "length")]
        self.features = {name: torch.from_numpy(file[name]) for name in names}
        frames = self.features[names[0]].shape[1]
        lengths = torch.from_numpy(file["length"])
        valid, train = torch.arange(frames) < lengths[:, None], self.rows("train")
        for name, values in self.features.items():
            seen = values[train][valid[train]]
            self.features[name] = (values - seen.mean(0)) / seen.std(0, correction=0) * valid[..., None]
        self.valid = None if bool(valid.all()) else valid

    def rows(self, split):
        return torch.from_numpy(np.flatnonzero(self.splits == split))

    def batch(self, rows):
        return {name: values[rows] for name, values in self.features.items()}, None if self.valid is None else self.valid[rows]


def validation_error(model, data, batch_size=64):
    model.eval()
    with torch.no_grad():
        rows = data.rows("valid")
        predictions = torch.cat([model(*data.batch(part))[0] for part in rows.split(batch_size)])
        return (predictions - data.labels[rows]).abs().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--best", help="where the best weights are kept")
    parser.add_argument("--evaluate", help="trains nothing: the error of these weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    data = Data(arguments.data)
    dims = {name: values.shape[2] for name, values in data.features.items()}
    model = Miar(dims, next(iter(data.features.values())).shape[1], arguments.dropout)
    best = math.nan
    if arguments.evaluate:
        from safetensors.torch import load_file
        held = model.state_dict()
        model.load_state_dict({name: tensor for name, tensor in load_file(arguments.evaluate).items() if name in held})
        best = validation_error(model, data)
        arguments.epochs = 0
    matrices, others = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": others, "weight_decay": 0}], arguments.learning_rate, weight_decay=arguments.weight_decay, fused=True)
    train = data.rows("train")
    for _ in range(arguments.epochs):
        model.train()
        for rows in train[torch.randperm(len(train))].split(arguments.batch_size):
            predictions, embeddings = model(*data.batch(rows))
            loss = F.l1_loss(predictions, data.labels[rows]) + 0.1 * alignment_loss(embeddings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        error = validation_error(model, data)
        if not error >= best:
            best = error
            if arguments.best:
                torch.save(model.state_dict(), arguments.best)
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "mae": best}))


if __name__ == "__main__":
    main()
