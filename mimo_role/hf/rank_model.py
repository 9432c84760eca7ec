"""A model of transformers in the layout of a job: what one rank builds and runs."""

import copy
import os
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.context import RoleContext
from mimo_role.data.micro_batch import MicroBatch
from mimo_role.data.sample_sizes import SampleSizes, exchange_sizes
from mimo_role.errors import AxisError, HfError
from mimo_role.groups.families import EMBEDDING
from mimo_role.hf import building, checks, weights
from mimo_role.hf.collation import IGNORED, Collation
from mimo_role.hf.context_parallel import ContextParallel, enable
from mimo_role.hf.families import family_of
from mimo_role.hf.family import Config, Model
from mimo_role.hf.parts import EncoderPart, LanguagePart
from mimo_role.pipeline.schedule import Schedule1F1B
from mimo_role.resharding.samples import Samples, TokenSplit
from mimo_role.topology.stage_links import StageId

LANGUAGE = "language"


class RankModel:
    """This rank's part of a vision-language or audio-language model, and the schedule over all parts.

    The job's modules are named as the family's encoders (`vision`, `audio`) and `language`. The language model may have dp, tp,
    pp and cp, encoders dp, and tp where transformers has a plan for their tower; all of them FSDP2.
    """

    def __init__(
        self,
        ctx: RoleContext,
        config: Config,
        *,
        dtype: torch.dtype = torch.float32,
        fsdp: Collection[str] = (),
        freeze: Collection[str] = (),
        autocast: torch.dtype | None = None,
    ) -> None:
        """Build it without values; call `load` or `initialize` next.

        Args:
            ctx: this rank's.
            config: the whole model's.
            dtype: of parameters, and of what crosses bridges.
            fsdp: modules that FSDP2 divides over their dp and cp ranks.
            freeze: patterns of the names of parameters that do not train, such as `model.vision_tower.*`.
            autocast: the dtype of `torch.autocast`, for example bfloat16.

        Raises:
            HfError: an unknown family or module, a family that does not fit the model, an axis that a module cannot have, a
                pattern that no parameter has, or tied embeddings without a group of the first and last stages.
        """
        self.config = copy.deepcopy(config)
        self.family = family_of(config)
        self._ctx, self._dtype, self._autocast = ctx, dtype, autocast
        self._check(ctx, fsdp)
        self._model = self._whole_on_meta()
        checks.check_family(self._model, self.family)
        self._is_tied = building.is_tied(self._model, self.family)
        checks.check_frozen(self._model, freeze)
        checks.check_layout(self._model, self.family, ctx.topology.grids, fsdp)
        self.split = TokenSplit(cp_order="zigzag")
        self.modules = nn.ModuleDict(self._parts(fsdp))
        for part in self.modules.values():
            self._freeze(part, freeze)
            building.materialize(part, ctx.device)
        self._mark_tied()
        self._schedule: Schedule1F1B[MicroBatch] | None = None
        self._sizes: SampleSizes | None = None
        self._tokens: torch.Tensor | None = None

    @property
    def collate_fn(self) -> dict[str, Collation]:
        """For `RoleDataLoader`: how samples become the inputs of each module that this rank runs."""
        cp = self._ctx.topology.grids[LANGUAGE].axis_size("cp")
        return {name: Collation(self.config, name, multiple=2 * cp if cp > 1 else 1) for name in self._ctx.role.modules}

    @property
    def needs(self) -> dict[str, str]:
        """For `RoleDataLoader`: every stage of the language model needs the mask and the positions."""
        return {LANGUAGE: "all"}

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read this rank's weights from a folder that `save_pretrained` has written.

        Raises:
            CheckpointError: no files, or a missing or unlike tensor.
            HfError: transformers stores parameters in another form.
        """
        names = [name for part in self.modules.values() for name in weights.stored_tensors(part)]
        tied = {f"{head}.weight": f"{embedding}.weight" for head, embedding in self._aliases.items()}
        stored = weights.stored_names(self._whole_on_meta(), list(dict.fromkeys([*names, *tied.values()])))
        weights.load_pretrained(self.modules, stored, path, tied)

    def initialize(self, seed: int) -> None:
        """Random weights, the same in every layout."""
        whole = self._whole_on_meta()
        for part in self.modules.values():
            weights.initialize(part, whole, seed, self._aliases)

    def step(self, micro_batches: Sequence[MicroBatch], *, sync_gradients: bool = True) -> list[torch.Tensor]:
        """Forwards and backwards of a step; gradients add up in the parameters. Collective over the world.

        Returns:
            The losses of the micro-batches on the last stage of the language model, elsewhere `[]`: sums over labels, divided
            by the number of labels of the whole batch, for `ctx.mean_loss`.
        """
        self._prepare(micro_batches)
        return self._scheduled().step(micro_batches, sync_gradients=sync_gradients)

    def evaluate(self, micro_batches: Sequence[MicroBatch]) -> list[torch.Tensor]:
        """The same losses without gradients."""
        self._prepare(micro_batches)
        outputs = self._scheduled().forward(micro_batches)
        for part in self.modules.values():
            building.reshard(part)
        return [self._loss_of(logits, micro) for logits, micro in zip(outputs, micro_batches, strict=False)]

    def _check(self, ctx: RoleContext, fsdp: Collection[str]) -> None:
        known = {*self.family.encoders, LANGUAGE}
        modules = ctx.topology.grids
        if unknown := sorted(set(modules) - known) or sorted(set(fsdp) - set(modules)):
            raise HfError(
                f"{self.config.model_type!r} has no module {unknown[0]!r}; name the job's modules {', '.join(sorted(known))}"
            )
        if missing := sorted(known - set(modules)):
            raise HfError(f"{self.config.model_type!r} needs the module {missing[0]!r} in the job's config")
        for name in self.family.encoders:
            for axis in ("pp", "cp"):
                if (size := modules[name].axis_size(axis)) > 1:
                    raise HfError(f"modules.{name}.{axis}={size}: encoders are not divided along {axis}; use dp or fsdp")

    def _freeze(self, part: nn.Module, freeze: Collection[str]) -> None:
        """Both names of tied embeddings freeze both copies. What transformers itself does not train stays as it is."""
        ends = [f"{name}.weight" for pair in self._aliases.items() for name in pair]
        for name, parameter in part.named_parameters():
            names = ends if name in ends else [name]
            if any(fnmatch(each, pattern) for each in names for pattern in freeze):
                parameter.requires_grad_(False)

    @property
    def _aliases(self) -> dict[str, str]:
        """With tied embeddings, the head has those of the input."""
        return {self.family.head: f"{self.family.language}.embed_tokens"} if self._is_tied else {}

    def _whole_on_meta(self) -> Model:
        return building.build_on_meta(self.config, self.family, self._dtype)

    def _parts(self, fsdp: Collection[str]) -> dict[str, nn.Module]:
        ctx, family, model = self._ctx, self.family, self._model
        own = set(ctx.role.modules)
        kept = [path for name in own & set(family.encoders) for path in family.encoders[name].paths]
        kept += [family.language, family.head] if LANGUAGE in own else []
        building.remove(model, kept)
        parts: dict[str, nn.Module] = {}
        for name in ctx.role.modules:
            tp = ctx.topology.grids[name].axis_size("tp")
            part: EncoderPart | LanguagePart
            if name == LANGUAGE:
                part = self._language_part(tp)
            else:
                encoder = family.encoders[name]
                if tp > 1:
                    plan = building.tp_plan_of_encoder(encoder, name, model)
                    building.apply_tp(model.get_submodule(encoder.tower), plan, building.mesh_of(ctx, name)["tp"])
                part = EncoderPart(model, encoder, self.config, self._dtype)
            if name in fsdp:
                mesh = building.mesh_of(ctx, name)["dp_cp"]
                building.shard(part, building.repeated_layers(part), mesh)
            parts[name] = part
        return parts

    def _language_part(self, tp: int) -> LanguagePart:
        ctx, family, model = self._ctx, self.family, self._model
        grid = ctx.topology.grids[LANGUAGE]
        stage, stages = ctx.coords(LANGUAGE)["pp"], grid.axis_size("pp")
        building.keep_stage(model, family, stage, stages)
        text = model.get_submodule(family.language)
        parallel = ContextParallel(ctx, LANGUAGE, self.split)
        if parallel.size > 1:
            enable(text, parallel)
        if tp > 1:
            mesh = building.mesh_of(ctx, LANGUAGE)["tp"]
            # A head that is divided over its words shares its weight with embeddings that are, too.
            tied = {"embed_tokens": "embedding_rowwise"} if self._is_tied else {}
            building.apply_tp(text, {**family.tp_plan(text.config), **tied}, mesh)
            if stage == stages - 1:
                building.apply_tp(model, {family.head: "colwise_gather_output"}, mesh)
        if self._is_tied and stages == 1:
            model.get_submodule(family.head).weight = text.embed_tokens.weight
        return LanguagePart(model, family, self.config, parallel, stage, stages)

    def _mark_tied(self) -> None:
        """The first and last stage have a copy each of tied embeddings."""
        if not self._is_tied or LANGUAGE not in self.modules:
            return
        if self._ctx.topology.grids[LANGUAGE].axis_size("pp") == 1:
            return
        try:
            self._ctx.group(LANGUAGE, EMBEDDING)
        except AxisError as error:
            raise HfError(f"the first and last stages sum the gradients of tied embeddings: {error}") from None
        tied = {f"{name}.weight" for pair in self._aliases.items() for name in pair}
        for name, parameter in self.modules[LANGUAGE].named_parameters():
            if name in tied:
                parameter.shared_embedding = True  # type: ignore[attr-defined]

    def _scheduled(self) -> Schedule1F1B[MicroBatch]:
        if self._schedule is None:
            stages = self._ctx.topology.grids[LANGUAGE].axis_size("pp")
            destinations: dict[str, dict[str, StageId]] = {}
            text = self.family.text_config(self.config)
            for name, encoder in self.family.encoders.items():
                for number, layer in enumerate(encoder.levels(self.config)):
                    stage = next(
                        stage for stage in range(stages) if layer in building.layers_of(text.num_hidden_layers, stage, stages)
                    )
                    destinations.setdefault(name, {})[f"level_{number}"] = StageId(LANGUAGE, stage)
            self._schedule = Schedule1F1B(
                self._ctx,
                run=self._run,
                spec_of=self._spec_of,
                loss_of=self._loss_of,
                modules=dict(self.modules.items()),
                frozen="auto",
                destinations=destinations,
                splits={LANGUAGE: self.split},
            )
        return self._schedule

    def _prepare(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Exchange the numbers of tokens of all samples, and count the labels of the whole batch."""
        ctx, own = self._ctx, {}
        for name in self.family.encoders:
            if ctx.role.is_first_stage(name):
                own[name] = [micro[name]["tokens"] for micro in micro_batches]
        if ctx.role.is_first_stage(LANGUAGE):
            shapes = [micro[LANGUAGE]["input_ids"].shape for micro in micro_batches]
            own[LANGUAGE] = [[length] * samples for samples, length in shapes]
        self._sizes = exchange_sizes(ctx, [*self.family.encoders, LANGUAGE], micro_batches, own)
        if ctx.role.is_last_stage(LANGUAGE):
            part = self.modules[LANGUAGE]
            assert isinstance(part, LanguagePart)
            count = sum(int((part.own_labels(micro[LANGUAGE]) != IGNORED).sum()) for micro in micro_batches)
            self._tokens = ctx.token_count(count)

    def _run(self, module: str, micro: MicroBatch, inputs: Mapping[str, Any]) -> Any:
        with torch.autocast(self._ctx.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            found = self.modules[module](micro[module], inputs, self._ctx.device)
        if isinstance(found, Mapping):
            return {name: tensor.to(self._dtype) for name, tensor in found.items()}
        return found if self._ctx.role.is_last_stage(module) else found.to(self._dtype).flatten(0, 1)

    def _spec_of(self, at: StageId, micro: MicroBatch) -> Any:
        assert self._sizes is not None
        samples = Samples(len(micro), tokens=self._sizes[at.module][micro.number])
        width = self.family.text_config(self.config).hidden_size
        spec = ActivationSpec(samples=samples, token_shape=(width,), dtype=self._dtype)
        if at.module == LANGUAGE:
            return spec
        levels = self.family.encoders[at.module].levels(self.config)
        return {"embeddings": spec, **{f"level_{number}": spec for number in range(len(levels))}}

    def _loss_of(self, logits: torch.Tensor, micro: MicroBatch) -> torch.Tensor:
        part = self.modules[LANGUAGE]
        assert isinstance(part, LanguagePart)
        assert self._tokens is not None
        labels = part.own_labels(micro[LANGUAGE]).to(logits.device)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        total = cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED)
        return total / self._tokens
