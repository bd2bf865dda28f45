"""What the models are built of. Parameters are a dict name -> tensor; `name` is the dotted prefix of a module."""
import math

import torch


def no_dropout(x, p, site, row):
    """A dropout callable: x holds the elements of one global row (row-major), p is the rate, site names the place."""
    return x


def linear(x, parameters, name):
    y = x @ parameters[name + ".weight"].T
    bias = parameters.get(name + ".bias")
    return y if bias is None else y + bias


def layer_norm(x, parameters, name):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-5) * parameters[name + ".weight"] + parameters[name + ".bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def attention(query, context, parameters, name, heads):
    """Multi-head attention of one sample: query [Tq, d], context [Tk, d_context] (Tk >= 1) -> [Tq, d]."""
    q = linear(query, parameters, name + ".query")
    key_value = linear(context, parameters, name + ".key_value")
    d = q.shape[-1]
    k, v = key_value[:, :d], key_value[:, d:]
    width = d // heads
    outputs = []
    for h in range(heads):
        columns = slice(h * width, (h + 1) * width)
        scores = q[:, columns] @ k[:, columns].T / math.sqrt(width)
        outputs.append(torch.softmax(scores, dim=-1) @ v[:, columns])
    return linear(torch.cat(outputs, dim=-1), parameters, name + ".output")


def cross_entropy(logits, labels):
    """Per row: -log softmax(logits)[label]."""
    return -torch.log_softmax(logits, dim=-1)[torch.arange(len(labels)), labels]
