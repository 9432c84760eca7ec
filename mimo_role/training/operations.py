"""What a context has for training: sums, norms and checks of gradients, losses, and random numbers."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from mimo_role.errors import AxisError
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import RankRole
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology
from mimo_role.training.gradient_norm import GradientClipper
from mimo_role.training.gradient_sums import GradientSummer
from mimo_role.training.losses import mean_loss, token_count
from mimo_role.training.owned_tokens import owned_tokens
from mimo_role.training.random_streams import RandomStreams
from mimo_role.training.replica_check import ReplicaCheck
from mimo_role.training.replicas import LANES
from mimo_role.training.seeding import DIFFERENT_OVER


class TrainingOperations:
    """A base of `RoleContext`, over its groups."""

    topology: Topology
    rank: int
    device: torch.device
    role: RankRole
    recorder: Recorder
    group: Callable[..., dist.ProcessGroup]
    coords: Callable[[str], dict[str, int]]
    _clipper: GradientClipper
    _summer: GradientSummer
    _replicas: ReplicaCheck
    _grid: Callable[[str], RankGrid]
    _own_grid: Callable[[str], RankGrid]

    def sum_gradients(self, modules: Mapping[str, nn.Module] | nn.ModuleDict) -> None:
        """Add up the gradients of each module over its dp and cp ranks, in place.

        Collective over the lanes of each module of this rank's role, and over the first and last stages of a module where
        `group(module, "embd")` exists; without gradients, or for a module that is left out, call it too. Sums are not divided
        by anything: divide the loss by the count of the whole batch (docs/guides/numbers.md).

        What a parameter's device mesh covers is left to it: of an FSDP2 module over `dp`, gradients are summed over `cp` only.
        Experts (`allreduce = False`) are summed over `expt_dp`; tied embeddings (`shared_embedding = True`) over the first and
        last stages too. Partial DTensor gradients are reduced first. A parameter without a gradient counts as zeros, and has
        one afterwards if any lane has; if none has, it stays `None`. Frozen parameters are left out.

        Args:
            modules: the modules of this rank's role, or its parts of them, by name.

        Raises:
            AxisError: there is no such module, this rank does not run it, or a group is missing.
            GradientError: DDP or another wrapper that reduces by itself; a sparse gradient; ranks of a group have different
                parameters to sum (names, shapes, dtypes, placement), on all of them; or another rank of a group has failed.
        """
        with self.recorder.span(Kind.SPAN, "sum_gradients"):
            self._summer.sum(modules)

    def check_replicas(self, modules: Mapping[str, nn.Module] | nn.ModuleDict, *, gradients: bool = True) -> None:
        """Check that ranks which have copies of a parameter have the same bits, over tp, cp, dp and tied embeddings.

        Collective over the world; a few small all-reduces, and one pass over the tensors. Gradients are compared as they are:
        call it after `sum_gradients`, or with `gradients=False`. Shards of DTensors are compared with their copies. NaNs are
        equal if their bits are.

        Args:
            modules: the modules of this rank's role, or its parts of them, by name.
            gradients: whether gradients are compared too; one rank without and one with a gradient differ.

        Raises:
            ReplicaError: on all ranks: which parameters or gradients differ, along which axis, and between which ranks; or the
                check failed on another rank.
            AxisError: there is no such module, or this rank does not run it.
            GradientError: a sparse gradient, or a device mesh that is no row of the module's grid.
        """
        self._replicas.check(modules, gradients=gradients)

    def clip_grad_norm_(
        self,
        modules: Mapping[str, nn.Module] | nn.ModuleDict,
        max_norm: float,
        norm_type: float = 2.0,
        *,
        error_if_nonfinite: bool = False,
    ) -> torch.Tensor:
        """Scale all gradients so that their norm over all modules and ranks is at most `max_norm`.

        Collective over the world, after gradients have been summed over their module's lanes. Each parameter is counted once,
        whichever ranks hold replicas or parts of it (docs/guides/numbers.md). If any gradient is not finite, all gradients on
        all ranks are set to `None`, so that no optimizer updates a parameter, and a warning is logged.

        Args:
            modules: the modules of this rank's role, or its parts of them, by name. Partial DTensor gradients are reduced.
            max_norm: as in `torch.nn.utils.clip_grad_norm_`; `math.inf` only computes the norm.
            norm_type: the p of the p-norm, above 0; `math.inf` for the largest element.
            error_if_nonfinite: raise instead, on all ranks.

        Returns:
            The norm before the scaling, float64, the same bits on all ranks; infinite if any gradient is not finite.

        Raises:
            AxisError: there is no such module, or this rank does not run it.
            GradientError: an invalid argument or gradient, on this rank or on another one.
        """
        with self.recorder.span(Kind.SPAN, "clip_grad_norm_"):
            return self._clipper.clip(modules, max_norm, norm_type, error_if_nonfinite=error_if_nonfinite)

    def token_count(self, tokens: int | torch.Tensor, module: str | None = None) -> torch.Tensor:
        """The number of tokens over all lanes and context-parallel ranks of the module that computes the loss, int64.

        Collective over this rank's dp and cp row of the module. The ranks that compute the loss call it before that.

        Args:
            tokens: the number on this rank in the whole step, over all micro-batches.
            module: the language model, or a module that follows it; needed if several compute a loss.

        Raises:
            AxisError: this rank does not run the module, or it does not compute a loss.
        """
        return token_count(tokens, self.group(self._module_with_loss(module), *LANES), self.device)

    def mean_loss(
        self, losses: Sequence[torch.Tensor], tokens: int | torch.Tensor | None = None, module: str | None = None
    ) -> torch.Tensor:
        """The loss of the whole batch, for logging. Collective over the world.

        Args:
            losses: of this rank's micro-batches, as `Schedule1F1B.step` returns them; used on the last stage of the module that
                computes the loss only. With `tokens` they are sums over tokens; without, they have been divided by
                `token_count`.
            tokens: the number over which this rank's losses are summed. All ranks of that stage pass it, or none does.
            module: needed if several compute a loss; then `losses` are `schedule.losses.get(module, [])`.

        Returns:
            The mean over the tokens of all lanes and context-parallel ranks, float64, the same on all ranks of the world; NaN
            if there are no tokens.

        Raises:
            AxisError: there is no such module, or it does not compute a loss.
        """
        name = self._module_with_loss(module)
        is_counted = self.role.is_last_stage(name) and self.coords(name)["tp"] == 0
        return mean_loss(losses, tokens, self.device, is_counted=is_counted)

    def owned_tokens(self, module: str, length: int, split: TokenSplit | None = None) -> torch.Tensor:
        """The tokens of a sample that this rank owns: an index for labels, masks and positions.

        Args:
            module: one that this rank runs.
            length: tokens of the sample, or of the sequence into which several are packed.
            split: how its ranks divide the tokens, the same as its bridge's; default: `TokenSplit()`.

        Returns:
            int64 `[tokens of this rank]` on `device`, ascending, the order in which bridges deliver them:
            `labels_BS[:, owned]`; it is itself the tokens' positions.

        Raises:
            AxisError: there is no such module, or this rank does not run it.
            BridgeError: `length` is not a number of tokens.
        """
        self._own_grid(module)
        return owned_tokens(self.topology, module, self.rank, length, split or TokenSplit()).to(self.device)

    def seed_everything(self, seed: int, *, different_over: Collection[str] = DIFFERENT_OVER) -> RandomStreams:
        """Seed `random`, NumPy and torch, on the CPU and on GPUs, without communication.

        Random numbers differ over modules and over the axes that are named, and are equal over the others. A rank with several
        modules draws for one at a time, `with streams.fork("vision")`; see `RandomStreams` and docs/guides/numbers.md.

        Args:
            seed: any whole number, the same on all ranks.
            different_over: with `("dp", "pp")` each lane and stage has different dropout masks; with `("pp",)` the lanes of a
                module also start with the same weights.

        Raises:
            AxisError: a module of this rank has no such axis.
        """
        return RandomStreams(seed, self.topology, self.rank, self.device, different_over)

    def _module_with_loss(self, module: str | None) -> str:
        ends = self.topology.module_graph.ends
        if module is None and len(ends) > 1:
            raise AxisError(f"{', '.join(ends)} compute losses; name one of them with module=")
        if module is not None and module not in ends:
            self._grid(module)
            raise AxisError(f"{module!r} computes no loss, since another module takes its output; {', '.join(ends)} does")
        return ends[0] if module is None else module
