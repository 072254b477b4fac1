"""Processes that train one model together, as torchrun starts them; a single process is a team of one.

Every member runs the same program on the same state: it deals the whole batch, plays its own rows of it, and averages gradients and
figures with the others before anything is moved. Weights, averages, optimisers and random generators so stay equal everywhere; one
member's state is everybody's, and a checkpoint can be gone on with by any number of processes.
"""

import atexit
import os
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

from training.contract import UserError
from training.game import Round, Tensors

STEPS_BETWEEN_MEETINGS = 8
ARRIVAL_TIMEOUT = timedelta(minutes=5)  # a cold disk gives torch to one member after the other
CONNECTION_TIMEOUT = timedelta(minutes=1)  # of members that are all there
MESSAGE_TIMEOUT = timedelta(hours=2)  # the others wait while one evaluates and publishes; torchrun tells them when it dies


class LostMemberError(UserError):
    """Another process of the team is gone: all go back to the last checkpoint."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"another process of the team is gone, and its own words say why ({reason})")


@dataclass(frozen=True)
class Team:
    """This process among `size`, of which `local_size` share this machine; `rank` counts from 0, and 0 alone writes files."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @classmethod
    def gather(cls, device: torch.device) -> "Team":
        """All that torchrun has started, who wait for one another here; a team of one without torchrun."""
        if not dist.is_torchelastic_launched():
            return cls()
        if not dist.is_initialized():
            store, rank, size = _meeting_place()
            gpu = device if device.type == "cuda" else None
            if gpu:
                torch.cuda.set_device(gpu)
            backend = "nccl" if gpu else "gloo"
            dist.init_process_group(backend, timeout=CONNECTION_TIMEOUT, store=store, rank=rank, world_size=size, device_id=gpu)
            dist.set_timeout(MESSAGE_TIMEOUT)
            atexit.register(dist.destroy_process_group)  # its threads abort a process that ends without it, now and then
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"]))

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def meets(self, step: int) -> bool:
        """Whether the members agree on what to do after this step: asking at each would hold up a GPU."""
        return self.size == 1 or step % STEPS_BETWEEN_MEETINGS == 0

    def check(self, batch_size: int) -> None:
        """Raise UserError where the batch cannot be shared out evenly."""
        if batch_size % self.size or batch_size < 2 * self.size:
            raise UserError(
                f"a batch of {batch_size} images cannot be shared among {self.size} processes; give a batch_size that is a multiple of"
                f" {self.size}, and two images for each at least"
            )

    def share(self, dealt: Round) -> Round:
        """This member's rows."""
        if self.size == 1:
            return dealt

        def mine(values: Tensor) -> Tensor:
            return values.chunk(self.size)[self.rank]

        def all_mine(tensors: Tensors) -> Tensors:
            return {name: mine(values) for name, values in tensors.items()}

        return Round(all_mine(dealt.inputs), mine(dealt.target), all_mine(dealt.condition))

    def own_random(self, shared: torch.Generator, step: int) -> torch.Generator:
        """For what is drawn within a step, for this member's rows alone; torch's global generator, of dropout, is set alike."""
        if self.size == 1:
            return shared
        seed = (shared.initial_seed() + 0x9E3779B1 * (step * self.size + self.rank + 1)) % 2**32  # far apart for neighbours
        torch.manual_seed(seed)
        return torch.Generator(shared.device).manual_seed(seed)

    def average_gradients(self, weights: Iterable[Tensor]) -> None:
        """In place, over all members, in one message."""
        if self.size == 1:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        averaged = self.average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, values in zip(gradients, torch.split(averaged, [gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(values.view_as(gradient))

    def average(self, values: Tensor) -> Tensor:
        """Over all members."""
        if self.size == 1:
            return values
        total = values.clone()
        _together(lambda: dist.all_reduce(total))
        return total / self.size

    def agree(self, value: int) -> int:
        """What the leader says."""
        if self.size == 1:
            return value
        said = torch.tensor([value if self.leads else 0])
        if dist.get_backend() == "nccl":
            said = said.cuda()
        _together(lambda: dist.broadcast(said, 0))
        return int(said)

    def synchronise_norms(self, network: nn.Module) -> None:
        """Batch norms take their statistics of the whole batch."""
        for module in network.modules():
            if self.size > 1 and type(module) in _SYNCHRONISED:
                module.__class__ = _SYNCHRONISED[type(module)]

    def separate_norms(self, network: nn.Module) -> None:
        """Give norms their plain classes back, which can be exported."""
        plain = {synchronised: plain for plain, synchronised in _SYNCHRONISED.items()}
        for module in network.modules():
            if type(module) in plain:
                module.__class__ = plain[type(module)]


def _together(message: Callable[[], object]) -> None:
    try:
        message()
    except RuntimeError as error:  # the back ends know no better one
        raise LostMemberError(str(error).splitlines()[0]) from error


ALONE = Team()


def _meeting_place() -> tuple[Store, int, int]:
    """A store that none but these members know, this one's rank, and their number.

    torchrun's own store outlives a restart, and so do the addresses that the former members left in it; its restart count is not the
    same on all machines. So the leader makes up a name, and tells it to who asks with a name that is new as well.
    """
    store, rank, size = next(rendezvous("env://", timeout=ARRIVAL_TIMEOUT))
    mine = uuid.uuid4().hex
    if rank:
        store.set(f"asks/{rank}", mine)
        leader = store.get(f"answer/{mine}").decode()  # waits
        store.add(f"{leader}/arrived", 1)
        return PrefixStore(leader, store), rank, size
    deadline = time.monotonic() + ARRIVAL_TIMEOUT.total_seconds()
    while store.add(f"{mine}/arrived", 0) < size - 1:
        if time.monotonic() > deadline:
            raise UserError(f"of {size} processes not all have come within {ARRIVAL_TIMEOUT.seconds} s; look at what the others say")
        for asks in (f"asks/{other}" for other in range(1, size)):
            if store.check([asks]):
                store.set(f"answer/{store.get(asks).decode()}", mine)
        time.sleep(0.05)
    return PrefixStore(mine, store), rank, size


def is_restarted() -> bool:
    """Whether torchrun starts this team anew, after a member has ended in failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


class _Sum(torch.autograd.Function):
    """Over all members, forwards and backwards: each member's loss looks at the statistics of all."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        _together(lambda: dist.all_reduce(total))
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        _together(lambda: dist.all_reduce(total))
        return total


class _SynchronisedBatchNorm(_BatchNorm):
    """Batch norm over the rows of all members; its weights and statistics are those of the plain one that it was."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - its name in torch
        if not self.training:
            return super().forward(input)
        dtype, input = input.dtype, input.float()  # noqa: A001 - statistics want every bit
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        size = dist.get_world_size()
        mean = _Sum.apply(input.mean(axes)) / size
        centred = input - mean.view(shape)
        variance = _Sum.apply(centred.square().mean(axes)) / size
        self._remember(mean.detach(), variance.detach(), size * input.numel() // input.shape[1])
        output: Tensor = centred * (variance + self.eps).rsqrt().view(shape)
        output = output if self.weight is None else output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """As torch's own: the running variance is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / max(count - 1, 1), share)


class _SynchronisedBatchNorm1d(_SynchronisedBatchNorm, nn.BatchNorm1d):
    pass


class _SynchronisedBatchNorm2d(_SynchronisedBatchNorm, nn.BatchNorm2d):
    pass


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _SynchronisedBatchNorm1d,
    nn.BatchNorm2d: _SynchronisedBatchNorm2d,
}
