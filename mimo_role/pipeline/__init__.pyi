from mimo_role.pipeline.schedule import Schedule1F1B as Schedule1F1B
from mimo_role.pipeline.step_plan import StageOutput as StageOutput
from mimo_role.topology.stage_links import StageId as StageId
