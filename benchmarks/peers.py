"""Other packages' curvature products for LeNet, called as their documentation shows, or faster if possible.

A package that is not installed has no products.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from ahf_cli.optim import ModelObjective
from benchmarks import problems

Product = Callable[[Tensor], Tensor]
"""v ↦ B v, (1, P) → (1, P)."""
ProductAt = Callable[[Tensor], Product]
"""θ, (1, P) ↦ the product there, with all that one step needs once."""


@dataclass(frozen=True)
class Peer:
    """A package: its name for pip, its module, and its products by curvature for h."""

    name: str
    module: str
    make: Callable[[ModelObjective], Mapping[str, ProductAt]]

    def products(self, h: ModelObjective) -> Mapping[str, ProductAt] | None:
        """Return the products for h; None if the package is not installed."""
        try:
            importlib.import_module(self.module)
        except ImportError:
            return None
        return self.make(h)


def backpack(h: ModelObjective) -> Mapping[str, ProductAt]:
    """Products of BackPACK on one forward pass a step; for the Hessian it also gets the gradient's graph."""
    hvp = importlib.import_module("backpack.hessianfree.hvp").hessian_vector_product
    ggnvp = importlib.import_module("backpack.hessianfree.ggnvp").ggn_vector_product_from_plist

    def evaluated(theta: Tensor) -> tuple[list[nn.Parameter], Tensor, Tensor]:
        model = problems.module_at(h, theta)  # a graph outlives no change of its parameters
        outputs = model(h.inputs)
        return list(model.parameters()), outputs, nn.functional.cross_entropy(outputs, h.targets)

    def pieces(v: Tensor) -> list[Tensor]:
        return [piece[0] for piece in h.layout.split(v)]

    def hessian_at(theta: Tensor) -> Product:
        leaves, _, loss = evaluated(theta)
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        return lambda v: h.layout.join(hvp(loss, leaves, pieces(v), grad_params=gradients))

    def ggn_at(theta: Tensor) -> Product:
        leaves, outputs, loss = evaluated(theta)
        return lambda v: h.layout.join(ggnvp(loss, outputs, leaves, pieces(v)))

    return {"hessian": hessian_at, "ggn": ggn_at}


def curvlinops(h: ModelObjective) -> Mapping[str, ProductAt]:
    """Linear operators of curvlinops."""
    package = importlib.import_module("curvlinops")
    model = copy.deepcopy(h.model)
    arguments = (model, nn.CrossEntropyLoss(), list(model.parameters()), [(h.inputs, h.targets)])

    def at(operator: Any) -> ProductAt:
        made = operator(*arguments, check_deterministic=False)
        return _loaded(h, model, lambda v: (made @ v[0])[None])

    return {"hessian": at(package.HessianLinearOperator), "ggn": at(package.GGNLinearOperator)}


def eigenthings(h: ModelObjective) -> Mapping[str, ProductAt]:
    """Operators of pytorch-hessian-eigenthings."""
    package = importlib.import_module("hessian_eigenthings")
    model, loss = copy.deepcopy(h.model), nn.functional.cross_entropy
    batches = [(h.inputs, h.targets)]
    hessian = package.HessianOperator(model, batches, package.supervised_loss(loss))
    of_output = package.supervised_loss_of_output(loss)
    ggn = package.GGNOperator(model, batches, package.supervised_forward, of_output)
    return {
        "hessian": _loaded(h, model, lambda v: hessian.matvec(v[0])[None]),
        "ggn": _loaded(h, model, lambda v: ggn.matvec(v[0])[None]),
    }


def _loaded(h: ModelObjective, model: nn.Module, product: Product) -> ProductAt:
    """Return θ ↦ the product, with θ copied into the model."""

    def at(theta: Tensor) -> Product:
        problems.load(model, h, theta)
        return product

    return at


def jax(h: ModelObjective) -> Mapping[str, ProductAt]:
    """Compiled gradient and products of JAX, on a CPU: forward over reverse, or Jᵀ H_L J v."""
    if h.inputs.is_cuda:
        return {}
    jax, lax = importlib.import_module("jax"), importlib.import_module("jax.lax")
    jnp = importlib.import_module("jax.numpy")
    x, y = (jnp.asarray(t.numpy()) for t in (h.inputs.permute(0, 2, 3, 1), h.targets))
    shapes = h.layout.shapes
    bounds = [0]
    for shape in shapes:
        bounds.append(bounds[-1] + shape.numel())

    # Channels last and a pooling by axes are JAX's fastest on a CPU.
    def convolved(image: Any, w: Any, b: Any) -> Any:
        orders = ("NHWC", "OIHW", "NHWC")
        z = lax.conv_general_dilated(image, w, (1, 1), "VALID", dimension_numbers=orders)
        count, height, width, channels = z.shape
        return jax.nn.relu(z.reshape(count, height // 2, 2, width // 2, 2, channels).max((2, 4)) + b)

    def outputs(row: Any) -> Any:
        w = [row[bounds[n] : bounds[n + 1]].reshape(tuple(shape)) for n, shape in enumerate(shapes)]
        images = convolved(convolved(x, w[0], w[1]), w[2], w[3])
        z = images.transpose(0, 3, 1, 2).reshape(len(x), -1)
        z = jax.nn.relu(z @ w[4].T + w[5])
        return jax.nn.relu(z @ w[6].T + w[7]) @ w[8].T + w[9]

    def loss(z: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1).mean()

    def hessian(row: Any, v: Any) -> Any:
        return jax.jvp(jax.grad(lambda r: loss(outputs(r))), (row,), (v,))[1]

    def ggn(row: Any, v: Any) -> Any:
        z, change = jax.jvp(outputs, (row,), (v,))
        curved = jax.jvp(jax.grad(loss), (z,), (change,))[1]
        return jax.vjp(outputs, row)[1](curved)[0]

    def at(function: Any) -> ProductAt:
        compiled = jax.jit(function)

        def product_at(theta: Tensor) -> Product:
            row = jnp.asarray(theta[0].numpy())
            return lambda v: from_dlpack(compiled(row, jnp.asarray(v[0].numpy())).block_until_ready())[None]

        return product_at

    gradient = at(lambda row, _: jax.grad(lambda r: loss(outputs(r)))(row))
    return {"gradient": gradient, "hessian": at(hessian), "ggn": at(ggn)}


PEERS = (
    Peer("backpack-for-pytorch", "backpack", backpack),
    Peer("curvlinops-for-pytorch", "curvlinops", curvlinops),
    Peer("hessian-eigenthings", "hessian_eigenthings", eigenthings),
    Peer("jax", "jax", jax),
)
"""The packages of the extra `bench`."""
