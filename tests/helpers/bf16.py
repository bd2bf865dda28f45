"""What bfloat16 autocast costs: muster's beside PyTorch's own of the same model, each against the truth in fp64."""
import copy

import torch

EPSILON = torch.finfo(torch.bfloat16).eps


def single_and_exact(model):
    """The model in fp32, and the same in fp64: its parameters are numbers that fp32 holds."""
    single = copy.deepcopy(model).float()
    return single, copy.deepcopy(single).double()


class Errors:
    """By name, of several inputs together: errors relative to the truth, in the Euclidean norm."""

    def __init__(self):
        self._sums = {}

    def add(self, name, truth, ours, theirs):
        truth, ours, theirs = (value.detach().double() for value in (truth, ours, theirs))
        sums = self._sums.setdefault(name, [0.0, 0.0, 0.0])
        for i, value in enumerate((truth, ours - truth, theirs - truth)):
            sums[i] += value.square().sum().item()

    def relative(self, name):
        truth, ours, theirs = self._sums[name]
        return (ours / truth) ** 0.5, (theirs / truth) ** 0.5

    def check(self):
        """Ours are at most twice theirs, and two units of bfloat16. Returns the worst ratio, for people."""
        problems, worst = [], (0.0, "")
        for name in self._sums:
            ours, theirs = self.relative(name)
            worst = max(worst, (ours / theirs, name))
            if not ours <= 2 * theirs + 2 * EPSILON:
                problems.append(f"{name}: {ours:.3g}, with PyTorch's autocast {theirs:.3g}")
        assert not problems, "\n".join(problems)
        # The reference is not so coarse that anything would do, and what ran here was not fp32.
        ours, theirs = self.relative("frames")
        assert EPSILON / 16 < ours and theirs < 16 * EPSILON, (ours, theirs)
        return f"frames {ours:.2g} beside {theirs:.2g}; worst ratio {worst[0]:.2g} of {worst[1]}"
