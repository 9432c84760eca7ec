"""One rank of a large world in one process, with peers that have what this rank has.

`install` in `world.py` replaces functions of torch.distributed and of this package before the rank joins. Nothing else imports
this package, so a real run has neither an import nor a branch for it.
"""
