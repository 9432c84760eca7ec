from mimo_role.pipeline.schedule import Schedule1F1B as Schedule1F1B
from mimo_role.pipeline.stage_graph import StageId as StageId
from mimo_role.pipeline.step_executor import StageOutput as StageOutput
