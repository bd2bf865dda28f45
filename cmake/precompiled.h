#pragma once
// The part of LibTorch that muster uses: tensors and autograd. Not <torch/torch.h>, whose neural-network front end
// costs twice the compile time and is not used.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>
