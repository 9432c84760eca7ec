"""Encoders on the ranks of a language model with pipeline stages: they run before Megatron-Core's schedule, and after it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.bridge import Bridge
from mimo_role.errors import BridgeError, ScheduleError
from mimo_role.megatron.module_bridges import ModuleBridges
from mimo_role.megatron.output_forms import ReceivingForm, SentForm
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout
from mimo_role.topology.topology import Topology

Outputs = Mapping[str, torch.Tensor]
"""By encoder, its output for one micro-batch."""


class _Crossed(NamedTuple):
    """What one encoder's output of one micro-batch has become."""

    result: torch.Tensor
    """Of the bridge: its backward sends gradients, waits for them, and continues into the encoder."""
    received: torch.Tensor | None
    """The leaf that the language model's first stage takes; `None` on other stages."""
    spec: ActivationSpec


class _End(NamedTuple):
    """This rank's end of an encoder's bridge."""

    bridge: Bridge
    sent_form: SentForm
    received_form: ReceivingForm | None


class EncodersFirst:
    """Moves what encoders compute to the first stage of the language model; made by `RoleContext`.

    Megatron-Core's schedule runs each rank once for a micro-batch, so where a rank runs an encoder and a later stage, its
    encoder would wait for a stage that waits for the encoder. So encoders run for all micro-batches of a step first, and their
    backwards last; between lies the schedule of the language model by itself. The encoders' activations of a whole step are
    kept that long. The schedule's `finalize_model_grads_func` comes before the encoders' backwards, so it is for the language
    model only; the encoders' gradients are reduced and scaled after `backward`.
    """

    def __init__(self, topology: Topology, bridges: ModuleBridges, frozen: Sequence[str], heartbeat: Heartbeat) -> None:
        """
        Args:
            topology: the world.
            bridges: this rank's.
            frozen: encoders to which no gradients come back.
            heartbeat: reports this rank's progress.

        Raises:
            ScheduleError: the layout is not colocated, or an encoder has several stages or does not feed the language model
                by itself.
            BridgeError: a bridge was made with other splits.
        """
        check_encoders_first(topology)
        self._frozen = frozen
        self._heartbeat = heartbeat
        self._ends = {}
        for name in topology.modality_module_names:
            bridge = bridges.between(name, MIMO_LANGUAGE_MODULE_KEY)
            received_form = bridges.received_form(bridge) if bridge.is_receiver else None
            self._ends[name] = _End(bridge, bridges.sent_form(bridge), received_form)
        self._crossed: list[dict[str, _Crossed]] = []

    def forward(self, outputs: Sequence[Outputs]) -> list[dict[str, torch.Tensor]]:
        """Send the encoders' outputs of all micro-batches of a step, and receive what this rank's stage takes.

        Args:
            outputs: for each micro-batch this rank's, by encoder, as `RoleContext.megatron_pipeline_communicator` takes them.

        Returns:
            For each micro-batch, by encoder, what the language model's first stage takes: leaves that require gradients. Empty
            on other stages.

        Raises:
            BridgeError: a tensor is missing or does not fit, or a peer has failed.
            ScheduleError: the last step has had no `backward`.
        """
        if self._crossed:
            raise ScheduleError("the last step has had no backward(); call it after the schedule, or evaluate under no_grad()")
        self._heartbeat.scheduled_step()
        crossed = [self._cross(of_micro, number) for number, of_micro in enumerate(outputs)]
        if torch.is_grad_enabled():
            self._crossed = crossed
        return [{name: each.received for name, each in found.items() if each.received is not None} for found in crossed]

    def backward(self) -> None:
        """Send back the gradients that the schedule has left in what `forward` returned, and run the encoders' backwards.

        Raises:
            BridgeError: a gradient does not fit, or a peer has failed.
            ScheduleError: there has been no `forward`.
        """
        if not self._crossed:
            raise ScheduleError("backward() without a forward() before it in this step")
        crossed, self._crossed = self._crossed, []
        for of_micro in crossed:
            self._heartbeat.beat()
            for name, each in of_micro.items():
                if name not in self._frozen:
                    torch.autograd.backward([each.result], [self._gradient(name, each)])

    def _cross(self, outputs: Outputs, number: int) -> dict[str, _Crossed]:
        self._heartbeat.beat()
        return {name: self._cross_one(name, end, outputs.get(name), number) for name, end in self._ends.items()}

    def _cross_one(self, name: str, end: _End, output: torch.Tensor | None, number: int) -> _Crossed:
        if not isinstance(output, torch.Tensor):
            raise BridgeError(f"micro-batch {number} has no output of {name!r}; without its tokens, pass an empty tensor")
        own = end.sent_form.spec_of(output)
        samples = None if end.received_form is None else end.received_form.samples
        spec = end.bridge.exchange_spec(own, samples=samples)
        result = end.bridge(end.sent_form.packed(output, own), spec=spec, requires_grad=name not in self._frozen)
        if end.received_form is None:
            return _Crossed(result, None, spec)
        received = end.received_form.unpacked(result.detach(), spec)
        return _Crossed(result, received.clone().requires_grad_(torch.is_grad_enabled()), spec)

    def _gradient(self, name: str, crossed: _Crossed) -> torch.Tensor | None:
        """The gradient of a bridge's result: `None` where this rank only sends."""
        form = self._ends[name].received_form
        if form is None or crossed.received is None:
            return None
        gradient = crossed.received.grad
        return form.packed(torch.zeros_like(crossed.received) if gradient is None else gradient, crossed.spec)


def check_encoders_first(topology: Topology) -> None:
    """Check that every module but the language model feeds it directly, in one stage, on the same ranks.

    Raises:
        ScheduleError: one does not.
    """
    if topology.layout is not ModuleLayout.COLOCATED:
        raise ScheduleError("megatron_encoders_first() is for colocated layouts; use megatron_pipeline_communicator()")
    for name in topology.modality_module_names:
        if topology.module_graph.feeds[name] != (MIMO_LANGUAGE_MODULE_KEY,):
            raise ScheduleError(f"{name!r} does not feed the language model by itself; use Schedule1F1B")
        if topology.grids[name].axis_size("pp") > 1:
            raise ScheduleError(f"modules.{name}.pp: encoders that run before the schedule have one stage; use Schedule1F1B")
