"""Our bridges behind the interface of Megatron-Core's `MultiModulePipelineCommunicator`.

Source: megatron/core/pipeline_parallel/multimodule_communicator.py and schedules.py of Megatron-Core 0.19 (2026).
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from mimo_role.bridge.frames import Position
from mimo_role.bridge.transfer import Transfer, start_together
from mimo_role.errors import BridgeError, ScheduleError
from mimo_role.megatron.crossings import Crossing
from mimo_role.megatron.micro_batch_count import MicroBatchCount
from mimo_role.megatron.rank_crossings import RankCrossings
from mimo_role.megatron.step_records import StepRecords
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind
from mimo_role.topology.stage_links import last_stage
from mimo_role.topology.topology import Topology

Gradients = dict[str, torch.Tensor | None]
"""By module; `None` for a frozen module."""


class PipelineCommunicator:
    """Moves activations and gradients of Megatron-Core's schedules over bridges; made by `RoleContext`.

    `forward_backward_pipelining_without_interleaving(p2p_communicator=...)` calls its methods. Tensors come and go in
    dictionaries: what a rank receives by the module that sends it, what it sends by the module that it runs. What else the
    schedule passes, shapes and whether a stage is the first or the last, is not used: senders know the sizes, and send them to
    the receivers' hosts.

    Between stages of a module, too, tensors cross bridges: Megatron-Core's `P2PCommunicator` would synchronize with the device
    for each shape.
    """

    def __init__(
        self, topology: Topology, config: Any, crossings: RankCrossings, heartbeat: Heartbeat, recorder: Recorder
    ) -> None:
        """
        Args:
            topology: the world.
            config: Megatron-Core's `ModelParallelConfig`.
            crossings: this rank's ends of bridges.
            heartbeat: reports its progress.
            recorder: records its waits and sends, and what the schedule computes between them.
        """
        self.config = config
        self._topology = topology
        self._stages = crossings.stages
        self._incoming = crossings.incoming
        self._outgoing = crossings.outgoing
        self.total_stages = crossings.total_stages
        """The stages on the longest way through the modules."""
        self.current_stage = crossings.current_stage
        """This rank's place on the longest way to it, from 0."""
        self._count = MicroBatchCount(heartbeat, self.total_stages - self.current_stage)
        stage = "+".join(f"{at.module}.{at.stage}" for at in crossings.stages)
        self._records = StepRecords(recorder, heartbeat, stage)

    @property
    def is_pp_first_stage(self) -> bool:
        """Whether this rank runs the first stage of a module that takes no other's output."""
        return any(at.stage == 0 and not self._topology.after[at.module] for at in self._stages)

    @property
    def is_pp_last_stage(self) -> bool:
        """Whether this rank runs the last stage of a module that feeds no other."""
        ends = self._topology.module_graph.ends
        return any(at.module in ends and at == last_stage(self._topology, at.module) for at in self._stages)

    def recv_forward(self, *_: object, **__: object) -> dict[str, torch.Tensor]:
        """Receive the activations of the next micro-batch.

        Raises:
            BridgeError: they did not come, or something else came.
            ScheduleError: a forward-only schedule outside of `torch.no_grad()`.
        """
        self._records.begin_forward(self._count)
        return self._receive_forward()

    def send_forward(self, output_dict: Any, *_: object, **__: object) -> None:
        """Send a micro-batch's activations, without waiting until they have been received.

        Raises:
            BridgeError: a tensor is missing or does not fit, or a peer has failed.
            ScheduleError: a frozen module trains.
        """
        self._records.end_computing()
        position = self._count.sent()
        outputs = {name: self._output_of(name, output_dict) for name in self._outgoing}
        sent = [
            (crossing, crossing.send(outputs[name], position))
            for name, crossings in self._outgoing.items()
            for crossing in crossings
        ]
        self._send(Kind.SEND_ACTIVATIONS, sent, position)

    def recv_backward(self, *_: object, **__: object) -> Gradients:
        """Receive the gradients of the earliest micro-batch that has none yet.

        Raises:
            BridgeError: they did not come, or something else came.
        """
        position = self._count.gradient_received()
        receiving = [
            (name, crossing, crossing.receive_back(position))
            for name, crossings in self._outgoing.items()
            for crossing in crossings
            if crossing.has_gradients
        ]
        start_together([each.transfer for _, _, each in receiving])
        found: Gradients = dict.fromkeys(self._outgoing)
        for name, crossing, each in receiving:
            with self._records.waiting(Kind.WAIT_GRADIENTS, crossing.link, position, each.transfer):
                gradient, others = crossing.received_back(each), found[name]
            self._records.received(crossing.link, position, each.transfer)
            found[name] = gradient if others is None else others + gradient
        self._records.begin_computing(Kind.BACKWARD, position)
        return found

    def send_backward(self, grad_dict: Mapping[str, Any], *_: object, **__: object) -> None:
        """Send the gradients of the earliest micro-batch of which none have been sent; zeros for `None`.

        Raises:
            BridgeError: a tensor does not fit, or a peer has failed.
        """
        self._records.end_computing()
        position = self._count.gradient_sent()
        sent = [
            (crossing, crossing.send_back(_single(grad_dict.get(name)), position))
            for name, crossing in self._incoming.items()
            if crossing.has_gradients
        ]
        self._send(Kind.SEND_GRADIENTS, sent, position)

    def send_forward_recv_backward(self, output_dict: Any, *_: object, **__: object) -> Gradients:
        """`send_forward`, then `recv_backward`."""
        self.send_forward(output_dict)
        return self.recv_backward()

    def send_backward_recv_forward(self, grad_dict: Mapping[str, Any], *_: object, **__: object) -> dict[str, torch.Tensor]:
        """`send_backward`, then `recv_forward` of the same step."""
        self.send_backward(grad_dict)
        return self._receive_forward()

    def _receive_forward(self) -> dict[str, torch.Tensor]:
        position = self._count.received()
        receiving = {}
        for name, crossing in self._incoming.items():
            with self._records.waiting(Kind.WAIT_ACTIVATIONS, crossing.link, position):  # for their sizes
                receiving[name] = crossing.receive(position)
        start_together([each.transfer for each in receiving.values()])
        found = {}
        for name, each in receiving.items():
            link = self._incoming[name].link
            with self._records.waiting(Kind.WAIT_ACTIVATIONS, link, position, each.transfer):
                found[name] = self._incoming[name].received(each)
            self._records.received(link, position, each.transfer)
        self._records.begin_computing(Kind.FORWARD, position)
        return found

    def _send(self, kind: Kind, started: Sequence[tuple[Crossing, Transfer]], position: Position) -> None:
        with self._records.sending(kind, [(crossing.link, transfer) for crossing, transfer in started], position):
            start_together([transfer for _, transfer in started])
        for crossing, transfer in started:
            if (earlier := crossing.sent(transfer)) is not None:
                with self._records.waiting_for_receivers():
                    earlier.wait()

    def _output_of(self, module: str, outputs: Any) -> torch.Tensor:
        """What a module's stage sends. Of a frozen module it is taken out of the graph, also for the schedule."""
        output = _single(outputs.get(module)) if isinstance(outputs, MutableMapping) else None
        if not isinstance(output, torch.Tensor):
            raise BridgeError(
                f"the model returned no output of {module!r} to send; return {{{module!r}: tensor}}, for a micro-batch without "
                "its tokens an empty tensor"
            )
        if all(crossing.has_gradients for crossing in self._outgoing[module]) or not output.requires_grad:
            return output
        is_input = any(at.module == module and at.stage == 0 for at in self._stages) and not self._topology.after[module]
        if is_input and output.numel():
            raise ScheduleError(
                f"frozen: {module!r} has parameters to train, which would get no gradients; remove it from frozen=, or set "
                "requires_grad_(False) on what does not train"
            )
        outputs[module] = output.detach()
        return output


def _single(tensor: Any) -> Any:
    """Megatron-Core's interfaces also take a tensor as a list of one."""
    return tensor[0] if isinstance(tensor, list) and len(tensor) == 1 else tensor
