import torch
from torch import Tensor, nn

from kdcache.student.shampoo import EVERY, Shampoo


def _trained(num_steps: int, *, seed: int) -> Tensor:
    """Return a weight of some strong and many weak rows after steps by random gradients.

    seed: of the global generator, not of the gradients.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(5)
    scales = torch.logspace(0, -4, 32).unsqueeze(1).round(decimals=1) + 1e-3
    weight = nn.Parameter(torch.zeros(32, 48))
    optimizer = Shampoo([weight], lr=0.1)
    for _ in range(num_steps):
        weight.grad = scales * torch.randn(32, 48, generator=generator)
        optimizer.step()
    return weight.detach()


def test_processes_with_other_random_numbers_train_alike() -> None:
    """The package's power iteration, from random vectors, need not converge."""
    assert torch.equal(_trained(3 * EVERY, seed=0), _trained(3 * EVERY, seed=1))


def test_the_first_steps_are_rmsprops_with_momentum() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, expected = nn.Parameter(torch.zeros(32, 48)), torch.zeros(32, 48)
    optimizer = Shampoo([weight], lr=0.1)
    squares, momentum = torch.zeros(2, 32, 48)
    for _ in range(EVERY - 1):
        grad = torch.randn(32, 48, generator=generator)
        weight.grad = grad.clone()
        optimizer.step()
        squares = 0.99 * squares + 0.01 * grad**2
        update = grad / (squares.sqrt() + 1e-10)
        momentum = 0.9 * momentum + 0.1 * update
        expected -= 0.1 * (0.9 * momentum + 0.1 * update)
    torch.testing.assert_close(weight.detach(), expected)
