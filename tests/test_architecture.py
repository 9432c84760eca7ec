"""Who may import whom, and what must not load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "launcher.__main__": {"launcher.cli"},
    "launcher.ending": set(),
    "launcher.cli": {
        "launcher.config",
        "launcher.ending",
        "launcher.errors",
        "launcher.here",
        "launcher.local",
        "launcher.plan",
        "launcher.planfile",
        "launcher.reading",
        "launcher.render",
        "launcher.schedulers.jobs",
        "launcher.schedulers.logs",
        "launcher.schedulers.options",
        "launcher.schedulers.slurm",
        "launcher.schedulers.slurm_jobs",
        "launcher.schedulers.submit",
        "launcher.schema",
        "launcher.streams",
    },
    "launcher.planfile": {"launcher.config", "launcher.errors", "launcher.plan", "launcher.source"},
    "launcher.schedulers.options": {"launcher.errors", "launcher.source"},
    "launcher.schedulers.sbatch": {"launcher.errors", "launcher.schedulers.options"},
    "launcher.schedulers.snapshot": {"launcher.errors"},
    "launcher.schedulers.submission": {"launcher.errors", "launcher.plan", "launcher.schedulers.snapshot"},
    "launcher.schedulers.slurm_jobs": {"launcher.errors"},
    "launcher.schedulers.logs": {"launcher.errors", "launcher.plan"},
    "launcher.schedulers.appdef": {
        "launcher.errors",
        "launcher.here",
        "launcher.plan",
        "launcher.planfile",
        "launcher.schema",
    },
    "launcher.schedulers.slurm": {
        "launcher.errors",
        "launcher.plan",
        "launcher.schedulers.jobs",
        "launcher.schedulers.logs",
        "launcher.schedulers.sbatch",
        "launcher.schedulers.slurm_jobs",
        "launcher.schedulers.submission",
    },
    "launcher.schedulers.submit": {
        "launcher.errors",
        "launcher.plan",
        "launcher.render",
        "launcher.schedulers.appdef",
        "launcher.schedulers.sbatch",
        "launcher.schedulers.slurm",
        "launcher.schedulers.submission",
        "launcher.schema",
    },
    "launcher.schedulers.jobs": {
        "launcher.errors",
        "launcher.plan",
        "launcher.schedulers.logs",
        "launcher.schedulers.run_state",
        "launcher.schedulers.slurm_jobs",
        "launcher.schedulers.submission",
    },
    "launcher.schedulers.run_state": set(),
    "launcher.schedulers.component": {"launcher.config", "launcher.plan", "launcher.schedulers.appdef"},
    "launcher.here": {"launcher.errors", "launcher.placement", "launcher.plan"},
    "launcher.members": set(),
    "launcher.pulses": set(),
    "launcher.reach": {"launcher.errors", "launcher.here"},
    "launcher.control": {
        "launcher.board",
        "launcher.errors",
        "launcher.here",
        "launcher.members",
        "launcher.pulses",
        "launcher.reach",
        "launcher.streams",
    },
    "launcher.config": {"launcher.reading", "launcher.schema", "launcher.source"},
    "launcher.reading": {"launcher.errors", "launcher.schema", "launcher.source"},
    "launcher.source": set(),
    "launcher.errors": set(),
    "launcher.schema": set(),
    "launcher.machine": set(),
    "launcher.placement": {"launcher.errors", "launcher.schema"},
    "launcher.review": {"launcher.placement", "launcher.schema"},
    "launcher.plan": {
        "launcher.errors",
        "launcher.machine",
        "launcher.placement",
        "launcher.reading",
        "launcher.review",
        "launcher.schema",
    },
    "launcher.render": {"launcher.placement", "launcher.plan"},
    "launcher.rundir": {"launcher.errors", "launcher.placement"},
    "launcher.warden": set(),
    "launcher.follow": {"launcher.failures.crash", "launcher.fold"},
    "launcher.forkserver": {"launcher.machine"},
    "launcher.preload": {"launcher.worker"},
    "launcher.worker": {
        "launcher.ending",
        "launcher.errors",
        "launcher.failures.crash",
        "launcher.fresh_process",
        "launcher.plan",
        "launcher.preflight.facts",
        "launcher.schema",
    },
    "launcher.rendezvous": {"launcher.control"},
    "launcher.ranklogs": {"launcher.follow", "launcher.plan", "launcher.roles", "launcher.rundir", "launcher.streams"},
    "launcher.torchelastic": set(),
    "launcher.agent": {
        "launcher.control",
        "launcher.failures.ends",
        "launcher.failures.problem",
        "launcher.failures.records",
        "launcher.failures.report",
        "launcher.failures.retry",
        "launcher.forkserver",
        "launcher.hangs.standstill",
        "launcher.hangs.watch",
        "launcher.here",
        "launcher.members",
        "launcher.nodedir",
        "launcher.placement",
        "launcher.plan",
        "launcher.preflight.arrivals",
        "launcher.ranklogs",
        "launcher.rendezvous",
        "launcher.rundir",
        "launcher.streams",
        "launcher.torchelastic",
        "launcher.warden",
        "launcher.worker",
    },
    "launcher.local": {
        "launcher.control",
        "launcher.errors",
        "launcher.failures.problem",
        "launcher.forkserver",
        "launcher.here",
        "launcher.machine",
        "launcher.nodedir",
        "launcher.plan",
        "launcher.rundir",
        "launcher.running",
        "launcher.schema",
        "launcher.streams",
        "launcher.warden",
    },
    "launcher.exits": set(),
    "launcher.fold": set(),
    "launcher.fresh_process": set(),
    "launcher.nodedir": {"launcher.errors"},
    "launcher.roles": set(),
    "launcher.running": {
        "launcher.agent",
        "launcher.control",
        "launcher.errors",
        "launcher.failures.problem",
        "launcher.failures.records",
        "launcher.failures.report",
        "launcher.forkserver",
        "launcher.here",
        "launcher.machine",
        "launcher.members",
        "launcher.plan",
        "launcher.ranklogs",
        "launcher.rundir",
        "launcher.schema",
        "launcher.streams",
        "launcher.torchelastic",
    },
    "launcher.board": set(),
    "launcher.streams": set(),
    "launcher.failures.crash": set(),
    "launcher.failures.hints": {"launcher.failures.records"},
    "launcher.failures.problem": set(),
    "launcher.failures.records": {"launcher.failures.crash", "launcher.failures.tails"},
    "launcher.failures.report": {"launcher.failures.hints", "launcher.failures.records", "launcher.roles"},
    "launcher.failures.retry": {"launcher.failures.records"},
    "launcher.failures.tails": {"launcher.failures.crash"},
    "launcher.failures.ends": {"launcher.exits", "launcher.failures.records", "launcher.hangs.watch", "launcher.rundir"},
    "launcher.hangs.report": {"launcher.hangs.sightings", "launcher.plan", "launcher.roles"},
    "launcher.hangs.sightings": {"launcher.failures.crash", "launcher.failures.tails", "launcher.machine", "launcher.warden"},
    "launcher.hangs.standstill": {
        "launcher.control",
        "launcher.failures.problem",
        "launcher.hangs.report",
        "launcher.hangs.sightings",
        "launcher.hangs.watch",
        "launcher.plan",
        "launcher.rundir",
        "launcher.streams",
    },
    "launcher.hangs.watch": set(),
    "launcher.preflight.arrivals": {
        "launcher.control",
        "launcher.failures.problem",
        "launcher.plan",
        "launcher.preflight.compare",
        "launcher.preflight.facts",
        "launcher.schema",
        "launcher.streams",
    },
    "launcher.preflight.compare": {"launcher.members", "launcher.preflight.facts", "launcher.roles"},
    "launcher.preflight.facts": {"launcher.plan"},
    "mimo_role.errors": set(),
    "mimo_role.role": {"mimo_role.environ", "mimo_role.errors"},
    "mimo_role.grid": {"mimo_role.errors"},
    "mimo_role.sizing": {"mimo_role.errors", "mimo_role.grid", "mimo_role.role"},
    "mimo_role.topology": {"mimo_role.errors", "mimo_role.grid", "mimo_role.role", "mimo_role.sizing"},
    "mimo_role.slurm": {"mimo_role.errors"},
    "mimo_role.network": {"mimo_role.errors"},
    "mimo_role.notices": {"mimo_role.errors"},
    "mimo_role.agreement": {"mimo_role.notices"},
    "mimo_role.joining": {
        "mimo_role.environ",
        "mimo_role.errors",
        "mimo_role.families",
        "mimo_role.network",
        "mimo_role.peer_links",
        "mimo_role.topology",
    },
    "mimo_role.environ": {"mimo_role.errors", "mimo_role.families", "mimo_role.role", "mimo_role.slurm", "mimo_role.topology"},
    "mimo_role.families": {"mimo_role.errors", "mimo_role.grid", "mimo_role.role", "mimo_role.topology"},
    "mimo_role.rounds": {"mimo_role.errors", "mimo_role.families", "mimo_role.grid", "mimo_role.topology"},
    "mimo_role.seeding": {"mimo_role.errors", "mimo_role.families", "mimo_role.topology"},
    "mimo_role.samples": {"mimo_role.errors", "mimo_role.grid"},
    "mimo_role.random_streams": {"mimo_role.errors", "mimo_role.role", "mimo_role.seeding", "mimo_role.topology"},
    "mimo_role.routing": {"mimo_role.samples"},
    "mimo_role.balance": set(),
    "mimo_role.groups": {
        "mimo_role.environ",
        "mimo_role.errors",
        "mimo_role.families",
        "mimo_role.group_names",
        "mimo_role.role",
        "mimo_role.rounds",
        "mimo_role.topology",
    },
    "mimo_role.group_names": set(),
    "mimo_role.hyper_comm_grid": {
        "mimo_role.environ",
        "mimo_role.errors",
        "mimo_role.families",
        "mimo_role.grid",
        "mimo_role.groups",
        "mimo_role.rounds",
    },
    "mimo_role.megatron": {
        "mimo_role.errors",
        "mimo_role.families",
        "mimo_role.grid",
        "mimo_role.hyper_comm_grid",
        "mimo_role.role",
        "mimo_role.topology",
    },
    "mimo_role.copies": {"mimo_role.errors", "mimo_role.grid", "mimo_role.topology"},
    "mimo_role.gradients": {"mimo_role.copies", "mimo_role.errors", "mimo_role.topology"},
    "mimo_role.losses": set(),
    "mimo_role.buffers": set(),
    "mimo_role.tags": set(),
    "mimo_role.frames": {"mimo_role.tags"},
    "mimo_role.peer_links": {"mimo_role.errors", "mimo_role.frames"},
    "mimo_role.expected_batch": {"mimo_role.frames", "mimo_role.tags"},
    "mimo_role.wait_cycles": {"mimo_role.expected_batch", "mimo_role.frames", "mimo_role.tags"},
    "mimo_role.batch_ledger": {
        "mimo_role.errors",
        "mimo_role.expected_batch",
        "mimo_role.frames",
        "mimo_role.peer_links",
        "mimo_role.tags",
        "mimo_role.transfer_guard",
        "mimo_role.wait_cycles",
    },
    "mimo_role.transfer_guard": {"mimo_role.frames", "mimo_role.wait_cycles"},
    "mimo_role.activations": {"mimo_role.batch_ledger", "mimo_role.errors", "mimo_role.routing", "mimo_role.samples"},
    "mimo_role.plain_tensor": {"mimo_role.errors", "mimo_role.samples"},
    "mimo_role.local_end": {
        "mimo_role.activations",
        "mimo_role.errors",
        "mimo_role.expected_batch",
        "mimo_role.frames",
        "mimo_role.plain_tensor",
        "mimo_role.routing",
        "mimo_role.samples",
    },
    "mimo_role.crossing": {
        "mimo_role.batch_ledger",
        "mimo_role.buffers",
        "mimo_role.expected_batch",
        "mimo_role.frames",
        "mimo_role.local_end",
        "mimo_role.tags",
        "mimo_role.transfer_guard",
        "mimo_role.wait_cycles",
    },
    "mimo_role.backward_pass": set(),
    "mimo_role.owed_gradients": {"mimo_role.activations", "mimo_role.batch_ledger", "mimo_role.bridge_base"},
    "mimo_role.bridge_autograd": {
        "mimo_role.activations",
        "mimo_role.backward_pass",
        "mimo_role.batch_ledger",
        "mimo_role.bridge_base",
        "mimo_role.crossing",
        "mimo_role.frames",
        "mimo_role.owed_gradients",
        "mimo_role.tags",
    },
    "mimo_role.bridge": {
        "mimo_role.activations",
        "mimo_role.bridge_autograd",
        "mimo_role.bridge_base",
        "mimo_role.errors",
    },
    "mimo_role.bridge_base": {
        "mimo_role.activations",
        "mimo_role.batch_ledger",
        "mimo_role.buffers",
        "mimo_role.crossing",
        "mimo_role.errors",
        "mimo_role.frames",
        "mimo_role.local_end",
        "mimo_role.samples",
        "mimo_role.tags",
    },
    "mimo_role.ways": {
        "mimo_role.crossing",
        "mimo_role.grid",
        "mimo_role.groups",
        "mimo_role.role",
        "mimo_role.rounds",
        "mimo_role.routing",
        "mimo_role.samples",
        "mimo_role.topology",
    },
    "mimo_role.timeline": {"mimo_role.errors", "mimo_role.role", "mimo_role.topology"},
    "mimo_role.gradient_sync": {"mimo_role.errors"},
    "mimo_role.schedule": {
        "mimo_role.activations",
        "mimo_role.bridge",
        "mimo_role.context",
        "mimo_role.crossing",
        "mimo_role.errors",
        "mimo_role.frames",
        "mimo_role.gradient_sync",
        "mimo_role.samples",
        "mimo_role.timeline",
    },
    "mimo_role.context": {
        "mimo_role.agreement",
        "mimo_role.batch_ledger",
        "mimo_role.bridge",
        "mimo_role.environ",
        "mimo_role.errors",
        "mimo_role.families",
        "mimo_role.gradients",
        "mimo_role.grid",
        "mimo_role.groups",
        "mimo_role.heartbeat",
        "mimo_role.hyper_comm_grid",
        "mimo_role.joining",
        "mimo_role.losses",
        "mimo_role.megatron",
        "mimo_role.notices",
        "mimo_role.random_streams",
        "mimo_role.role",
        "mimo_role.rounds",
        "mimo_role.samples",
        "mimo_role.seeding",
        "mimo_role.topology",
        "mimo_role.ways",
        "mimo_role.witness",
    },
    "mimo_role.testing": {"mimo_role.context", "mimo_role.environ", "mimo_role.topology"},
    "mimo_role.flight_recorder": set(),
    "mimo_role.heartbeat": set(),
    "mimo_role.witness": {"mimo_role.flight_recorder", "mimo_role.whole_file"},
    "mimo_role.whole_file": set(),
}

MAY_TOUCH_ENVIRON = {"mimo_role.environ"}
MAY_PRINT = {"launcher.cli"}


def modules():
    for package in ("launcher", "mimo_role"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if not name.endswith("__init__"):
                yield pytest.param(name, ast.parse(path.read_text(encoding="utf-8")), id=name)


OWN_MODULES = {parameter.values[0] for parameter in modules()}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("name", "tree"), list(modules()))
def test_a_module_imports_only_what_its_room_may(name, tree):
    found = {target for target in imported(tree) if target in OWN_MODULES}
    if name.startswith("launcher"):
        found = {target for target in found if not target.startswith("mimo_role")}
    assert found <= ALLOWED[name]


@pytest.mark.parametrize(("name", "tree"), list(modules()))
def test_mimo_role_does_not_know_the_launcher(name, tree):
    if name.startswith("mimo_role"):
        assert not [target for target in imported(tree) if target.partition(".")[0] == "launcher"]


@pytest.mark.parametrize(("name", "tree"), list(modules()))
def test_the_environment_has_one_reader(name, tree):
    touched = any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(tree)
    )
    assert not touched or name in MAY_TOUCH_ENVIRON


@pytest.mark.parametrize(("name", "tree"), list(modules()))
def test_only_the_command_line_prints(name, tree):
    prints = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" for node in ast.walk(tree)
    )
    assert not prints or name in MAY_PRINT


CONFIG = ROOT / "examples" / "digits_vlm" / "non_colocated.yaml"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import mimo_role; mimo_role.Topology, mimo_role.RankRole, mimo_role.RankEnviron", id="import mimo_role"),
        pytest.param(
            "import mimo_role.rounds, mimo_role.routing, mimo_role.balance, mimo_role.timeline, mimo_role.seeding",
            id="pure modules",
        ),
        pytest.param("from launcher.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass", id="--help"),
        pytest.param("from launcher.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass", id="run --help"),
        pytest.param(f"from launcher.cli import main; assert main(['plan', {str(CONFIG)!r}]) == 0", id="plan"),
        pytest.param(f"from launcher.cli import main; assert main(['plan', '--json', {str(CONFIG)!r}]) == 0", id="plan --json"),
    ],
)
def test_torch_is_not_loaded_by(code):
    check = "\nimport sys; assert not [name for name in sys.modules if name.partition('.')[0] in ('torch', 'torchx', 'numpy')]"
    subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True, timeout=60, cwd=ROOT)


def test_a_job_is_submitted_without_torch():
    pytest.importorskip("torchx")
    config = ROOT / "examples" / "slurm" / "two_pools.yaml"
    code = f"from launcher.cli import main; assert main(['submit', {str(config)!r}, '--to', 'slurm', '--dry-run']) == 0"
    check = "\nimport sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code + check], check=True, capture_output=True, timeout=60, cwd=ROOT)
