"""Models of Hugging Face's transformers on separate grids. It needs `pip install mimo-launch[hf]`."""

from mimo_role.hf.collation import Collation
from mimo_role.hf.families import register
from mimo_role.hf.family import Encoder, Family
from mimo_role.hf.rank_model import RankModel
from mimo_role.hf.weights import export_pretrained

__all__ = ["Collation", "Encoder", "Family", "RankModel", "export_pretrained", "register"]
