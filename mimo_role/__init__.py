"""The role of each process of a multimodal training job: the modules that it runs, its coordinates, its process groups.

Every name is loaded at first use; `__init__.pyi` lists them. `current()`, `init()`, `shutdown()`, `RoleContext`,
`RandomStreams`, `checkpoint`, `HyperCommGrid`, `Bridge`, `ActivationSpec`, `Passage`, `cross_together`, `Schedule1F1B`,
`StageOutput`, `RoleDataLoader`, `GlobalBatchSampler`, `exchange_sizes`, `SampleSizes` and `set_gradient_sum` need torch; the
rest does not.
"""

from mimo_role.host.lazy_exports import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)

del lazy_exports
