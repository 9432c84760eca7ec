from mimo_role.topology.grid import RankGrid as RankGrid
from mimo_role.topology.sizing import ModuleSizes as ModuleSizes
from mimo_role.topology.topology import Topology as Topology
