"""Adam without PyTorch's compiler."""

from __future__ import annotations

import inspect

import torch


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, but it does not import `torch._dynamo`, which takes a second of every start.

    PyTorch wraps methods of optimisers so that its compiler leaves them alone. Nothing here is compiled: these are the
    same methods without the wrappers, or with them where a version of PyTorch makes them another way. A closure is not
    supported.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
