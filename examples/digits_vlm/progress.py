"""What the logging rank prints and records: a line now and then, and every step's numbers in a file."""

import json
import time
from pathlib import Path


class Progress:
    """Prints, and keeps `losses.jsonl` in the run folder. A new run starts the file anew, a resumed one continues it."""

    def __init__(self, run_folder: Path, *, first_step: int, steps: int) -> None:
        self._path = run_folder / "losses.jsonl"
        self._steps = steps
        self._samples = 0
        self._since = self._until = time.perf_counter()
        kept = self._records_before(first_step) if first_step > 1 else []
        run_folder.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".tmp")
        beside.write_text("".join(f"{line}\n" for line in kept))
        beside.replace(self._path)

    def step(self, step: int, loss: float, samples: int) -> None:
        """Record a training step."""
        self._samples += samples
        self._until = time.perf_counter()
        self._append({"step": step, "loss": loss})

    def report(self, step: int, loss: float, accuracy: float) -> None:
        """Record an evaluation and print a line. The speed is that of training since the last line."""
        self._append({"step": step, "accuracy": accuracy})
        speed = self._samples / (self._until - self._since)
        place = f"step {step:{len(str(self._steps))}}/{self._steps}"
        print(f"{place}   loss {loss:.4f}   held-out accuracy {accuracy:6.1%}   {speed:6.0f} samples/s", flush=True)
        self._samples, self._since = 0, time.perf_counter()

    def _append(self, record: dict[str, float]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _records_before(self, step: int) -> list[str]:
        # What is behind the last line's end is of a run that was killed while it wrote.
        lines = self._path.read_text().split("\n")[:-1] if self._path.exists() else []
        return [line for line in lines if json.loads(line)["step"] < step]
