"""The flows of `side_by_side.py` in PyTorch: plain ones, and those of zuko and normflows.

A maker takes the number of dimensions, the seed, the rate and the bound of the gradient's norm.
"""

import functools

import normflows
import torch
import zuko
from one_side import BATCH
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)
_SLOPE = 0.3


class Training:
    """The plain loop of PyTorch, of a module with the methods `loss` and `log_prob`."""

    def __init__(self, module, rate, clip):
        self.module, self.clip = module, clip
        self.optimizer = torch.optim.Adam(module.parameters(), lr=rate)

    def train(self, events):
        """A step for each batch, in order."""
        for x in torch.from_numpy(events).split(BATCH):
            loss = self.module.loss(x)
            self.optimizer.zero_grad()
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
            self.optimizer.step()

    def log_prob(self, events):
        """Exact, by numpy's arrays."""
        return self.module.log_prob(torch.from_numpy(events)).detach().numpy()


def normal_log_prob(z):
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=-1)


class SelfNormalizing(torch.autograd.Function):
    """`z = W x`, the gradients of the paper, and the reconstruction error, by six products."""

    @staticmethod
    def forward(ctx, x, inverse_kernel, forward_kernel):
        z = x @ inverse_kernel.T
        error = z @ forward_kernel.T - x
        ctx.save_for_backward(x, z, error, inverse_kernel, forward_kernel)
        return z, error.square().sum(dim=-1).mean()

    @staticmethod
    def backward(ctx, d_z, d_error):
        x, z, error, inverse_kernel, forward_kernel = ctx.saved_tensors
        d_x = d_z @ inverse_kernel
        d_back = 2 / len(x) * d_error * error
        d_inverse = (0.5 * d_z + d_back @ forward_kernel).T @ x
        d_forward = (d_back - 0.5 * d_x).T @ z
        return d_x, d_inverse, d_forward


class PaperLayer(nn.Module):
    """W, R and a bias: the log-det of training has the gradient by the other kernel, and no value."""

    def __init__(self, size):
        super().__init__()
        self.inverse_kernel, self.forward_kernel = (nn.Parameter(torch.eye(size)) for _ in range(2))
        self.bias = nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x):
        z, error = SelfNormalizing.apply(x, self.inverse_kernel, self.forward_kernel)
        own = torch.sum(self.forward_kernel.T.detach() * self.inverse_kernel)
        other = torch.sum(self.inverse_kernel.T.detach() * self.forward_kernel)
        return z + self.bias, 0.5 * (own - other), error

    def exact(self, x):
        return functional.linear(x, self.inverse_kernel, self.bias), self.inverse_kernel.slogdet()[1]


class ExactLayer(nn.Module):
    """W and a bias, the log-det by `slogdet`."""

    def __init__(self, size):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.eye(size)), nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x):
        return *self.exact(x), 0.0

    def exact(self, x):
        return functional.linear(x, self.kernel, self.bias), self.kernel.slogdet()[1]


class ZukoLayer(nn.Module):
    """`zuko.transforms.LULinearTransform` and a bias."""

    def __init__(self, size):
        super().__init__()
        self.factors, self.bias = nn.Parameter(torch.eye(size)), nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x):
        return *self.exact(x), 0.0

    def exact(self, x):
        z, log_det = zuko.transforms.LULinearTransform(self.factors).call_and_ladj(x)
        return z + self.bias, log_det


class NormflowsLayer(nn.Module):
    """A layer of normflows; its direction from data to latents is `inverse`."""

    def __init__(self, size, kind, **options):
        super().__init__()
        self.layer = getattr(normflows.flows, kind)(size, **options)
        self.bias = nn.Parameter(1e-3 * torch.randn(size))

    def forward(self, x):
        return *self.exact(x), 0.0

    def exact(self, x):
        z, log_det = self.layer.inverse(x)
        return z + self.bias, log_det


class Dense(nn.Module):
    """Two layers with a smooth leaky ReLU between them, and a standard normal base."""

    def __init__(self, size, layer, **options):
        super().__init__()
        self.first, self.second = (layer(size, **options) for _ in range(2))

    def loss(self, x):
        z, first, error = self.first(x)
        z, activation = smooth_leaky_relu(z)
        z, second, other_error = self.second(z)
        return error + other_error - (normal_log_prob(z) + first + activation + second).mean()

    def log_prob(self, x):
        z, first = self.first.exact(x)
        z, activation = smooth_leaky_relu(z)
        z, second = self.second.exact(z)
        return normal_log_prob(z) + first + activation + second


def smooth_leaky_relu(x):
    slopes = _SLOPE + (1 - _SLOPE) * torch.sigmoid(x)
    return _SLOPE * x + (1 - _SLOPE) * functional.softplus(x), slopes.log().sum(dim=-1)


class Zuko(nn.Module):
    """A whole flow of zuko."""

    def __init__(self, size, flow, **options):
        super().__init__()
        self.flow = getattr(zuko.flows, flow)(size, **options)

    def loss(self, x):
        return -self.log_prob(x).mean()

    def log_prob(self, x):
        return self.flow().log_prob(x)


class Residual(nn.Module):
    """As `tfp_selfnorm.residual_network`: blocks that start as the identity."""

    def __init__(self, size, width, depth):
        super().__init__()
        blocks = [
            nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, size)) for _ in range(depth)
        ]
        for block in blocks:
            nn.init.kaiming_uniform_(block[0].weight)
            nn.init.uniform_(block[0].bias, -2.0, 2.0)
            nn.init.zeros_(block[2].weight)
            nn.init.zeros_(block[2].bias)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


class FreeForm(nn.Module):
    """A free-form flow of Draxler et al., with the exact log-det or with one probe of both Jacobians."""

    def __init__(self, size, exact, width=128, depth=3, weight=3.0):
        super().__init__()
        self.exact, self.weight = exact, weight
        self.encoder, self.decoder = (Residual(size, width, depth) for _ in range(2))

    def loss(self, x):
        if self.exact:
            z, log_det = self.encoder(x), self._log_det(x)
            back = self.decoder(z)
        else:
            z, back, log_det = self._probe(x)
        error = (x - back).square().sum(dim=-1)
        return (self.weight * error - normal_log_prob(z) - log_det).mean()

    def _probe(self, x):
        """Its log-det has no value; its gradient is an estimate."""
        x = x.detach().requires_grad_()
        probe = functional.normalize(torch.randn_like(x), dim=-1) * x.shape[1] ** 0.5
        z = self.encoder(x)
        (pulled,) = torch.autograd.grad(z, x, probe, create_graph=True)
        back, pushed = torch.func.jvp(self.decoder, (z,), (probe,))
        return z, back, (pulled * pushed.detach()).sum(dim=-1)

    def _log_det(self, x):
        return torch.func.vmap(torch.func.jacrev(self.encoder))(x).slogdet()[1]

    def log_prob(self, x):
        return normal_log_prob(self.encoder(x)) + self._log_det(x)


def _maker(module):
    def make(size, seed, rate, clip, **options):
        torch.manual_seed(seed)
        return Training(module(size, **options), rate, clip)

    return make


MAKERS = {
    "paper": _maker(functools.partial(Dense, layer=PaperLayer)),
    "exact": _maker(functools.partial(Dense, layer=ExactLayer)),
    "zuko_lu": _maker(functools.partial(Dense, layer=ZukoLayer)),
    "normflows": _maker(functools.partial(Dense, layer=NormflowsLayer)),
    "zuko": _maker(Zuko),
    "free_form": _maker(FreeForm),
}
