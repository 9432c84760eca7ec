"""Draws the picture of a job, docs/images/job.svg: one YAML file, the launcher, the grids and what a rank receives.

    python docs/draw_job.py            # write the picture
    python docs/draw_job.py --check    # exit code 1 if the picture in the repository is not the one drawn here

Ranks and labels come from a `Topology`, so they are those that `mimo-launch plan` prints. Colours follow the reader's light
or dark setting.
"""

import sys
from html import escape
from pathlib import Path

from mimo_role import Topology

PICTURE = Path(__file__).parent / "images" / "job.svg"
TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})
YAML = ("modules:", "  vision:   {dp: 2}", "  language: {tp: 2, pp: 2}", "entry: {script: train.py}")
TITLE = "One YAML file, a vision encoder on two ranks, a language model on four, and a bridge between them"
WIDTH, HEIGHT = 960, 428

STYLE = """
  .page { fill: #f7f8fa; stroke: #d5d9e0 }
  .card { fill: #ffffff; stroke: #c3c9d4 }
  .text { fill: #1f2733 }
  .quiet { fill: #5a6474 }
  .arrow { stroke: #5a6474; fill: none; stroke-width: 2 }
  .head { fill: #5a6474 }
  .vision { fill: #fdf1dc; stroke: #c98a1b }
  .vision-rank { fill: #f7d89c; stroke: #c98a1b }
  .language { fill: #e4edfb; stroke: #3f6fb5 }
  .language-rank { fill: #b9d0f3; stroke: #3f6fb5 }
  .launcher { fill: #37445a; stroke: #37445a }
  .on-dark { fill: #ffffff }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161b22; stroke: #30363d }
    .card { fill: #1f2630; stroke: #3d4653 }
    .text { fill: #e6eaf0 }
    .quiet { fill: #9aa5b4 }
    .arrow { stroke: #9aa5b4 }
    .head { fill: #9aa5b4 }
    .vision { fill: #33291a; stroke: #d9a441 }
    .vision-rank { fill: #574322; stroke: #d9a441 }
    .language { fill: #1b2a40; stroke: #6d9be0 }
    .language-rank { fill: #2b456d; stroke: #6d9be0 }
    .launcher { fill: #4a5a75; stroke: #4a5a75 }
  }
  text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
  text.title { font-weight: 600 }
  text.small { font-size: 12.5px }
  text.code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px }
"""


def box(x: int, y: int, width: int, height: int, kind: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{kind}"/>'


def text(x: int, y: int, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}" xml:space="preserve">{escape(words)}</text>'


def arrow(*points: tuple[int, int]) -> str:
    path = " L ".join(f"{x} {y}" for x, y in points)
    return f'<path d="M {path}" class="arrow" marker-end="url(#head)"/>'


def config() -> list[str]:
    lines = [text(36, 78 + 21 * number, line, "text code") for number, line in enumerate(YAML)]
    return [box(20, 20, 238, 140, "card"), text(36, 48, "job.yaml", "text title"), *lines]


def launcher() -> list[str]:
    steps = ("plan: which rank runs what, where", "start the ranks, from one fork server", "join, and create process groups")
    lines = [text(36, 256 + 20 * number, step, "quiet small") for number, step in enumerate(steps)]
    return [
        arrow((139, 160), (139, 192)),
        box(20, 198, 238, 34, "launcher"),
        text(139, 220, "mimo-launch run job.yaml", "on-dark code", "middle"),
        *lines,
        arrow((258, 215), (288, 215)),
    ]


def rank_box(rank: int, x: int, y: int) -> list[str]:
    label = TOPOLOGY.label_of(rank)
    module, _, place = label.partition(".")
    return [
        box(x, y, 116, 58, f"{module}-rank"),
        text(x + 58, y + 25, f"rank {rank}", "text title", "middle"),
        text(x + 58, y + 44, place, "text code", "middle"),
    ]


def grid(module: str, x: int, width: int, heading: str) -> list[str]:
    return [box(x, 20, width, 250, module), text(x + width // 2, 48, heading, "text title", "middle")]


def vision() -> list[str]:
    ranks = [part for row, rank in enumerate(TOPOLOGY.grids["vision"].ranks) for part in rank_box(rank, 316, 92 + 88 * row)]
    return [
        *grid("vision", 294, 160, "vision encoder"),
        text(374, 72, "2 data-parallel lanes", "quiet small", "middle"),
        *ranks,
    ]


def language() -> list[str]:
    parts = grid("language", 596, 344, "language model")
    for rank in TOPOLOGY.grids["language"].ranks:
        coords = TOPOLOGY.coords_of(rank)["language"]
        parts += rank_box(rank, 624 + 172 * coords["pp"], 92 + 88 * coords["tp"])
    parts += [text(682 + 172 * stage, 72, f"stage {stage + 1} of 2 (pp)", "quiet small", "middle") for stage in range(2)]
    parts += [arrow((740, 165), (792, 165)), text(768, 258, "each stage on 2 ranks (tp)", "quiet small", "middle")]
    return parts


def bridge() -> list[str]:
    return [
        text(525, 128, "bridge", "text title", "middle"),
        arrow((458, 144), (590, 144)),
        text(525, 163, "activations", "quiet small", "middle"),
        arrow((590, 188), (458, 188)),
        text(525, 207, "gradients", "quiet small", "middle"),
    ]


def one_rank() -> list[str]:
    lines = (
        ("MIMO_ROLE, MIMO_COORDS, ...", "the role in the environment, for any program"),
        ("ctx = mimo_role.current()", "the same in Python, before the first line of train.py runs"),
        ("ctx.role.has_language_module", "what this rank runs"),
        ('ctx.group("language", "tp")', "process groups and meshes, already created"),
    )
    parts = [box(294, 300, 646, 112, "card")]
    for number, (code, meaning) in enumerate(lines):
        parts += [text(314, 326 + 24 * number, code, "text code"), text(556, 326 + 24 * number, meaning, "quiet small")]
    tail = [text(139, 352, "every rank receives", "text title", "middle"), arrow((230, 347), (288, 347))]
    return [*parts, *tail]


def picture() -> str:
    head = '<marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(TITLE)}</title>",
        f"<style>{STYLE}</style>",
        f'<defs>{head}<path d="M 0 0 L 8 4 L 0 8 z" class="head"/></marker></defs>',
        box(1, 1, WIDTH - 2, HEIGHT - 2, "page"),
        *config(),
        *launcher(),
        *vision(),
        *bridge(),
        *language(),
        *one_rank(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    if "--check" in sys.argv[1:]:
        if PICTURE.read_text(encoding="utf-8") == picture():
            return 0
        print(f"{PICTURE}: not the picture that docs/draw_job.py draws; run it again", file=sys.stderr)
        return 1
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
