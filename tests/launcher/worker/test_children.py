"""Processes that a rank starts: they are its children, as those of any program, and are not ranks."""

import json
import uuid
from pathlib import Path

import pytest

from tests.launcher.jobs import lines_of
from tests.launcher.worker.main_programs import START_METHODS, programs

pytestmark = pytest.mark.ranks

PAIR = """\
name: pair
layout: colocated
modules: {language: {dp: 2}}
entry: {script: script.py}
"""
RANKS = ["[language.dp0 r0]", "[language.dp1 r1]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with programs(tmp_path_factory.mktemp("programs")) as found:
        yield found


@pytest.fixture
def pair(job):
    job.config = PAIR
    return job


MULTIPROCESSING = """
import atexit, concurrent.futures, dataclasses, multiprocessing, os, pickle, sys

@dataclasses.dataclass
class Own:
    value: int

def double(own):
    return Own(2 * own.value)

def describe(queue, own):
    main = sys.modules["__main__"]
    queue.put((__name__, main.__name__, main.__file__, __spec__ and __spec__.name, sys.argv, own, type(own) is Own))

def leave(how):
    how()

def main():
    atexit.register(print, "exit function of", os.getpid() == own_id)
    own = multiprocessing.current_process()
    print(multiprocessing.get_start_method(allow_none=True), own.name, own.daemon, multiprocessing.parent_process())
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=describe, args=(queue, Own(3)))
        child.start()
        print(method, child.name, queue.get())
        child.join()
        with context.Pool(2) as pool:
            print(pool.map(double, [Own(1), Own(2)]))
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            print(executor.submit(double, Own(4)).result())
        for how in (sys.exit, os.abort, divide):
            child = context.Process(target=leave, args=(how,))
            child.start()
            child.join()
            print(child.exitcode, flush=True)
    with multiprocessing.Manager() as manager:
        print(manager.dict(a=1))

def divide():
    1 / 0

own_id = os.getpid()
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("start_method", START_METHODS)
@pytest.mark.parametrize("kind", ["script", "module"])
def test_multiprocessing_works_as_under_python(run, kind, start_method):
    run.write("package/__init__.py", "")
    path = run.write("package/train.py", MULTIPROCESSING)
    entry, words = ({"script": path}, [path]) if kind == "script" else ({"module": "package.train"}, ["-m", "package.train"])
    expected = run.by_python(*words, "--x")
    assert expected.code == 0, expected.err
    assert run.as_rank(start_method, entry, "--x") == expected


LOADERS = """
import dataclasses, torch
from torch.utils.data import DataLoader

@dataclasses.dataclass
class Batch:
    values: torch.Tensor

class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, index): return index

def collate(items):
    return Batch(torch.tensor(items))

if __name__ == "__main__":
    for context in ("fork", "spawn", "forkserver"):
        loader = DataLoader(Numbers(), batch_size=4, num_workers=2, collate_fn=collate, multiprocessing_context=context)
        print(context, [batch.values.tolist() for batch in loader])
"""


def test_loaders_of_every_kind_return_batches_of_the_scripts_own_class(run):
    ended = run.as_rank("forkserver", {"script": run.write("loaders.py", LOADERS)})
    batches = "[[0, 1, 2, 3], [4, 5, 6, 7]]"
    assert (ended.code, ended.out.splitlines()) == (0, [f"fork {batches}", f"spawn {batches}", f"forkserver {batches}"])


FORKS = """
import atexit, os, sys, torch, torch.distributed as dist, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads, such as gloo's
own = os.getpid()
total = torch.ones(())
dist.all_reduce(total)
atexit.register(lambda: print("exit function of", "the rank" if os.getpid() == own else "a child", flush=True))

def child(end):
    pid = os.fork()
    if pid == 0:
        end()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fails():
    raise ValueError("the child fails")

print([child(end) for end in (sys.exit, lambda: sys.exit(3), fails, lambda: os._exit(4))], flush=True)
dist.all_reduce(total)
if pid := os.fork():
    print("at the end", os.waitpid(pid, 0)[1], int(total), flush=True)
    dist.barrier()
"""


@pytest.mark.parametrize("start_method", START_METHODS)
def test_forks_of_a_rank_end_by_themselves_and_the_rank_goes_on(pair, start_method):
    done = pair.run(FORKS, f"runtime.start_method={start_method}")
    assert done.returncode == 0, done.stderr
    ends = ["exit function of a child"] * 3 + ["[0, 3, 1, 4]"] + ["exit function of a child", "at the end 0 4"]
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [[*ends, "exit function of the rank"]] * 2
    assert [line.split()[-1] for line in lines_of(done.stderr, RANKS[0])][-1:] == ["fails"]
    run_dir = pair.folder / "runs" / "pair"
    assert not list(run_dir.glob("logs/*/*.error.json"))
    assert json.loads((run_dir / "report.json").read_text())["outcome"] == "done"


GROUP = """
import os, signal, subprocess, time
from pathlib import Path
rank = os.environ["RANK"]
def wait_for(name):
    while not Path(name).exists(): time.sleep(0.01)
Path(f"up{rank}").touch()
wait_for("up0"), wait_for("up1")
if rank == "0":
    helper = subprocess.Popen(["sleep", "1000"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    print("the helper ended by", -helper.wait())
    Path("ended").touch()
else:
    wait_for("ended")
    print("went on")
"""


@pytest.mark.parametrize("start_method", START_METHODS)
def test_a_signal_to_a_ranks_process_group_reaches_its_helpers_only(pair, start_method):
    done = pair.run(GROUP, f"runtime={{start_method: {start_method}, join: script}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["the helper ended by 15"], ["went on"]]


MEMORY = """
import os, signal, sys, time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
memory = SharedMemory(name=f"{sys.argv[1]}{rank}", create=True, size=4096)
Path(f"ready{attempt}{rank}").touch()
while not all(Path(f"ready{attempt}{other}").exists() for other in (0, 1)): time.sleep(0.01)
if attempt == "0":
    if rank == "1": os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()
print("made anew")
memory.close()
memory.unlink()
"""


@pytest.mark.parametrize("start_method", START_METHODS)
def test_named_memory_of_killed_ranks_is_gone_when_they_restart(pair, start_method):
    name = f"mimo-test-{uuid.uuid4().hex}-"
    done = pair.run(MEMORY, f"runtime={{start_method: {start_method}, join: script, max_restarts: 1}}", "--", name)
    assert done.returncode == 0, done.stderr
    assert [lines_of(done.stdout, prefix) for prefix in RANKS] == [["made anew"]] * 2
    assert not list(Path("/dev/shm").glob(f"{name}*"))
