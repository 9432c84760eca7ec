"""A model of torch's flight recorder for NCCL."""


class NcclRecorder:
    """The recorder of one process, as ProcessGroupNCCL fills it, for one group."""

    def __init__(self, name, description):
        self._group = [name, description]
        self._entries = []
        self._collectives = self._messages = 0

    def collective(self, name, *, is_complete):
        self._collectives += 1
        self._record(name, is_p2p=False, is_complete=is_complete)

    def message(self, name, *, is_complete):
        self._messages += 1
        self._record(name, is_p2p=True, is_complete=is_complete)

    def batch_of_messages(self, *names, is_complete):
        """Its operations have no events; `coalesced` keeps the number of the last collective."""
        self._messages += 1
        for name in names:
            self._record(name, is_p2p=True, is_complete=False)
        self._record("coalesced", is_p2p=False, is_complete=is_complete)

    def batch_of_collectives(self, *names, is_complete):
        self._collectives += 1
        for name in names:
            self._record(name, is_p2p=False, is_complete=False)
        self._record("coalesced", is_p2p=False, is_complete=is_complete)

    def dump(self, forgotten=0):
        """What it has without its first entries."""
        return {"entries": self._entries[forgotten:]}

    def _record(self, name, *, is_p2p, is_complete):
        self._entries.append(
            {
                "record_id": len(self._entries),
                "process_group": self._group,
                "profiling_name": f"nccl:{name}",
                "is_p2p": is_p2p,
                "collective_seq_id": self._collectives,
                "p2p_seq_id": self._messages,
                "retired": is_complete,
                "state": "completed" if is_complete else "scheduled",
                "timeout_ms": 600000,
            }
        )
