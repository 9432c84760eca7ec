"""Where the ranks' output goes: torchelastic's log interface over the run folder."""

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs

from launcher.console import Console
from launcher.formatting import prefix_of
from launcher.logs.follower import Followed, Follower
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir


class RunDirLogsSpecs(LogsSpecs):
    """Sends every rank's output to the run folder, and has it followed from there."""

    def __init__(self, plan: LaunchPlan, run_dir: RunDir, streams: Console) -> None:
        super().__init__(str(run_dir.path / "logs"))
        self._run_dir = run_dir
        self._follower = Follower(lambda ranks: prefix_of(plan.topology, ranks), streams.fold_s)
        self._sinks = {"stdout": streams.out, "stderr": streams.err}

    @property
    def root_log_dir(self) -> str:
        return str(self._run_dir.path / "logs")

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """torchelastic's hook: the files of each local rank, for the attempt that the environments are of."""
        files: dict[str, dict[int, str]] = {"stdout": {}, "stderr": {}, "error": {}}
        followed = []
        for local_rank, env in envs.items():
            rank, attempt = int(env["RANK"]), int(env["TORCHELASTIC_RESTART_COUNT"])
            error_file = self._run_dir.error_file(attempt, rank)
            for stream, sink in self._sinks.items():
                path = self._run_dir.log_file(attempt, rank, stream)
                path.parent.mkdir(parents=True, exist_ok=True)
                files[stream][local_rank] = str(path)
                followed.append(Followed(path, rank, sink, error_file if stream == "stderr" else None))
            env["TORCHELASTIC_ERROR_FILE"] = files["error"][local_rank] = str(error_file)
        self._follower.follow(followed)
        return LogsDest(stdouts=files["stdout"], stderrs=files["stderr"], error_files=files["error"])

    def catch_up(self) -> None:
        """Pass on what has been written by now, before something is said of it."""
        self._follower.catch_up()

    def stop(self) -> None:
        """Pass on what has been written by now, and no more."""
        self._follower.stop()
