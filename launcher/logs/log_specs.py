"""torchelastic's log interface over the run directory."""

from functools import partial

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from launcher.console import Console
from launcher.formatting import prefix_of
from launcher.logs.followed import Followed
from launcher.logs.follower import Follower
from launcher.logs.states import StatesAsLines, StatesInPlace
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout


class RunDirLogsSpecs(LogsSpecs):
    """Redirects every rank's output to the run directory, and prints it from there."""

    def __init__(self, plan: LaunchPlan, run_dir: RunDirLayout, console: Console) -> None:
        super().__init__(str(run_dir.logs_dir))
        self._run_dir = run_dir
        prefix = partial(prefix_of, plan.topology)
        states = StatesInPlace(console.bottom, prefix) if console.bottom is not None else StatesAsLines()
        self._follower = Follower(prefix, console.fold_s, states)
        self._sinks = {"stdout": console.out, "stderr": console.err}

    @property
    def root_log_dir(self) -> str:
        return str(self._run_dir.logs_dir)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """torchelastic's hook: the files of each local rank, for the attempt that the environments belong to."""
        files: dict[str, dict[int, str]] = {"stdout": {}, "stderr": {}, "error": {}}
        followed = []
        for local_rank, env in envs.items():
            rank, attempt = int(env["RANK"]), int(env["TORCHELASTIC_RESTART_COUNT"])
            error_file = self._run_dir.error_file(attempt, rank)
            error_file.parent.mkdir(parents=True, exist_ok=True)
            for stream, sink in self._sinks.items():
                path = self._run_dir.log_file(attempt, rank, stream)
                files[stream][local_rank] = str(path)
                followed.append(Followed(path, rank, sink, error_file if stream == "stderr" else None))
            env["TORCHELASTIC_ERROR_FILE"] = files["error"][local_rank] = str(error_file)
        self._follower.follow(followed)
        return LogsDest(stdouts=files["stdout"], stderrs=files["stderr"], error_files=files["error"])

    def catch_up(self) -> None:
        """Print what has been written by now, before a message about it."""
        self._follower.catch_up()

    def stop(self) -> None:
        """Print all that has been written by now, and stop following."""
        self._follower.stop()
