"""What the models are built of. Parameters are a dict name -> tensor; `name` is the dotted prefix of a module."""
import math

import torch
import torch.nn.functional as F


def no_dropout(x, p, site, row):
    """A dropout callable: x holds the elements of one global row (row-major), p is the rate, site names the place."""
    return x


def linear(x, parameters, name):
    return F.linear(x, parameters[name + ".weight"], parameters.get(name + ".bias"))


def layer_norm(x, parameters, name):
    return F.layer_norm(x, x.shape[-1:], parameters[name + ".weight"], parameters[name + ".bias"], 1e-5)


def gelu(x):
    return F.gelu(x)


def unit(x):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True))


def attention(query, context, parameters, name, heads):
    """Multi-head attention of one sample: query [Tq, d], context [Tk, d_context] (Tk >= 1) -> [Tq, d]."""
    q = linear(query, parameters, name + ".query")
    key_value = linear(context, parameters, name + ".key_value")
    d = q.shape[-1]
    k, v = key_value[:, :d], key_value[:, d:]
    width = d // heads
    q, k, v = (x.unflatten(-1, (heads, width)).transpose(0, 1) for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(width)
    outputs = torch.softmax(scores, dim=-1) @ v
    return linear(outputs.transpose(0, 1).flatten(1), parameters, name + ".output")


def prediction_loss(outputs, labels):
    """(the term's name, its value): labels are float64 [N], int64 classes [N], or 0s and 1s float64 [N, classes]."""
    if labels.dim() == 2:
        return "multilabel", F.binary_cross_entropy_with_logits(outputs, labels)
    if labels.is_floating_point():
        return "regression", (outputs[:, 0] - labels).abs().sum() / len(labels)
    return "classification", cross_entropy(outputs, labels).sum() / len(labels)


def cross_entropy(logits, labels):
    """Per row: -log softmax(logits)[label]."""
    return -torch.log_softmax(logits, dim=-1)[torch.arange(len(labels)), labels]
